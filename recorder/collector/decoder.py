"""Frames of one process in, rows of the trace out.

The decoder's state is committed with its rows, so that a killed collector's successor decodes on.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.call_rows import CallRows
from fdtrace.recorder.collector.columns import Batch, Columns, Forwards, columns_by_name, reservations
from fdtrace.recorder.collector.frames import UNSEEN, Forward, SchedulingCall, read_event, request_of, text_at
from fdtrace.recorder.collector.ledger import Ledger, Request
from fdtrace.recorder.collector.reader import Chunk
from fdtrace.recorder.collector.salt import salted
from fdtrace.recorder.recording import MISSING

KEPT_CALLS = 64
"""Scheduling calls remembered: a forward belongs to one of the latest."""

MOST_ROWS = 1 << 16
"""Rows of a batch that frames can name."""


@dataclass
class Decoded:
    """Rows ready for the trace: columns of steps, and rows of the smaller tables as tuples in the schema's order."""

    steps: list[Columns] = field(default_factory=list)
    step_requests: list[Columns] = field(default_factory=list)
    requests: list[tuple[Any, ...]] = field(default_factory=list)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    rank_memory: list[tuple[int, ...]] = field(default_factory=list)
    call_requests: list[Columns] = field(default_factory=list)
    calls: list[Columns] = field(default_factory=list)


class Decoder:
    """Decodes one ring. `engine_id` is its number in the trace."""

    def __init__(self, engine_id: int, max_steps: int | None = None, salt: bytes = b"") -> None:
        self.engine_id, self.max_steps, self.salt = engine_id, max_steps, salt
        self.engine: dict[str, Any] | None = None
        self.ledger = Ledger(engine_id)
        self.call_rows = CallRows(engine_id)
        self.calls_seen: dict[int, SchedulingCall] = {}
        self.batch = Batch.empty()
        self.held: dict[int, int] = {}
        """The request of each row as of the last frame; `batch` is as of the last flush."""
        self.stalled: set[int] = set()
        self.step = MISSING
        self.num_steps = 0
        self._taken_in = 0
        self.waits_for_keyframe = True
        self.lost_from: int | None = None
        self.lost_frames = 0
        self.forwards: Forwards | None = None
        self.out = Decoded()
        self.past = False

    @property
    def full(self) -> bool:
        """Whether `max_steps` are decoded: of what follows only their ends are part of the recording."""
        return self.max_steps is not None and self.num_steps >= self.max_steps

    @property
    def unflushed(self) -> int:
        """Forwards decoded since the last `take`."""
        return self._taken_in

    @property
    def next_step(self) -> int:
        """The step that what comes now belongs to; MISSING before the first is known."""
        return self.step + 1 if self.step >= 0 else MISSING

    def feed(self, chunk: Chunk) -> None:
        """Decode consecutive frames. `past` becomes true where one belongs to a step after `max_steps`."""
        if chunk.lost:
            self._lose(chunk.lost, chunk.first_forward)
        data = chunk.data
        handlers = HANDLERS
        for at in chunk.payloads:
            kind = data[at]
            if self.full:
                self.past = self.past or kind in (wire.SCHEDULE, wire.FORWARD)
                if self.past:
                    break
                if kind != wire.FINISH:
                    continue
            if self.waits_for_keyframe and not self._may_start(data, at, kind):
                continue
            handlers[kind](self, data, at)

    def _lose(self, frames: int, first_forward: tuple[int, int] | None) -> None:
        """Frames were overwritten; `first_forward` is the step and ts of the ring's first."""
        self._flush_forwards()
        self.call_rows.lose(tasks_told=False)
        self.waits_for_keyframe = True
        self.lost_frames += frames
        if self.lost_from is None:
            first = first_forward[0] if first_forward else 0
            self.lost_from = self.step if self.step >= 0 else first - 1

    def _may_start(self, data: bytes, at: int, kind: int) -> bool:
        if kind == wire.BATCH and data[at + 1] & wire.KEYFRAME:
            self.waits_for_keyframe = False
        elif kind not in (wire.ENGINE, wire.REQUEST, wire.HASHES, wire.FINISH):
            if self.lost_from is not None:
                self.lost_frames += 1
            return False
        return True

    def _engine(self, data: bytes, at: int) -> None:
        begin = at + wire.ENGINE_HEAD.size
        self.engine = json.loads(data[begin : begin + wire.ENGINE_HEAD.read(data, at).length])

    def _request(self, data: bytes, at: int) -> None:
        head = wire.REQUEST_HEAD.read(data, at)
        request = request_of(head, text_at(data, at + wire.REQUEST_HEAD.size, head.id_length))
        self.ledger.arrived(head.request, request)

    def _hashes(self, data: bytes, at: int) -> None:
        head = wire.HASHES_HEAD.read(data, at)
        request = self.ledger.live.get(self._trace_number(head.request))
        if request is not None:
            begin = at + wire.HASHES_HEAD.size
            request.block_hashes = salted(data[begin : begin + 8 * head.num_hashes], self.salt)

    def _trace_number(self, local: int) -> int:
        """The trace's number of a request that this ring numbers `local`."""
        return local

    def _batch(self, data: bytes, at: int) -> None:
        batch = wire.BATCH_HEAD.read(data, at)
        if batch.flags & wire.KEYFRAME:
            self._keyframe(batch.step)
        begin = at + wire.BATCH_HEAD.size
        for row in struct.unpack_from(f"<{batch.num_vacated}H", data, begin):
            self._hold(row, -1, 0, 0)
        begin += 2 * batch.num_vacated
        for _ in range(batch.num_joined):
            joined = wire.JOINED_HEAD.read(data, begin)
            begin += wire.JOINED_HEAD.size
            self._join(joined, request_of(joined, text_at(data, begin, joined.id_length)))
            begin += joined.id_length

    def _join(self, joined: wire.JoinedHead, request: Request) -> None:
        """A request holds a row."""
        self.ledger.joined(joined.request, request, self.next_step)
        self._hold(joined.row, joined.request, joined.num_computed_tokens, joined.num_blocks)

    def _keyframe(self, step: int) -> None:
        if self.lost_from is not None:
            last = step - 1 if step >= 0 else MISSING
            detail = {"frames": self.lost_frames, "first_step": self.lost_from + 1, "last_step": last}
            self.ledger.event(
                "lost", self.lost_from + 1, reason="overwritten before it was read", detail=detail
            )
            self.lost_from, self.lost_frames, self.step = None, 0, last
            self.calls_seen.clear()
        for row in [row for row, number in self.held.items() if number >= 0]:
            self._hold(row, -1, 0, 0)

    def _hold(self, row: int, number: int, computed: int, blocks: int) -> None:
        self.held[row] = number
        self.batch.grow(row + 1)
        forwards = self.forwards
        if forwards is None or not len(forwards):
            self.batch.request[row], self.batch.computed[row], self.batch.blocks[row] = (
                number,
                computed,
                blocks,
            )
        else:
            step = len(forwards)
            forwards.requests.add(step, row, number)
            forwards.computed.add(step, row, computed)
            forwards.blocks.add(step, row, blocks)

    def _blocks(self, data: bytes, at: int) -> None:
        head = wire.BLOCKS_HEAD.read(data, at)
        pairs = struct.unpack_from(f"<{2 * head.num_pairs}I", data, at + wire.BLOCKS_HEAD.size)
        rows, blocks = pairs[::2], pairs[1::2]
        if not rows:
            return
        if max(rows) >= MOST_ROWS:
            raise ValueError(f"row {max(rows)} of a batch")
        self.batch.grow(max(rows) + 1)
        forwards = self.forwards
        if forwards is None or not len(forwards):
            self.batch.blocks[list(rows)] = blocks
        else:
            forwards.blocks.extend(len(forwards), rows, blocks)
        if head.extended:
            self.ledger.extended(self.next_step, [self.held.get(row, -1) for row in rows], blocks)

    def _schedule(self, data: bytes, at: int) -> None:
        call = SchedulingCall.read(data, at)
        self.calls_seen[call.head.call] = call
        self.call_rows.add(call)
        if len(self.calls_seen) > KEPT_CALLS:
            del self.calls_seen[next(iter(self.calls_seen))]

    def _forward(self, data: bytes, at: int) -> None:
        head, memory, _ = Forward.read(data, at)
        self.call_rows.entered(head.call, head.step, named=True)
        self._take_forward(Forward(head, memory, self.calls_seen.get(head.call, UNSEEN)), data, at)

    def _take_forward(self, forward: Forward, data: bytes, at: int) -> None:
        head = forward.head
        step, stalled = head.step, head.num_stalled
        shape = (head.num_rows, head.codes)
        if self.forwards is None or self.forwards.shape != shape:
            self._flush_forwards()
            self.batch.grow(head.num_rows)
            self.forwards = Forwards(shape, self.batch)
        if self.ledger.undated:
            self.ledger.date(step)
        forwards = self.forwards
        begin = at + wire.FORWARD_FRAME.size
        middle = begin + 2 * head.num_prefills
        end = middle + 2 * stalled
        forwards.prefill_rows.append(data[begin:middle])
        if stalled or self.stalled:
            self._stall(struct.unpack_from(f"<{stalled}H", data, middle), step)
        begin += wire.padded(end - begin)
        size = head.num_rows * wire.ITEM_SIZES[head.codes & 3]
        forwards.tokens.append(data[begin : begin + size])
        begin += wire.padded(size)
        forwards.emitted.append(data[begin : begin + head.num_rows * wire.ITEM_SIZES[head.codes >> 4 & 3]])
        forwards.forwards.append(forward)
        self.step = step
        self.num_steps += 1
        self._taken_in += 1

    def _stall(self, rows: tuple[int, ...], step: int) -> None:
        for row in rows:
            if row not in self.stalled:
                self.ledger.event("stalled", step, self.held.get(row, -1))
        self.stalled = set(rows)

    def _plain_event(self, data: bytes, at: int) -> None:
        head, name, reason, detail = read_event(data, at)
        if name == "preempted":
            self.ledger.preempted(head.request)
        self.ledger.event(name, head.step, head.request, head.ts, reason, detail)

    def _finish(self, data: bytes, at: int) -> None:
        head = wire.FINISH_HEAD.read(data, at)
        if not self.full or head.step <= self.step:
            reason = wire.FINISHED[head.reason]
            self.ledger.finish(head.request, head.step, head.ts, reason, head.num_output_tokens)

    def _flush_forwards(self) -> None:
        forwards, self.forwards = self.forwards, None
        if forwards is None or not len(forwards):
            return
        totals, rows, numbers, made = forwards.decode()
        for number, tokens in zip(numbers.tolist(), made.tolist(), strict=True):
            self.ledger.made(number, tokens)
        columns = self._step_columns(forwards.forwards, totals)
        rows["engine_id"] = np.full(len(rows["forward"]), self.engine_id, np.int32)
        rows["step"] = columns["step"][rows.pop("forward")]
        self._flushed(forwards, columns, rows)

    def _flushed(self, forwards: Forwards, columns: Columns, rows: Columns) -> None:
        """The columns of `step` and `step_request` that `forwards` became."""
        self.out.steps.append(columns)
        self.out.step_requests.append(rows)

    def _step_columns(self, forwards: list[Forward], totals: Columns) -> Columns:
        heads = columns_by_name(wire.ForwardHead._fields, [forward.head for forward in forwards])
        calls = columns_by_name(wire.ScheduleHead._fields, [forward.call.head for forward in forwards])
        figures = columns_by_name(wire.CallFigures._fields, [forward.call.figures for forward in forwards])
        memory = columns_by_name(wire.AllocatorFigures._fields, [forward.memory for forward in forwards])
        own = ("step", "ts", "forward_us", "num_predicted_tokens", "num_stalled")
        return {
            **figures,
            **reservations(calls, figures),
            **memory,
            **totals,
            **{name: heads[name] for name in own},
            "schedule_us": calls["schedule_us"],
            "reason": calls["reason"],
            "engine_id": np.full(len(forwards), self.engine_id, np.int64),
            "num_decode_tokens": totals["num_tokens"] - totals["num_prefill_tokens"],
        }

    def take(self, read_at: int = 0) -> Decoded:
        """The rows decoded since the last call, all rings having been read since `read_at` (UTC ns; 0: to the end)."""
        self._flush_forwards()
        self._taken_in = 0
        out, self.out = self.out, Decoded()
        out.requests, out.events = self.ledger.take()
        out.calls = self.call_rows.take(final=not read_at)
        return out

    def state(self) -> dict[str, Any]:
        """All that decoding on needs, as JSON; call it after `take`."""
        return {
            "engine_id": self.engine_id, "max_steps": self.max_steps, "engine": self.engine, "step": self.step,
            "num_steps": self.num_steps, "waits_for_keyframe": self.waits_for_keyframe, "lost_from": self.lost_from,
            "lost_frames": self.lost_frames, "stalled": sorted(self.stalled), "ledger": self.ledger.state(),
            "calls_seen": [[call.head, call.figures] for call in self.calls_seen.values()],
            "call_rows": self.call_rows.state(),
            "batch": [self.batch.request.tolist(), self.batch.computed.tolist(), self.batch.blocks.tolist()],
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any], salt: bytes = b"") -> Decoder:
        """The decoder that left `state`."""
        self = cls(state["engine_id"], state["max_steps"], salt)
        for name in ("engine", "step", "num_steps", "waits_for_keyframe", "lost_from", "lost_frames"):
            setattr(self, name, state[name])
        self.stalled = set(state["stalled"])
        self.ledger.restore(state["ledger"])
        self.call_rows.restore(state["call_rows"])
        calls = [SchedulingCall.restored(*saved) for saved in state["calls_seen"]]
        self.calls_seen = {call.head.call: call for call in calls}
        self.batch = Batch(*(np.array(column, np.int64) for column in state["batch"]))
        self.held = dict(enumerate(self.batch.request.tolist()))
        return self


HANDLERS: dict[int, Any] = {
    wire.ENGINE: Decoder._engine,
    wire.REQUEST: Decoder._request,
    wire.BATCH: Decoder._batch,
    wire.BLOCKS: Decoder._blocks,
    wire.SCHEDULE: Decoder._schedule,
    wire.FORWARD: Decoder._forward,
    wire.EVENT: Decoder._plain_event,
    wire.FINISH: Decoder._finish,
    wire.HASHES: Decoder._hashes,
}
