"""Decodes bytes to typed frames, without any state. `recorder.agent.wire` defines the layout; a frame is a NamedTuple.

`recorder.agent.writer` writes them. The engines, `one_process` and `many_processes`, process them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.ledger import OpenRequest
from fdtrace.recorder.collector.order_frames import DecidedFrame, QueueFrame, decided, queue
from fdtrace.recorder.collector.reader import FrameBlock


class EngineFrame(NamedTuple):
    """The engine's row: columns of `schema.ENGINE`, and what distinguishes this process from the engine's others."""

    row: dict[str, Any]


class RequestFrame(NamedTuple):
    """A request that arrived, or that was already there."""

    head: wire.RequestHead
    request_id: str

    @property
    def request(self) -> OpenRequest:
        """What the frame says about the request."""
        head = self.head
        return OpenRequest(
            self.request_id,
            arrived_at=head.arrived_at,
            arrived_step=head.arrived_step,
            num_prompt_tokens=head.num_prompt_tokens,
            max_tokens=head.max_tokens,
            sent_at=head.sent_at,
            priority=head.priority,
        )


class JoinedRow(NamedTuple):
    """A row of the batch and the request that holds it from now on."""

    head: wire.JoinedHead
    request_id: str

    @property
    def request(self) -> OpenRequest:
        """What the frame says about the request."""
        head = self.head
        return OpenRequest(
            self.request_id,
            arrived_step=head.arrived_step,
            num_prompt_tokens=head.num_prompt_tokens,
            max_tokens=head.max_tokens,
            num_cached_tokens=head.num_cached_tokens,
            num_output_tokens=head.num_output_tokens,
        )


class BatchFrame(NamedTuple):
    """Rows that became free, and rows that a request holds from now on. A keyframe has all rows held before `step`."""

    is_keyframe: bool
    step: int
    vacated: tuple[int, ...]
    joined: tuple[JoinedRow, ...]


class BlocksFrame(NamedTuple):
    """The number of blocks that the requests of these rows hold. `extended`: these are decodes that got new blocks."""

    extended: bool
    rows: tuple[int, ...]
    blocks: tuple[int, ...]


class CallFrame(NamedTuple):
    """A scheduling call, or a run of equal calls that handed out nothing."""

    head: wire.ScheduleHead
    figures: wire.CallFigures

    @classmethod
    def restored(cls, head: Sequence[int], figures: Sequence[int]) -> CallFrame:
        """The call with these fields."""
        return cls(wire.ScheduleHead._make(head), wire.CallFigures._make(figures))

    @property
    def is_empty(self) -> bool:
        """Whether it handed out no task."""
        return bool(self.head.flags & wire.EMPTY)

    @property
    def ended_at(self) -> int:
        """When the call ended, UTC ns. Of a run of equal calls: when the first ended."""
        return self.head.ts + 1000 * self.head.schedule_us


UNSEEN = CallFrame(
    wire.ScheduleHead(wire.SCHEDULE, 0, 0, -1, call=-1, ts=-1, last_ts=-1, num_calls=1), wire.CallFigures()
)
"""A scheduling call that was not seen: nothing is known of it."""


class ForwardFrame(NamedTuple):
    """A forward: the allocator after it, its prefill rows (`uint16`), and the tokens and emitted tokens of each row.

    `head.codes` says which integers hold the tokens.
    """

    head: wire.ForwardHead
    memory: wire.AllocatorFigures
    prefill_rows: bytes
    stalled: tuple[int, ...]
    tokens: bytes
    emitted: bytes

    @property
    def ran_rows(self) -> set[int]:
        """The rows of the batch that ran tokens."""
        size = wire.ITEM_SIZES[self.head.codes & 3]
        return {row for row in range(self.head.num_rows) if any(self.tokens[row * size : (row + 1) * size])}


class EventFrame(NamedTuple):
    """An event. `detail` is JSON."""

    head: wire.EventHead
    kind: str
    reason: str
    detail: str | None


class FinishFrame(NamedTuple):
    """A request ended."""

    head: wire.FinishHead

    @property
    def reason(self) -> str:
        """Why it ended: one of `wire.FINISHED`."""
        return wire.FINISHED[self.head.reason]


class TasksFrame(NamedTuple):
    """The tasks of a call have reached a worker."""

    head: wire.TasksHead


class MemoryFrame(NamedTuple):
    """What a rank measured in one of its forwards."""

    head: wire.MemoryHead
    memory: wire.AllocatorFigures


class HashesFrame(NamedTuple):
    """Hashes of the full blocks of a request's prompt: `uint64`s, not salted yet."""

    request: int
    hashes: bytes


Frame = (
    EngineFrame
    | RequestFrame
    | BatchFrame
    | BlocksFrame
    | CallFrame
    | ForwardFrame
    | EventFrame
    | FinishFrame
    | TasksFrame
    | MemoryFrame
    | HashesFrame
    | DecidedFrame
    | QueueFrame
)

BEFORE_KEYFRAME = (EngineFrame, RequestFrame, HashesFrame, EventFrame, FinishFrame, QueueFrame)
"""Frames of an engine's ring that can be decoded before its first keyframe."""
RANK_BEFORE_KEYFRAME = (*BEFORE_KEYFRAME, MemoryFrame, TasksFrame)
"""The same for a ring that only a further rank writes."""


def frames_of(chunk: FrameBlock) -> Iterator[Frame]:
    """The frames of a chunk, in order."""
    data = chunk.data
    for at in chunk.payloads:
        yield DECODERS[data[at]](data, at)


def _text(data: bytes, begin: int, length: int) -> str:
    return data[begin : begin + length].decode()


def _engine(data: bytes, at: int) -> EngineFrame:
    begin = at + wire.ENGINE_HEAD.size
    return EngineFrame(json.loads(data[begin : begin + wire.ENGINE_HEAD.read(data, at).length]))


def _request(data: bytes, at: int) -> RequestFrame:
    head = wire.REQUEST_HEAD.read(data, at)
    return RequestFrame(head, _text(data, at + wire.REQUEST_HEAD.size, head.id_length))


def _batch(data: bytes, at: int) -> BatchFrame:
    head = wire.BATCH_HEAD.read(data, at)
    begin = at + wire.BATCH_HEAD.size
    vacated = struct.unpack_from(f"<{head.num_vacated}H", data, begin)
    begin += 2 * head.num_vacated
    joined = []
    for _ in range(head.num_joined):
        row = wire.JOINED_HEAD.read(data, begin)
        begin += wire.JOINED_HEAD.size
        joined.append(JoinedRow(row, _text(data, begin, row.id_length)))
        begin += row.id_length
    return BatchFrame(bool(head.flags & wire.KEYFRAME), head.step, vacated, tuple(joined))


def _blocks(data: bytes, at: int) -> BlocksFrame:
    head = wire.BLOCKS_HEAD.read(data, at)
    pairs = struct.unpack_from(f"<{2 * head.num_pairs}I", data, at + wire.BLOCKS_HEAD.size)
    return BlocksFrame(bool(head.extended), pairs[::2], pairs[1::2])


def _scheduling_call(data: bytes, at: int) -> CallFrame:
    return CallFrame(wire.SCHEDULE_HEAD.read(data, at), wire.FIGURES.read(data, at + wire.SCHEDULE_HEAD.size))


def _forward(data: bytes, at: int) -> ForwardFrame:
    head = wire.FORWARD_HEAD.read(data, at)
    memory = wire.ALLOCATOR.read(data, at + wire.FORWARD_HEAD.size)
    begin = at + wire.FORWARD_FRAME.size
    middle = begin + 2 * head.num_prefills
    stalled = struct.unpack_from(f"<{head.num_stalled}H", data, middle) if head.num_stalled else ()
    at_tokens = begin + wire.padded(2 * (head.num_prefills + head.num_stalled))
    token_bytes = head.num_rows * wire.ITEM_SIZES[head.codes & 3]
    at_emitted = at_tokens + wire.padded(token_bytes)
    emitted_bytes = head.num_rows * wire.ITEM_SIZES[head.codes >> 4 & 3]
    return ForwardFrame(
        head,
        memory,
        data[begin:middle],
        stalled,
        tokens=data[at_tokens : at_tokens + token_bytes],
        emitted=data[at_emitted : at_emitted + emitted_bytes],
    )


def _event(data: bytes, at: int) -> EventFrame:
    head = wire.EVENT_HEAD.read(data, at)
    begin = at + wire.EVENT_HEAD.size
    reason = _text(data, begin, head.reason_length)
    detail = _text(data, begin + head.reason_length, head.detail_length)
    return EventFrame(head, wire.EVENTS[head.event], reason, detail or None)


def _finish(data: bytes, at: int) -> FinishFrame:
    return FinishFrame(wire.FINISH_HEAD.read(data, at))


def _tasks(data: bytes, at: int) -> TasksFrame:
    return TasksFrame(wire.TASKS_HEAD.read(data, at))


def _memory(data: bytes, at: int) -> MemoryFrame:
    head = wire.MEMORY_HEAD.read(data, at)
    return MemoryFrame(head, wire.ALLOCATOR.read(data, at + wire.MEMORY_HEAD.size))


def _hashes(data: bytes, at: int) -> HashesFrame:
    head = wire.HASHES_HEAD.read(data, at)
    begin = at + wire.HASHES_HEAD.size
    return HashesFrame(head.request, data[begin : begin + 8 * head.num_hashes])


DECODERS: dict[int, Callable[[bytes, int], Frame]] = {
    wire.ENGINE: _engine,
    wire.REQUEST: _request,
    wire.BATCH: _batch,
    wire.BLOCKS: _blocks,
    wire.SCHEDULE: _scheduling_call,
    wire.FORWARD: _forward,
    wire.EVENT: _event,
    wire.FINISH: _finish,
    wire.TASKS: _tasks,
    wire.MEMORY: _memory,
    wire.HASHES: _hashes,
    wire.DECIDED: decided,
    wire.QUEUE: queue,
}
