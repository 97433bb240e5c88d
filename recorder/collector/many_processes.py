"""An engine of several processes: some schedule, others run the forwards. This puts their frames together.

The forwards are the steps. Each forward belongs to one scheduling call. That is the last call whose tasks had reached
the worker: a TASKS frame names it, because the call's number travels with the tasks. Or it is a later call that handed
out nothing and had ended when the forward began. The collector first feeds what the scheduling process wrote, and then
what the workers wrote, which it read earlier. So a call is always known before its forwards. Clocks decide only about
the calls that handed out nothing.
"""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector import frames, stalls
from fdtrace.recorder.collector.call_rows import CallRows
from fdtrace.recorder.collector.columns import Forwards
from fdtrace.recorder.collector.engine import Decoded, Engine
from fdtrace.recorder.collector.engine_ring import EngineRing
from fdtrace.recorder.collector.forward_calls import ForwardCalls
from fdtrace.recorder.collector.frames import UNSEEN, CallFrame, ForwardFrame, Frame, frames_of
from fdtrace.recorder.collector.held_rows import HeldRows
from fdtrace.recorder.collector.ledger import Ledger, OpenRequest
from fdtrace.recorder.collector.order_decoder import OrderDecoder
from fdtrace.recorder.collector.order_frames import DecidedFrame, QueueFrame
from fdtrace.recorder.collector.prompt_hash_salt import salted
from fdtrace.recorder.collector.ranks import Ranks
from fdtrace.recorder.collector.reader import FrameBlock
from fdtrace.recorder.collector.request_numbers import RequestNumbers
from fdtrace.recorder.collector.steps import Steps
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays

QUIET_NS = 500_000_000
"""Nanoseconds. If a request finished at least this long before the rings were read, its last forward has been read too.
So its row is free."""

PLAIN_VALUES = ("row", "step", "num_steps", "agent_says_what_it_found", "begins", "discarding", "finishes")
"""Attributes whose values are saved as they are."""

STATEFUL = ("ledger", "requests", "call_rows", "steps", "rows", "calls", "ranks", "stalls", "order")
"""Attributes that save and restore a state of their own."""


class ManyProcessEngine(Engine):
    """`collector.engine.Engine` for several rings. `part` is the ring whose frames are being decoded."""

    def __init__(self, engine_id: int, max_steps: int | None = None, salt: bytes = b"") -> None:
        self.engine_id, self.max_steps, self.salt = engine_id, max_steps, salt
        self.row: dict[str, Any] | None = None
        self.part = EngineRing("engine")
        self.ledger = Ledger(engine_id)
        self.requests = RequestNumbers(self.ledger)
        self.call_rows = CallRows(engine_id)
        self.steps = Steps(engine_id, self.ledger, self._flushed)
        self.rows = HeldRows(self.steps, self.ledger)
        self.calls = ForwardCalls()
        self.ranks = Ranks()
        self.stalls = stalls.Stalls(self.ledger)
        self.order = OrderDecoder(salt)
        self.step = MISSING
        self.num_steps = 0
        self.agent_says_what_it_found = False
        self.begins = 0
        """UTC ns. Forwards that began earlier are not part of the recording: while these come, `discarding` is true."""
        self.discarding = False
        self.finishes: list[list[int]] = []
        """Time, request, reason and output tokens of requests that ended, until no forward can hold their rows."""
        self.ended: list[list[int]] = []
        """Of requests whose rows are free: the values of `finishes`, then the last step when the row became free.
        `take` empties the list."""
        self.last_ran: dict[int, int] = {}
        self._decoded = Decoded()

    @property
    def _next_step(self) -> int:
        """The step to which frames that come now belong."""
        return self.step + 1

    def feed(self, part: EngineRing, chunk: FrameBlock) -> None:
        """As `Engine.feed`."""
        self.part = part
        if chunk.lost:
            self._lose(chunk.lost, chunk.first_forward)
        for frame in frames_of(chunk):
            if self.full:
                if isinstance(frame, ForwardFrame) and self.begins <= frame.head.ts:
                    part.past = True
                    break
                if not isinstance(frame, (frames.FinishFrame, frames.MemoryFrame, frames.TasksFrame)):
                    continue
            if not part.waits_for_keyframe or self._may_start(frame):
                self._take_in(frame)

    def _lose(self, num_frames: int, first_forward: tuple[int, int] | None) -> None:
        part = self.part
        if part.base is None and first_forward is not None and first_forward[1] >= self.begins:
            part.base = self._next_step - first_forward[0]
        part.waits_for_keyframe = True
        part.lost_frames += num_frames
        if part.lost_from < 0:
            part.lost_from = self._next_step
        if part.kind == "engine":
            self.order.lose()
        if part.runs:
            self.rows.free_all()
            self.ranks.lose()
            self.call_rows.lose(tasks_are_reported=True)

    def _may_start(self, frame: Frame) -> bool:
        """Whether a frame can be decoded before the first keyframe. After a keyframe, all frames can."""
        readable = frames.RANK_BEFORE_KEYFRAME if self.part.kind == "rank" else frames.BEFORE_KEYFRAME
        if isinstance(frame, readable) or (isinstance(frame, frames.BatchFrame) and frame.is_keyframe):
            return True
        self.part.lost_frames += self.part.lost_from >= 0
        return False

    def _take_in(self, frame: Frame) -> None:
        match frame:
            case ForwardFrame():
                self._forward(frame)
            case CallFrame():
                self._call(frame)
            case frames.TasksFrame(head):
                self._tasks(head.call)
            case frames.BlocksFrame():
                self.steps.set_blocks(frame, self._next_step)
            case frames.BatchFrame():
                self._batch(frame)
            case frames.MemoryFrame():
                self._memory(frame)
            case frames.RequestFrame():
                self._request(frame)
            case frames.FinishFrame(head):
                self._finish(head)
            case frames.EventFrame():
                self._event(frame)
            case frames.HashesFrame():
                self._hashes(frame)
            case DecidedFrame() | QueueFrame():
                self.agent_says_what_it_found |= isinstance(frame, QueueFrame) and frame.kind == "found"
                self.order.take_in(frame, self.part.numbers, self.ledger.live)
            case frames.EngineFrame(row):
                self._engine(row)

    def _engine(self, row: dict[str, Any]) -> None:
        if self.part.kind == "engine" or self.row is None:
            self.row = row
            self.stalls.set_limits(row)

    def _hashes(self, frame: frames.HashesFrame) -> None:
        request = self.ledger.live.get(self._trace_number(frame.request))
        if request is not None:
            request.block_hashes = salted(frame.hashes, self.salt)

    def _trace_number(self, local: int) -> int:
        """The trace's number for the request that this ring calls `local`."""
        return self.part.numbers.get(local, MISSING)

    def _batch(self, frame: frames.BatchFrame) -> None:
        part = self.part
        if frame.is_keyframe and not part.waits_for_keyframe:
            return  # it repeats what the frames before it said
        for row in frame.vacated:
            self.rows.free(row)
        for joined in frame.joined:
            self._join(joined)
        part.waits_for_keyframe = False
        if not part.runs:
            part.record_loss(self._next_step, self.ledger)

    def _request(self, frame: frames.RequestFrame) -> None:
        reported = frame.request
        reported.arrived_step = MISSING  # it is counted in this ring's own steps
        has_arrived = reported.arrived_at >= 0
        number = self._number_of(frame.head.request, reported, arrived=has_arrived)
        request = self.ledger.live[number]
        if has_arrived and request.arrived_at < 0:
            request.arrived_at = reported.arrived_at
            request.num_prompt_tokens, request.max_tokens = reported.num_prompt_tokens, reported.max_tokens
            request.sent_at, request.priority = reported.sent_at, reported.priority
        if has_arrived:
            self.order.events.add(self.calls.next_call, "arrived", number, reported.arrived_at, "", None)

    def _number_of(self, local: int, request: OpenRequest, *, arrived: bool = False) -> int:
        number = self.requests.number_of(request, arrived=arrived)
        if self.part.kind == "engine":
            self.part.numbers[local] = number
        return number

    def _join(self, joined: frames.JoinedRow) -> None:
        part, head, request = self.part, joined.head, joined.request
        row, computed, blocks = head.row, head.num_computed_tokens, head.num_blocks
        number = self._number_of(head.request, request)
        need = request.num_prompt_tokens + request.num_output_tokens
        if part.waits_for_keyframe:  # these are a keyframe's rows
            if part.runs or row not in self.rows.from_keyframe:
                self.rows.from_keyframe[row] = number, computed, blocks
            need = min(need, computed - 1) if computed > request.num_prompt_tokens else need
        else:
            live = self.ledger.live[number]
            output_tokens = max(live.num_output_tokens, request.num_output_tokens)
            self.ledger.joined(number, request, self._next_step)
            live.num_output_tokens = output_tokens
            self.rows.hold(row, number, computed, blocks)
        self.stalls.spans[number] = need, request.num_prompt_tokens + request.max_tokens

    def _call(self, call: CallFrame) -> None:
        head = self._trace_number(call.figures.head)
        call = CallFrame(call.head, call.figures._replace(head=head))
        self.calls.add(call)
        self.call_rows.add(call)

    def _tasks(self, call: int) -> None:
        if self.part.kind == "rank":
            return
        self.ranks.tasks_arrived(call)
        self.call_rows.tasks_arrived(call)
        if self.step >= 0 or not self.begins:
            self.order.events.date(call, self._next_step, self.ledger)

    def _memory(self, frame: frames.MemoryFrame) -> None:
        if self.full and frame.head.call > self.calls.last:
            self.part.past = True
        elif frame.head.rank:
            self.ranks.add(frame)
        else:
            self.ranks.ran_first(frame)

    def _forward(self, forward: ForwardFrame) -> None:
        head, part = forward.head, self.part
        if head.forward_us == wire.UNKNOWN_US:
            forward = self.ranks.measured(forward)
        if head.ts < self.begins:
            self.discarding = True
            self._add(forward, MISSING, UNSEEN)
            self.ranks.ran(MISSING)
            self.steps.num_waiting -= 1
            return
        if self.discarding:
            self.steps.flush()
            self.discarding = False
        if part.base is None:
            part.base = self._next_step - head.step
        step = part.base + head.step
        call = self.calls.of_forward(head.call, head.ts, bool(head.codes & wire.LANDED))
        self.order.events.date(call.head.call, step, self.ledger)
        self.call_rows.entered(call.head.call, step)
        self._vacate(head.ts)
        self.rows.hold_from_keyframe()
        part.record_loss(step, self.ledger)
        if not self.num_steps and not self.agent_says_what_it_found:
            self.steps.note_waiting_rows(forward, step)
        self._add(forward, step, call)
        self.ranks.ran(step)
        self.step = step
        self.num_steps += 1

    def _add(self, forward: ForwardFrame, step: int, call: CallFrame) -> None:
        place = self.steps.add(forward, step, call)
        self.stalls.reported += [(place, row) for row in forward.stalled]

    def _event(self, frame: frames.EventFrame) -> None:
        head, number = frame.head, self._trace_number(frame.head.request)
        details = head.ts, frame.reason, frame.detail
        if self.part.kind == "engine":
            self.order.events.add(self.calls.next_call, frame.kind, number, *details)
        else:
            self.ledger.event(frame.kind, self._next_step, number, *details)

    def _finish(self, head: wire.FinishHead) -> None:
        number = self.part.numbers.pop(head.request, None)
        if number is not None and number in self.ledger.live:
            self.finishes.append([head.ts, number, head.reason, head.num_output_tokens])
            self.requests.finishing.add(number)

    def _vacate(self, ts: int) -> None:
        """Free the rows of requests that finished before `ts`."""
        while self.finishes and self.finishes[0][0] < ts:
            finish = self.finishes.pop(0)
            self.rows.release(finish[1])
            self.ended.append([*finish, self.step])

    def _flushed(self, forwards: Forwards, columns: ColumnArrays, rows: ColumnArrays) -> None:
        if self.discarding:
            self.stalls.reported = []
            return
        for number, step in zip(rows["request"].tolist(), rows["step"].tolist(), strict=True):
            self.last_ran[number] = step
        columns["num_stalled"] = self.stalls.count(forwards, columns["step"], self._has_ended)
        self._decoded.steps.append(columns)
        self._decoded.step_requests.append(rows)

    def _has_ended(self, number: int, step: int) -> bool:
        """Of a request that did not run in `step`: whether its last step was before `step`."""
        return number in self.requests.finishing and self.last_ran.get(number, MISSING) < step

    def take(self, read_at: int) -> Decoded:
        """As `Engine.take`."""
        self._vacate(read_at - QUIET_NS if read_at else 1 << 62)
        if not read_at:
            self.order.events.date(1 << 62, self._next_step, self.ledger)
        self.steps.flush()
        self.steps.num_waiting = 0
        self._end_requests()
        decoded, self._decoded = self._decoded, Decoded()
        decoded.requests, decoded.events = self.ledger.take()
        decoded.calls = self.call_rows.take(final=not read_at)
        self.order.add_to(decoded, self.engine_id)
        decoded.rank_memory = self.ranks.take(self.engine_id, final=not read_at)
        return decoded

    def _end_requests(self) -> None:
        sends_cache = {"name": "fastdeploy", "role": "prefill"}.items() <= (self.row or {}).items()
        for ts, number, code, output_tokens, last_step in self.ended:
            # The prefill role ends a request only after the request's cache was sent.
            step = max(self.last_ran.pop(number, max(self.step, 0)), last_step if sends_cache else 0)
            self.stalls.spans.pop(number, None)
            self.requests.end(number)
            self.ledger.finish(number, step, ts, wire.FINISHED[code], output_tokens)
        self.ended = []

    def discard(self) -> None:
        """As `Engine.discard`."""
        self.steps.forwards, self._decoded = None, Decoded()

    def state(self) -> dict[str, Any]:
        """As `Engine.state`."""
        return {
            "kind": "many processes",
            "engine_id": self.engine_id,
            "max_steps": self.max_steps,
            "last_ran": list(self.last_ran.items()),
            **{name: getattr(self, name) for name in PLAIN_VALUES},
            **{name: getattr(self, name).state() for name in STATEFUL},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], salt: bytes = b"") -> ManyProcessEngine:
        """The engine that saved `state`."""
        self = cls(state["engine_id"], state["max_steps"], salt)
        self.last_ran = dict(state["last_ran"])
        for name in PLAIN_VALUES:
            setattr(self, name, state[name])
        for name in STATEFUL:
            getattr(self, name).restore(state[name])
        return self
