"""Several rings in, one engine out: the processes that schedule and those that run the forwards, joined.

The forwards are the steps. Each belongs to a scheduling call: the last one whose tasks had reached the worker (a CALL
frame names it: its number rode on the tasks), or a later one that handed out nothing and had ended when the forward
began. The caller feeds what the scheduling process wrote before what the workers wrote and read earlier, so a call is
always known before its forwards; no clock decides what belongs together but for those empty calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector import stalls
from fdtrace.recorder.collector.calls import Calls
from fdtrace.recorder.collector.columns import Columns, Forwards
from fdtrace.recorder.collector.decoder import HANDLERS, Decoded, Decoder
from fdtrace.recorder.collector.frames import Forward, SchedulingCall, read_event, request_of, text_at
from fdtrace.recorder.collector.ledger import Request
from fdtrace.recorder.collector.order import OrderDecoder
from fdtrace.recorder.collector.part import Part
from fdtrace.recorder.collector.ranks import Ranks
from fdtrace.recorder.collector.reader import Chunk
from fdtrace.recorder.recording import MISSING

QUIET_NS = 500_000_000
"""A request that finished so long ago ran its last forward before the rings were read."""


class Joined(Decoder):
    """Decodes the rings of one engine. `feed_part` says whose frames come."""

    def __init__(self, engine_id: int, max_steps: int | None = None, salt: bytes = b"") -> None:
        super().__init__(engine_id, max_steps, salt)
        self.part = Part("engine")
        self.next_number = 0
        self.ids: dict[str, int] = {}
        self.calls = Calls()
        self.ranks = Ranks()
        self.begins = 0
        self.discarding = False
        self.order = OrderDecoder()
        self.finishes: list[list[int]] = []
        self.ended: list[list[int]] = []
        self.finishing: set[int] = set()
        self.advice: dict[int, tuple[int, int, int]] = {}
        self.row_of: dict[int, int] = {}
        self.spans: dict[int, tuple[int, int]] = {}
        self.last_ran: dict[int, int] = {}
        self.reported: list[tuple[int, int]] = []

    @property
    def next_step(self) -> int:
        return self.step + 1

    def feed_part(self, part: Part, chunk: Chunk) -> None:
        """Decode consecutive frames of one ring. `part.past` becomes true where one is beyond `max_steps`."""
        self.part = part
        if chunk.lost:
            self._lose(chunk.lost, chunk.first_forward)
        data, handlers = chunk.data, _HANDLERS
        for at in chunk.payloads:
            kind = data[at]
            if self.full:
                if kind == wire.FORWARD and self.begins <= wire.FORWARD_HEAD.read(data, at).ts:
                    part.past = True
                    break
                if kind not in (wire.FINISH, wire.MEMORY, wire.TASKS):
                    continue
            if part.waits_for_keyframe and not self._may_start(data, at, kind):
                continue
            handlers[kind](self, data, at)

    def _lose(self, frames: int, first_forward: tuple[int, int] | None) -> None:
        part = self.part
        if part.base is None and first_forward is not None and first_forward[1] >= self.begins:
            part.base = self.next_step - first_forward[0]
        part.waits_for_keyframe = True
        part.lost_frames += frames
        if part.kind == "engine":
            self.order.lose()
        if part.lost_from < 0:
            part.lost_from = self.next_step
        if part.runs:
            for row in list(self.row_of.values()):
                self._hold(row, MISSING, 0, 0)
            self.ranks.lose()
            self.call_rows.lose(tasks_told=True)

    def _may_start(self, data: bytes, at: int, kind: int) -> bool:
        if kind == wire.BATCH and data[at + 1] & wire.KEYFRAME:
            return True
        if self.part.kind == "rank" and kind in (wire.MEMORY, wire.TASKS):
            return True  # whole in itself
        if kind not in (wire.ENGINE, wire.REQUEST, wire.HASHES, wire.EVENT, wire.FINISH, wire.QUEUE):
            self.part.lost_frames += self.part.lost_from >= 0
            return False
        return True

    def _engine(self, data: bytes, at: int) -> None:
        if self.part.kind == "engine" or self.engine is None:
            super()._engine(data, at)

    def _keyframe(self, step: int) -> None:
        """The rows that follow are taken from `advice`, at the next forward, where nothing better is known by then."""

    def _batch(self, data: bytes, at: int) -> None:
        part = self.part
        keyframe = data[at + 1] & wire.KEYFRAME
        if keyframe and not part.waits_for_keyframe:
            return  # it says what the frames before it said
        super()._batch(data, at)
        part.waits_for_keyframe = False
        if not part.runs:
            self.part.tell_losses(self.next_step, self.ledger)

    def _request(self, data: bytes, at: int) -> None:
        head = wire.REQUEST_HEAD.read(data, at)
        told = request_of(head, text_at(data, at + wire.REQUEST_HEAD.size, head.id_length))
        told.arrived_step = MISSING  # this ring's own number
        came = told.arrived_at >= 0
        number = self._number_of(head.request, told, came)
        request = self.ledger.live[number]
        if came and request.arrived_at < 0:
            request.arrived_at = told.arrived_at
            request.num_prompt_tokens, request.max_tokens = told.num_prompt_tokens, told.max_tokens
        if came:
            self.order.events.add(self.calls.next_call, "arrived", number, told.arrived_at, "", None)

    def _number_of(self, local: int, request: Request, fresh: bool = False) -> int:
        """The request's number in the trace; a new one for an id that is not live, `fresh`: or has just ended."""
        number = self.ids.get(request.request_id)
        if number is None or (fresh and number in self.finishing):
            number = self.ids[request.request_id] = self.next_number
            self.next_number += 1
            self.ledger.live[number] = request
        if self.part.kind == "engine":
            self.part.numbers[local] = number
        return number

    def _join(self, joined: wire.JoinedHead, request: Request) -> None:
        part, row, blocks, computed = self.part, joined.row, joined.num_blocks, joined.num_computed_tokens
        number = self._number_of(joined.request, request)
        need = request.num_prompt_tokens + request.num_output_tokens
        if part.waits_for_keyframe:  # these are a keyframe's rows
            if part.runs or row not in self.advice:
                self.advice[row] = number, computed, blocks
            need = min(need, computed - 1) if computed > request.num_prompt_tokens else need
        else:
            known = self.ledger.live[number]
            made = max(known.num_output_tokens, request.num_output_tokens)
            self.ledger.joined(number, request, self.next_step)
            known.num_output_tokens = made
            self._hold(row, number, computed, blocks)
        self.spans[number] = need, request.num_prompt_tokens + request.max_tokens

    def _hold(self, row: int, number: int, computed: int, blocks: int) -> None:
        self.row_of.pop(self.held.get(row, MISSING), None)
        super()._hold(row, number, computed, blocks)
        if number >= 0:
            before = self.row_of.get(number)
            if before is not None:
                self._hold(before, MISSING, 0, 0)
            self.row_of[number] = row

    def _take_advice(self) -> None:
        """Hold the rows that a keyframe named and that no worker has told of since."""
        for row, (number, computed, blocks) in self.advice.items():
            if self.held.get(row, MISSING) < 0 and number not in self.row_of and number in self.ledger.live:
                self._hold(row, number, computed, blocks)
        self.advice = {}

    def _trace_number(self, local: int) -> int:
        return self.part.numbers.get(local, MISSING)

    def _schedule(self, data: bytes, at: int) -> None:
        head, figures = SchedulingCall.read(data, at)
        call = SchedulingCall(head, figures._replace(head=self._trace_number(figures.head)))
        self.calls.add(call)
        self.call_rows.add(call)

    def _tasks(self, data: bytes, at: int) -> None:
        call = wire.TASKS_HEAD.read(data, at).call
        if self.part.kind == "rank":
            return
        self.ranks.landed(call)
        self.call_rows.landed(call)
        if self.step >= 0 or not self.begins:
            self._date(call)

    def _memory(self, data: bytes, at: int) -> None:
        head = wire.MEMORY_HEAD.read(data, at)
        memory = wire.ALLOCATOR.read(data, at + wire.MEMORY_HEAD.size)
        if self.full and head.call > self.calls.last:
            self.part.past = True
        elif head.rank:
            self.ranks.add(head, memory)
        else:
            self.ranks.ran_first(head, memory)

    def _forward(self, data: bytes, at: int) -> None:
        forward = Forward.read(data, at)
        head, part, ts = forward.head, self.part, forward.head.ts
        if head.forward_us == wire.UNKNOWN_US:
            forward = self.ranks.measured(forward)
        if ts < self.begins:
            kept = self.step, self.num_steps, self._taken_in
            self.discarding = True
            self._take_forward(forward.at_step(MISSING), data, at)
            self.ranks.ran(MISSING)
            self.step, self.num_steps, self._taken_in = kept
            return
        if self.discarding:
            self._flush_forwards()
            self.discarding = False
        if part.base is None:
            part.base = self.next_step - head.step
        step = part.base + head.step
        call = self.calls.of_forward(head.call, ts, bool(head.codes & wire.LANDED))
        self._date(call.head.call, step)
        self.call_rows.entered(call.head.call, step)
        self._vacate(ts)
        if self.advice:
            self._take_advice()
        part.tell_losses(step, self.ledger)
        self._take_forward(forward.at_step(step)._replace(call=call), data, at)
        self.ranks.ran(step)

    def _plain_event(self, data: bytes, at: int) -> None:
        head, name, reason, detail = read_event(data, at)
        number = self.part.numbers.get(head.request, MISSING)
        if self.part.kind == "engine":
            self.order.events.add(self.calls.next_call, name, number, head.ts, reason, detail)
        else:
            self.ledger.event(name, self.next_step, number, head.ts, reason, detail)

    def _order(self, data: bytes, at: int) -> None:
        self.order.take_in(data, at, self.part.numbers, self.ledger.live)

    def _date(self, call: int, step: int | None = None) -> None:
        """The step of what happened up to a scheduling call is known: that of the call's first forward."""
        self.order.events.date(call, self.next_step if step is None else step, self.ledger)

    def _finish(self, data: bytes, at: int) -> None:
        head = wire.FINISH_HEAD.read(data, at)
        number = self.part.numbers.pop(head.request, None)
        if number is not None and number in self.ledger.live:
            self.finishes.append([head.ts, number, head.reason, head.num_output_tokens])
            self.finishing.add(number)

    def _vacate(self, ts: int) -> None:
        """Free the rows of the requests that had finished at `ts`."""
        while self.finishes and self.finishes[0][0] < ts:
            finish = self.finishes.pop(0)
            row = self.row_of.get(finish[1])
            if row is not None:
                self._hold(row, MISSING, 0, 0)
            self.ended.append([*finish, self.step])

    def _stall(self, rows: tuple[int, ...], step: int) -> None:
        assert self.forwards is not None
        self.reported += [(len(self.forwards), row) for row in rows]

    def _flushed(self, forwards: Forwards, columns: Columns, rows: Columns) -> None:
        if self.discarding:
            self.reported = []
            return
        for number, step in zip(rows["request"].tolist(), rows["step"].tolist(), strict=True):
            self.last_ran[number] = step
        columns["num_stalled"] = self._count_stalls(forwards, columns["step"])
        super()._flushed(forwards, columns, rows)

    def _count_stalls(self, forwards: Forwards, steps: Any) -> Any:
        """Stalled rows of each forward; each that was not stalled in the forward before is an event."""
        stalled = stalls.deduced(forwards, steps, stalls.limits(self.engine or {}), self.spans, self._done)
        for index, row in self.reported:
            stalled.setdefault(index, set()).add(row)
        self.reported = []
        counts = np.zeros(len(steps), np.int64)
        for index, step in enumerate(steps.tolist()):
            rows = stalled.get(index, set())
            counts[index] = len(rows)
            for row in sorted(rows - self.stalled):
                self.ledger.event("stalled", step, int(forwards.requests_held[index, row]))
            self.stalled = rows
        return counts

    def _done(self, number: int, step: int) -> bool:
        """Whether a request that did not run in `step` had run its last step before it."""
        return number in self.finishing and self.last_ran.get(number, MISSING) < step

    def take(self, read_at: int = 0) -> Decoded:
        """The rows decoded since the last call, all rings having been read since `read_at` (UTC ns; 0: to the end)."""
        self._vacate(read_at - QUIET_NS if read_at else 1 << 62)
        if not read_at:
            self._date(1 << 62)
        self._flush_forwards()
        sends = {"name": "fastdeploy", "role": "prefill"}.items() <= (self.engine or {}).items()
        for ts, number, code, made, begun in self.ended:  # that role ends one when its cache has been sent
            step = max(self.last_ran.pop(number, max(self.step, 0)), begun if sends else 0)
            self.spans.pop(number, None)
            request_id = self.ledger.live[number].request_id
            if self.ids.get(request_id) == number:
                del self.ids[request_id]
            self.finishing.discard(number)
            self.ledger.finish(number, step, ts, wire.FINISHED[code], made)
        self.ended = []
        out = super().take(read_at)
        out.call_requests = self.order.take(self.engine_id)
        out.rank_memory = self.ranks.take(self.engine_id, final=not read_at)
        return out

    def state(self) -> dict[str, Any]:
        """All that decoding on needs, as JSON; call it after `take`."""
        own = {
            name: getattr(self, name) for name in ("next_number", "ids", "begins", "discarding", "finishes")
        }
        for name in ("advice", "row_of", "spans", "last_ran"):
            own[name] = {str(key): value for key, value in getattr(self, name).items()}
        return dict(
            super().state(),
            kind="joined",
            joined=dict(own, calls=self.calls.state(), ranks=self.ranks.state(), order=self.order.state()),
        )

    @classmethod
    def from_state(cls, state: dict[str, Any], salt: bytes = b"") -> Joined:
        """The decoder that left `state`."""
        self = super().from_state(state, salt)
        assert isinstance(self, Joined)
        own = dict(state["joined"])
        self.calls.restore(own.pop("calls"))
        self.ranks.restore(own.pop("ranks"))
        self.order.restore(own.pop("order"))
        self.finishing = {finish[1] for finish in own["finishes"]}
        for name, value in own.items():
            keyed = name in ("advice", "row_of", "spans", "last_ran")
            setattr(self, name, {int(key): item for key, item in value.items()} if keyed else value)
        return self


_HANDLERS: dict[int, Any] = {
    **{kind: getattr(Joined, handler.__name__) for kind, handler in HANDLERS.items()},
    wire.TASKS: Joined._tasks,
    wire.MEMORY: Joined._memory,
    **dict.fromkeys((wire.DECIDED, wire.QUEUE), Joined._order),
}
