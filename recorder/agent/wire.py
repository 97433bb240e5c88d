"""The frames that an agent writes and the collector reads: their numbers, their layouts and the names of their fields.

A frame is 8-byte aligned: a commit word (sequence number in the high half, total length in bytes in the low half),
then a payload that begins with one of the heads below. All integers are little-endian. -1 stands for "not known".
Fields that go to the trace are named as its columns (`recorder.schema`).
"""

from __future__ import annotations

import struct
from typing import Any, Generic, NamedTuple, Type, TypeVar

PROTOCOL = 8
"""Raised with every change of a layout or a list of names below; an agent and a collector of different protocols refuse
each other."""

ENGINE, REQUEST, BATCH, BLOCKS, SCHEDULE, FORWARD, EVENT, FINISH, TASKS, MEMORY, HASHES = range(1, 12)
DECIDED, QUEUE = 12, 13
"""The order of calls: see `wire_order`."""
"""Frame types: the first field of each head.

A ring whose ENGINE frame has a `part` is one process of an engine of several: `engine` schedules, `worker` runs the
forwards, `rank` runs the same forwards as the ring that tells of them, and tells of its own memory alone. Where there
is no `worker`, `engine` tells of the forwards too, and rank 0's memory comes from a `rank`. `token` is the engine's own
number, which rides on its tasks and comes back in the TASKS frames of the others. `ts` is when the engine's first
keyframe was written: its forwards before that are no part of the recording. `stalls` is false where no decode can lack
blocks for its forward, as its call has given it them or preempted it."""

Head = TypeVar("Head", bound=Any)


class HeadLayout(Generic[Head]):
    """How a head lies in a frame. The writer packs a head with `struct`; `read` gives one back, its fields by name.
    `codes`: as the module `struct` has them, one a field.
    """

    def __init__(self, head: Type[Head], codes: str) -> None:
        self.codes, self.struct = codes, struct.Struct("<" + codes)
        self.size = self.struct.size
        self._make, self._unpack = head._make, self.struct.unpack_from

    def read(self, data: bytes, at: int) -> Head:
        """The head that begins at `at`."""
        head: Head = self._make(self._unpack(data, at))
        return head


class EngineHead(NamedTuple):
    """ENGINE: then the engine's row as JSON (columns of `recorder.schema.ENGINE`), `length` bytes."""

    kind: int
    flags: int
    unused: int
    length: int


ENGINE_HEAD = HeadLayout(EngineHead, "BBHI")


class RequestHead(NamedTuple):
    """REQUEST: a request that came, before the scheduling of step `arrived_step`; then its id."""

    kind: int
    flags: int
    id_length: int
    request: int
    arrived_at: int
    arrived_step: int
    num_prompt_tokens: int
    max_tokens: int


REQUEST_HEAD = HeadLayout(RequestHead, "BBHIqqii")

KEYFRAME = 1
"""Flag of BATCH: the rows named are all there are (the state at a step's boundary), not a change of them."""


class BatchHead(NamedTuple):
    """BATCH: `step` is the next one; then `uint16` rows vacated, then a `JoinedHead` and an id for each row joined."""

    kind: int
    flags: int
    num_vacated: int
    num_joined: int
    step: int


BATCH_HEAD = HeadLayout(BatchHead, "BBHIq")


class JoinedHead(NamedTuple):
    """A row that a request holds now. `num_computed_tokens`: before the next step; `num_output_tokens`: so far."""

    row: int
    id_length: int
    request: int
    num_prompt_tokens: int
    max_tokens: int
    num_computed_tokens: int
    num_blocks: int
    num_cached_tokens: int
    num_output_tokens: int
    arrived_step: int


JOINED_HEAD = HeadLayout(JoinedHead, "HHIiiqiiiq")


class BlocksHead(NamedTuple):
    """BLOCKS: then `num_pairs` pairs of `uint32`: row, blocks that its request holds. `extended`: decodes that the
    scheduler gave new ones.
    """

    kind: int
    extended: int
    unused: int
    num_pairs: int


BLOCKS_HEAD = HeadLayout(BlocksHead, "BBHI")


class ScheduleHead(NamedTuple):
    """SCHEDULE: a scheduling call, or `num_calls` equal ones that follow each other and handed out nothing (EMPTY).
    Then its `CallFigures`.

    `call`, `ts`, `schedule_us` are of the first, `last_ts` is when the last of them began. `reason`: why the head of
    the queue was not admitted (index into NOT_ADMITTED). A frame of the same `call` replaces the one before it.
    """

    kind: int
    reason: int
    flags: int
    schedule_us: int
    call: int
    ts: int
    last_ts: int
    num_calls: int


class CallFigures(NamedTuple):
    """What a scheduling call found and did, as the columns of `recorder.schema.CALL` of the same names say it.

    `head`: the request at the head of the queue. `reservation`: see RATIO.
    """

    token_budget: int = -1
    num_scheduled_tokens: int = -1
    num_running: int = -1
    num_running_decodes: int = -1
    num_prefilling: int = -1
    num_waiting: int = -1
    num_deferred: int = -1
    num_preallocated: int = -1
    num_chunks: int = -1
    num_admitted: int = -1
    num_extended: int = -1
    num_preempted: int = -1
    num_aborted: int = -1
    num_free_blocks: int = -1
    num_blocks: int = -1
    num_missing_blocks: int = -1
    head: int = -1
    reservation: int = -1
    cache_read_budget: int = -1
    num_cache_read_tokens: int = -1


SCHEDULE_HEAD = HeadLayout(ScheduleHead, "BBHIqqqq")
FIGURES = HeadLayout(CallFigures, "20i")
SCHEDULE_FRAME = struct.Struct("<" + SCHEDULE_HEAD.codes + FIGURES.codes)
"""Head and figures, packed at once."""

EMPTY = 1
"""Flag of SCHEDULE: it handed out nothing, so no TASKS frame will name it."""

RATIO = 2
"""Flag of SCHEDULE: the reservation is a ratio in millionths of the tokens still to come; else blocks a request."""


class AllocatorFigures(NamedTuple):
    """The framework's allocator, bytes; -1: not known."""

    allocated_bytes: int = -1
    reserved_bytes: int = -1
    peak_allocated_bytes: int = -1
    peak_reserved_bytes: int = -1


ALLOCATOR = HeadLayout(AllocatorFigures, "qqqq")


class ForwardHead(NamedTuple):
    """FORWARD: one forward of `num_rows` rows; `call`: the scheduling call that it belongs to, see LANDED.

    `codes`: item codes (of tokens in the low, of emitted in the high nibble) and LANDED. Then its `AllocatorFigures`,
    `num_prefills` `uint16` prefill rows (LAST_CHUNK set where the chunk ends the prefill), `num_stalled` `uint16`
    stalled rows, padding to 8, tokens of each row, padding to 8, tokens emitted of each row.
    """

    kind: int
    codes: int
    num_rows: int
    num_prefills: int
    num_stalled: int
    step: int
    call: int
    ts: int
    forward_us: int
    num_predicted_tokens: int


FORWARD_HEAD = HeadLayout(ForwardHead, "BBHHHqqqIi")
FORWARD_FRAME = struct.Struct("<" + FORWARD_HEAD.codes + ALLOCATOR.codes)
"""Head and allocator, packed at once; the lists follow."""

LAST_CHUNK = 0x8000

UNKNOWN_US = 0xFFFFFFFF
"""Duration of a FORWARD whose ring does not know it."""

LANDED = 0x08
"""Flag in the item codes of FORWARD: `call` is the last one whose tasks had reached the worker, so the forward belongs
to it or to a later empty call that ended before the forward began."""


class TasksHead(NamedTuple):
    """TASKS: those of scheduling call `call` have reached this worker; `token` is that of its engine."""

    kind: int
    unused_1: int
    unused_2: int
    unused_3: int
    call: int
    token: int


TASKS_HEAD = HeadLayout(TasksHead, "BBHIqQ")


class MemoryHead(NamedTuple):
    """MEMORY: what `rank` measured of its forward number `since` (from 0) of those that follow the coming of the tasks
    of `call`; `num_predicted_tokens`: tokens that it was launched for. Then its `AllocatorFigures`.
    """

    kind: int
    unused: int
    rank: int
    since: int
    call: int
    ts: int
    forward_us: int
    num_predicted_tokens: int


MEMORY_HEAD = HeadLayout(MemoryHead, "BBHIqqii")
MEMORY_FRAME = struct.Struct("<" + MEMORY_HEAD.codes + ALLOCATOR.codes)
"""Head and allocator, packed at once."""


class HashesHead(NamedTuple):
    """HASHES: then `num_hashes` `uint64`s, what tells each full block of `block_size` tokens of a request's prompt from
    others. They are salted before they reach a trace.
    """

    kind: int
    unused_1: int
    unused_2: int
    request: int
    num_hashes: int
    block_size: int


HASHES_HEAD = HeadLayout(HashesHead, "BBHIII")


class EventHead(NamedTuple):
    """EVENT: something at `step`, the next one; then its reason and its detail. `event`: index into EVENTS."""

    kind: int
    event: int
    reason_length: int
    detail_length: int
    request: int
    unused: int
    step: int
    ts: int


EVENT_HEAD = HeadLayout(EventHead, "BBHIiiqq")


class FinishHead(NamedTuple):
    """FINISH: a request ended in `step`, the last one that was forwarded. `reason`: index into FINISHED."""

    kind: int
    reason: int
    unused_1: int
    request: int
    step: int
    ts: int
    num_output_tokens: int
    unused_2: int


FINISH_HEAD = HeadLayout(FinishHead, "BBHIqqii")


NOT_ADMITTED = ("", "budget", "blocks", "slots", "preemption", "cache_read", "safety_margin", "other")

EVENTS = (
    "arrived",
    "skipped",
    "preempted",
    "rescheduled",
    "extended",
    "stalled",
    "aborted",
    "finished",
    "error",
    "attached",
    "detached",
    "lost",
    "switched_off",
    "preallocated",
    "joined",
    "discarded",
    "queued",
    "abort_wanted",
    "requeued",
    "left",
    "freed",
    "recycled",
    "output_cached",
    "found",
)

FINISHED = ("stop", "length", "abort", "error")

ITEM_SIZES = (1, 2, 4, 8)
"""Bytes of the signed integers that an item code (0 to 3) names."""


def padded(length: int) -> int:
    """`length` rounded up to 8 bytes."""
    return (length + 7) & ~7
