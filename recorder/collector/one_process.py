"""An engine of one process. Its ring holds calls and forwards in the order in which they happened."""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.call_rows import CallRows
from fdtrace.recorder.collector.columns import Forwards
from fdtrace.recorder.collector.engine import Decoded, Engine
from fdtrace.recorder.collector.engine_ring import EngineRing
from fdtrace.recorder.collector.frames import (
    UNSEEN,
    BatchFrame,
    BlocksFrame,
    CallFrame,
    EngineFrame,
    EventFrame,
    FinishFrame,
    ForwardFrame,
    Frame,
    HashesFrame,
    RequestFrame,
    frames_of,
)
from fdtrace.recorder.collector.ledger import Ledger
from fdtrace.recorder.collector.prompt_hash_salt import salted
from fdtrace.recorder.collector.reader import FrameBlock
from fdtrace.recorder.collector.step_checkpoints import StepCheckpoints
from fdtrace.recorder.collector.steps import Steps
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays

KEPT_CALLS = 64
"""How many scheduling calls are remembered: a forward belongs to one of the latest."""


class OneProcessEngine(Engine):
    """`collector.engine.Engine` for one ring. The ring's numbers of requests and steps are also those of the trace."""

    def __init__(self, engine_id: int, max_steps: int | None = None, salt: bytes = b"") -> None:
        self.engine_id, self.max_steps, self.salt = engine_id, max_steps, salt
        self.row: dict[str, Any] | None = None
        self.ledger = Ledger(engine_id)
        self.call_rows = CallRows(engine_id)
        self.steps = Steps(engine_id, self.ledger, self._flushed)
        self.recent_calls: dict[int, CallFrame] = {}
        self.stalled: set[int] = set()
        self.step = MISSING
        self.num_steps = 0
        self.waits_for_keyframe = True
        self.agent_says_what_it_found = False
        self.checkpoints = StepCheckpoints()
        self.next_request = 0
        """Larger than each number of a request so far."""
        self.lost_from: int | None = None
        self.lost_frames = 0
        self._decoded = Decoded()

    @property
    def _next_step(self) -> int:
        """The step to which frames that come now belong; MISSING before the first step is known."""
        return self.step + 1 if self.step >= 0 else MISSING

    def feed(self, part: EngineRing, chunk: FrameBlock) -> None:
        """As `Engine.feed`."""
        if chunk.lost:
            self._lose(chunk.lost, chunk.first_forward)
        for frame in frames_of(chunk):
            if self.full:
                part.past = part.past or isinstance(frame, (CallFrame, ForwardFrame))
                if part.past:
                    break
                if not isinstance(frame, FinishFrame):
                    continue
            if not self.waits_for_keyframe or self._may_start(frame):
                self._take_in(frame)

    def _lose(self, frames: int, first_forward: tuple[int, int] | None) -> None:
        """Frames were overwritten. `first_forward`: step and ts of the first forward ever written to the ring."""
        self.steps.flush()
        self.checkpoints.lose()
        self.call_rows.lose(tasks_are_reported=False)
        self.waits_for_keyframe = True
        self.lost_frames += frames
        if self.lost_from is None:
            first = first_forward[0] if first_forward else 0
            self.lost_from = self.step if self.step >= 0 else first - 1

    def _may_start(self, frame: Frame) -> bool:
        """Whether a frame can be decoded before the first keyframe. After a keyframe, all frames can."""
        match frame:
            case BatchFrame(is_keyframe=True):
                self.waits_for_keyframe = False
                return True
            case EngineFrame() | RequestFrame() | HashesFrame() | FinishFrame():
                return True
        if self.lost_from is not None:
            self.lost_frames += 1
        return False

    def _take_in(self, frame: Frame) -> None:
        match frame:
            case ForwardFrame():
                self._forward(frame)
            case CallFrame():
                self._call(frame)
            case BlocksFrame():
                self.steps.set_blocks(frame, self._next_step)
            case BatchFrame():
                self._batch(frame)
            case RequestFrame():
                self.next_request = max(self.next_request, frame.head.request + 1)
                self.ledger.arrived(frame.head.request, frame.request)
            case FinishFrame(head):
                if not self.full or head.step <= self.step:
                    self.ledger.finish(head.request, head.step, head.ts, frame.reason, head.num_output_tokens)
            case EventFrame():
                self._event(frame)
            case HashesFrame():
                self._hashes(frame)
            case EngineFrame():
                self.row = frame.row

    def _hashes(self, frame: HashesFrame) -> None:
        hashes = salted(frame.hashes, self.salt)
        request = self.ledger.live.get(frame.request)
        if request is not None:
            request.block_hashes = hashes
        elif frame.request == wire.NO_REQUEST:
            self.ledger.event("found", self._next_step, detail={"cached_blocks": hashes})
        elif frame.request == wire.AT_CHECKPOINT:
            self.checkpoints.take_in_hashes(hashes, self.next_request)

    def _batch(self, frame: BatchFrame) -> None:
        if frame.is_keyframe:
            self._keyframe(frame.step)
        for row in frame.vacated:
            self.steps.hold(row, MISSING, 0, 0)
        if frame.is_keyframe or any(self.ledger.is_out(joined.head.request) for joined in frame.joined):
            self.steps.flush()  # first count the output of earlier forwards: the joined rows below overwrite it
        for joined in frame.joined:
            head = joined.head
            self.ledger.joined(head.request, joined.request, self._next_step)
            self.steps.hold(head.row, head.request, head.num_computed_tokens, head.num_blocks)

    def _keyframe(self, step: int) -> None:
        """A keyframe: all held rows follow, and `step` is the next step. A loss of frames ends here."""
        if self.lost_from is not None:
            last = step - 1 if step >= 0 else MISSING
            detail = {"frames": self.lost_frames, "first_step": self.lost_from + 1, "last_step": last}
            self.ledger.event(
                "lost", self.lost_from + 1, reason="overwritten before it was read", detail=detail
            )
            self.lost_from, self.lost_frames, self.step = None, 0, last
            self.recent_calls.clear()
        for row in [row for row, number in self.steps.held.items() if number >= 0]:
            self.steps.hold(row, MISSING, 0, 0)

    def _call(self, call: CallFrame) -> None:
        self.recent_calls[call.head.call] = call
        self.call_rows.add(call)
        if len(self.recent_calls) > KEPT_CALLS:
            del self.recent_calls[next(iter(self.recent_calls))]

    def _forward(self, forward: ForwardFrame) -> None:
        head = forward.head
        self.call_rows.entered(head.call, head.step, named=True)
        if not self.num_steps and not self.agent_says_what_it_found:
            self.steps.note_waiting_rows(forward, head.step)
        self.steps.add(forward, head.step, self.recent_calls.get(head.call, UNSEEN))
        if forward.stalled or self.stalled:
            self._note_stalls(forward.stalled, head.step)
        self.step = head.step
        self.num_steps += 1

    def _note_stalls(self, rows: tuple[int, ...], step: int) -> None:
        """Add an event for each row that is stalled now and was not stalled in the forward before."""
        for row in rows:
            if row not in self.stalled:
                self.ledger.event("stalled", step, self.steps.held.get(row, MISSING))
        self.stalled = set(rows)

    def _event(self, frame: EventFrame) -> None:
        head = frame.head
        self.agent_says_what_it_found |= frame.kind in ("found", "checkpoint")
        if frame.kind == "checkpoint":
            self.checkpoints.take_in(frame, self.next_request)
            return
        if frame.kind == "preempted":
            self.ledger.preempted(head.request)
        self.ledger.event(frame.kind, head.step, head.request, head.ts, frame.reason, frame.detail)

    def _flushed(self, _forwards: Forwards, columns: ColumnArrays, rows: ColumnArrays) -> None:
        self._decoded.steps.append(columns)
        self._decoded.step_requests.append(rows)

    def take(self, read_at: int) -> Decoded:
        """As `Engine.take`."""
        self.steps.flush()
        self.steps.num_waiting = 0
        decoded, self._decoded = self._decoded, Decoded()
        decoded.requests, decoded.events = self.ledger.take()
        decoded.checkpoints = self.checkpoints.take()
        decoded.events += [row for one in decoded.checkpoints for row in one.events(self.engine_id)]
        decoded.calls = self.call_rows.take(final=not read_at)
        return decoded

    def discard(self) -> None:
        """As `Engine.discard`."""
        self.steps.forwards, self._decoded = None, Decoded()

    def state(self) -> dict[str, Any]:
        """As `Engine.state`."""
        return {
            "kind": "one process", "engine_id": self.engine_id, "max_steps": self.max_steps, "row": self.row,
            "step": self.step, "num_steps": self.num_steps, "waits_for_keyframe": self.waits_for_keyframe,
            "agent_says_what_it_found": self.agent_says_what_it_found,
            "next_request": self.next_request, "checkpoints": self.checkpoints.state(),
            "lost_from": self.lost_from, "lost_frames": self.lost_frames, "stalled": sorted(self.stalled),
            "ledger": self.ledger.state(), "call_rows": self.call_rows.state(), "steps": self.steps.state(),
            "recent_calls": list(self.recent_calls.values()),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any], salt: bytes = b"") -> OneProcessEngine:
        """The engine that saved `state`."""
        self = cls(state["engine_id"], state["max_steps"], salt)
        for name in (
            *("row", "step", "num_steps", "waits_for_keyframe", "agent_says_what_it_found"),
            *("next_request", "lost_from", "lost_frames"),
        ):
            setattr(self, name, state[name])
        self.checkpoints.restore(state["checkpoints"])
        self.stalled = set(state["stalled"])
        self.ledger.restore(state["ledger"])
        self.call_rows.restore(state["call_rows"])
        self.steps.restore(state["steps"])
        calls = [CallFrame.restored(*saved) for saved in state["recent_calls"]]
        self.recent_calls = {call.head.call: call for call in calls}
        return self
