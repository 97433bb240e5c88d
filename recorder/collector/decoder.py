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
from fdtrace.recorder.collector.columns import Batch, Columns, Forwards
from fdtrace.recorder.collector.ledger import Ledger, Request
from fdtrace.recorder.collector.reader import Chunk
from fdtrace.recorder.collector.salt import salted
from fdtrace.recorder.recording import MISSING

NO_SCHEDULE = (MISSING,) * 14
"""What is known of a scheduling call that was not seen: nothing."""

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


class Decoder:
    """Decodes one ring. `engine_id` is its number in the trace."""

    def __init__(self, engine_id: int, max_steps: int | None = None, salt: bytes = b"") -> None:
        self.engine_id, self.max_steps, self.salt = engine_id, max_steps, salt
        self.engine: dict[str, Any] | None = None
        self.ledger = Ledger(engine_id)
        self.schedules: dict[int, tuple[int, ...]] = {}
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
        length = wire.HEAD.unpack_from(data, at)[3]
        begin = at + wire.HEAD.size
        self.engine = json.loads(data[begin : begin + length])

    def _request(self, data: bytes, at: int) -> None:
        _, _, length, number, ts, step, prompt, max_tokens = wire.REQUEST_HEAD.unpack_from(data, at)
        begin = at + wire.REQUEST_HEAD.size
        text = data[begin : begin + length].decode()
        self.ledger.arrived(number, Request(text, ts, step, prompt, max_tokens))

    def _hashes(self, data: bytes, at: int) -> None:
        _, _, _, local, count, _ = wire.HASHES_HEAD.unpack_from(data, at)
        request = self.ledger.live.get(self._trace_number(local))
        if request is not None:
            begin = at + wire.HASHES_HEAD.size
            request.block_hashes = salted(data[begin : begin + 8 * count], self.salt)

    def _trace_number(self, local: int) -> int:
        """The trace's number of a request that this ring numbers `local`."""
        return local

    def _batch(self, data: bytes, at: int) -> None:
        _, flags, gone, joined, step = wire.BATCH_HEAD.unpack_from(data, at)
        if flags & wire.KEYFRAME:
            self._keyframe(step)
        begin = at + wire.BATCH_HEAD.size
        for row in struct.unpack_from(f"<{gone}H", data, begin):
            self._hold(row, -1, 0, 0)
        begin += 2 * gone
        for _ in range(joined):
            row, length, number, prompt, max_tokens, computed, blocks, cached, made, arrived = (
                wire.JOINED.unpack_from(data, begin)
            )
            begin += wire.JOINED.size
            text = data[begin : begin + length].decode()
            request = Request(text, MISSING, arrived, prompt, max_tokens, cached, made)
            begin += length
            self._join(row, number, request, computed, blocks)

    def _join(self, row: int, number: int, request: Request, computed: int, blocks: int) -> None:
        """A request holds a row; `number` is the one in the ring."""
        self.ledger.joined(number, request, self.next_step)
        self._hold(row, number, computed, blocks)

    def _keyframe(self, step: int) -> None:
        if self.lost_from is not None:
            last = step - 1 if step >= 0 else MISSING
            detail = {"frames": self.lost_frames, "first_step": self.lost_from + 1, "last_step": last}
            self.ledger.event(
                "lost", self.lost_from + 1, reason="overwritten before it was read", detail=detail
            )
            self.lost_from, self.lost_frames, self.step = None, 0, last
            self.schedules.clear()
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
        _, extended, _, count = wire.BLOCKS_HEAD.unpack_from(data, at)
        pairs = struct.unpack_from(f"<{2 * count}I", data, at + wire.BLOCKS_HEAD.size)
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
        if extended:
            self.ledger.extended(self.next_step, [self.held.get(row, -1) for row in rows], blocks)

    def _schedule(self, data: bytes, at: int) -> None:
        _, reason, flags, duration, call, ts, *figures = wire.SCHEDULE_BODY.unpack_from(data, at)
        self.schedules[call] = (ts, duration, reason, *figures, flags)
        if len(self.schedules) > KEPT_CALLS:
            del self.schedules[next(iter(self.schedules))]

    def _forward(self, data: bytes, at: int) -> None:
        head = wire.FORWARD_HEAD.unpack_from(data, at)
        self._take_forward(head, data, at, self.schedules.get(head[6], NO_SCHEDULE))

    def _take_forward(self, head: tuple[int, ...], data: bytes, at: int, figures: tuple[int, ...]) -> None:
        _, codes, rows, prefills, stalled, step, *_ = head
        shape = (rows, codes)
        if self.forwards is None or self.forwards.shape != shape:
            self._flush_forwards()
            self.batch.grow(rows)
            self.forwards = Forwards(shape, self.batch)
        if self.ledger.undated:
            self.ledger.date(step)
        forwards = self.forwards
        begin = at + wire.FORWARD_HEAD.size
        middle, end = begin + 2 * prefills, begin + 2 * (prefills + stalled)
        forwards.prefill_rows.append(data[begin:middle])
        if stalled or self.stalled:
            self._stall(struct.unpack_from(f"<{stalled}H", data, middle), step)
        begin += wire.padded(end - begin)
        size = rows * wire.ITEM_SIZES[codes & 3]
        forwards.tokens.append(data[begin : begin + size])
        begin += wire.padded(size)
        forwards.emitted.append(data[begin : begin + rows * wire.ITEM_SIZES[codes >> 4 & 3]])
        forwards.heads.append(head)
        forwards.schedules.append(figures)
        self.step = step
        self.num_steps += 1
        self._taken_in += 1

    def _stall(self, rows: tuple[int, ...], step: int) -> None:
        for row in rows:
            if row not in self.stalled:
                self.ledger.event("stalled", step, self.held.get(row, -1))
        self.stalled = set(rows)

    def _plain_event(self, data: bytes, at: int) -> None:
        _, kind, why, more, number, _, step, ts = wire.EVENT_HEAD.unpack_from(data, at)
        begin = at + wire.EVENT_HEAD.size
        reason = data[begin : begin + why].decode()
        detail = data[begin + why : begin + why + more].decode() or None
        name = wire.EVENTS[kind]
        if name == "preempted":
            self.ledger.preempted(number)
        self.ledger.event(name, step, number, ts, reason, detail)

    def _finish(self, data: bytes, at: int) -> None:
        _, code, _, number, step, ts, made, _ = wire.FINISH_BODY.unpack_from(data, at)
        if not self.full or step <= self.step:
            self.ledger.finish(number, step, ts, wire.FINISHED[code], made)

    def _flush_forwards(self) -> None:
        forwards, self.forwards = self.forwards, None
        if forwards is None or not len(forwards):
            return
        totals, rows, numbers, made = forwards.decode()
        for number, tokens in zip(numbers.tolist(), made.tolist(), strict=True):
            self.ledger.made(number, tokens)
        heads = np.array(forwards.heads, np.int64)
        columns = self._step_columns(heads, np.array(forwards.schedules, np.int64), totals)
        rows["engine_id"] = np.full(len(rows["forward"]), self.engine_id, np.int32)
        rows["step"] = heads[:, 5][rows.pop("forward")]
        self._flushed(forwards, columns, rows)

    def _flushed(self, forwards: Forwards, columns: Columns, rows: Columns) -> None:
        """The columns of `step` and `step_request` that `forwards` became."""
        self.out.steps.append(columns)
        self.out.step_requests.append(rows)

    def _step_columns(self, heads: Any, schedules: Any, totals: Columns) -> Columns:
        names = (
            "schedule_us", "reason", "token_budget", "num_scheduled_tokens", "num_running", "num_running_decodes",
            "num_waiting", "num_preempted", "num_free_blocks", "num_blocks", "num_missing_blocks",
        )  # fmt: skip
        columns = {name: schedules[:, i + 1] for i, name in enumerate(names)}
        reserved, ratio = schedules[:, 12], (schedules[:, 13] & wire.RATIO) != 0
        known = (reserved >= 0) & (schedules[:, 13] >= 0)
        columns["reserved_output_blocks"] = np.where(known & ~ratio, reserved, MISSING)
        columns["new_token_ratio"] = np.where(known & ratio, reserved / 1e6, MISSING)
        memory = ("allocated_bytes", "reserved_bytes", "peak_allocated_bytes", "peak_reserved_bytes")
        columns |= {name: heads[:, 10 + i] for i, name in enumerate(memory)}
        return (
            columns
            | totals
            | {
                "engine_id": np.full(len(heads), self.engine_id, np.int64),
                "step": heads[:, 5],
                "ts": heads[:, 7],
                "forward_us": heads[:, 8],
                "num_predicted_tokens": heads[:, 9],
                "num_stalled": heads[:, 4],
                "num_decode_tokens": totals["num_tokens"] - totals["num_prefill_tokens"],
            }
        )

    def take(self) -> Decoded:
        """The rows decoded since the last call."""
        self._flush_forwards()
        self._taken_in = 0
        out, self.out = self.out, Decoded()
        out.requests, out.events = self.ledger.take()
        return out

    def state(self) -> dict[str, Any]:
        """All that decoding on needs, as JSON; call it after `take`."""
        return {
            "engine_id": self.engine_id, "max_steps": self.max_steps, "engine": self.engine, "step": self.step,
            "num_steps": self.num_steps, "waits_for_keyframe": self.waits_for_keyframe, "lost_from": self.lost_from,
            "lost_frames": self.lost_frames, "stalled": sorted(self.stalled), "ledger": self.ledger.state(),
            "schedules": {str(call): list(figures) for call, figures in self.schedules.items()},
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
        self.schedules = {int(call): tuple(figures) for call, figures in state["schedules"].items()}
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
