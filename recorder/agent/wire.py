"""The frames that an agent writes and the collector reads: frame types, layouts and the names of the fields.

A frame is 8-byte aligned: a commit word (sequence number in the high half, total length in bytes in the low half),
then a payload that begins with one of the heads below. All integers are little-endian. -1 means "not known". Fields
that go to the trace have the names of its columns (`recorder.schema`).
"""

from __future__ import annotations

import struct
from typing import Any, Generic, NamedTuple, Type, TypeVar

from . import wire_names

PROTOCOL = 13
"""Raised with every change of a layout or of a list of names below. An agent and a collector of different protocols do
not work together."""

ENGINE, REQUEST, BATCH, BLOCKS, SCHEDULE, FORWARD, EVENT, FINISH, TASKS, MEMORY, HASHES = range(1, 12)
"""Frame types: the first field of each head.

If a ring's ENGINE frame has a `part`, the ring is that of one process of an engine of several. An `engine` schedules. A
`worker` runs the forwards. A `rank` runs the same forwards as the ring that reports them, and reports only its own
memory. If there is no `worker`, the `engine` also reports the forwards, and rank 0's memory comes from a `rank`.
`token` is the engine's own number: it travels with the tasks and comes back in the TASKS frames of the other processes.
`ts` is when the engine's first keyframe was written: earlier forwards do not belong to the recording. `stalls` is false
if no decode can lack blocks for its forward, because the call gave it the blocks or preempted it."""

DECIDED, QUEUE = 12, 13
"""The order of calls: see `wire_order`."""

Head = TypeVar("Head", bound=Any)


class HeadLayout(Generic[Head]):
    """The layout of a head in a frame. The writer packs a head with `struct`; `read` returns it with named fields.
    `codes`: those of the module `struct`, one a field.
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
    """REQUEST: a request that arrived before the scheduling of step `arrived_step`; then its id. `sent_at`, `priority`:
    as in `recorder.schema.REQUEST`.
    """

    kind: int
    flags: int
    id_length: int
    request: int
    arrived_at: int
    arrived_step: int
    num_prompt_tokens: int
    max_tokens: int
    sent_at: int
    priority: int
    unused: int


REQUEST_HEAD = HeadLayout(RequestHead, "BBHIqqiiqii")

NO_PRIORITY = -(2**31)
"""`priority` of REQUEST if the engine gives its requests none. Priorities may be negative."""

KEYFRAME = 1
"""Flag of BATCH: the rows named are all held rows (the state between two steps), not a change."""


class BatchHead(NamedTuple):
    """BATCH: `step` is the next step; then `uint16` rows vacated, then a `JoinedHead` and an id for each row joined."""

    kind: int
    flags: int
    num_vacated: int
    num_joined: int
    step: int


BATCH_HEAD = HeadLayout(BatchHead, "BBHIq")


class JoinedHead(NamedTuple):
    """A row that a request now holds. `num_computed_tokens`: before the next step. `num_output_tokens`: so far."""

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
    """BLOCKS: then `num_pairs` pairs of `uint32`: a row, and the blocks that its request holds. `extended`: the
    requests are decodes to which the scheduler gave new blocks.
    """

    kind: int
    extended: int
    unused: int
    num_pairs: int


BLOCKS_HEAD = HeadLayout(BlocksHead, "BBHI")


def blocks_frame(num_pairs: int) -> struct.Struct:
    """The layout of a BLOCKS frame: head and pairs, packed together."""
    return struct.Struct("<%s%dI" % (BLOCKS_HEAD.codes, 2 * num_pairs))


class ScheduleHead(NamedTuple):
    """SCHEDULE: a scheduling call, or `num_calls` equal calls in a row that handed out nothing (EMPTY). Then its
    `CallFigures`.

    `call`, `ts`, `schedule_us` are those of the first call; `last_ts` is when the last one began. `reason`: why the
    head of the queue was not admitted (index into NOT_ADMITTED). A frame of the same `call` replaces the one before.
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
    """What a scheduling call found and did. The fields are the columns of `recorder.schema.CALL` of the same names.

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
    input_budget: int = -1
    num_input_tokens: int = -1


SCHEDULE_HEAD = HeadLayout(ScheduleHead, "BBHIqqqq")
FIGURES = HeadLayout(CallFigures, "22i")
SCHEDULE_FRAME = struct.Struct("<" + SCHEDULE_HEAD.codes + FIGURES.codes)
"""Head and figures, packed together."""

EMPTY = 1
"""Flag of SCHEDULE: the call handed out nothing, so no TASKS frame will name it."""

RATIO = 2
"""Flag of SCHEDULE: the reservation is a ratio, in millionths, of the tokens still to come. Else: blocks a request."""


class AllocatorFigures(NamedTuple):
    """The framework's allocator, bytes; -1: not known."""

    allocated_bytes: int = -1
    reserved_bytes: int = -1
    peak_allocated_bytes: int = -1
    peak_reserved_bytes: int = -1


ALLOCATOR = HeadLayout(AllocatorFigures, "qqqq")


class ForwardHead(NamedTuple):
    """FORWARD: one forward of `num_rows` rows. `call`: the scheduling call to which it belongs, see LANDED.

    `codes`: item codes (of tokens in the low, of emitted in the high nibble) and LANDED. Then its `AllocatorFigures`,
    `num_prefills` `uint16` prefill rows (LAST_CHUNK is set if the chunk ends the prefill), `num_stalled` `uint16`
    stalled rows, padding to 8, tokens of each row, padding to 8, tokens emitted by each row.
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
"""Head and allocator, packed together; the lists follow."""

LAST_CHUNK = 0x8000

UNKNOWN_US = 0xFFFFFFFF
"""Duration of a FORWARD if its ring does not know it."""

LANDED = 0x08
"""Flag in the item codes of FORWARD: `call` is the last call whose tasks had reached the worker. So the forward belongs
to that call, or to a later empty call that ended before the forward began."""


class TasksHead(NamedTuple):
    """TASKS: the tasks of scheduling call `call` have reached this worker. `token` is that of its engine."""

    kind: int
    unused_1: int
    unused_2: int
    unused_3: int
    call: int
    token: int


TASKS_HEAD = HeadLayout(TasksHead, "BBHIqQ")


class MemoryHead(NamedTuple):
    """MEMORY: what `rank` measured in one forward. After the tasks of `call` arrived, it is forward number `since`,
    from 0. `num_predicted_tokens`: tokens that were launched. Then its `AllocatorFigures`.
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
"""Head and allocator, packed together."""


class HashesHead(NamedTuple):
    """HASHES: then `num_hashes` `uint64`s, one for each full block of `block_size` tokens of a request's prompt; of
    NO_REQUEST: for each block that the prefix cache keeps; of AT_CHECKPOINT: the same, in a checkpoint. Equal hashes
    mean equal blocks; a trace gets them salted.
    """

    kind: int
    unused_1: int
    unused_2: int
    request: int
    num_hashes: int
    block_size: int


HASHES_HEAD = HeadLayout(HashesHead, "BBHIII")
NO_REQUEST, AT_CHECKPOINT = 0xFFFFFFFF, 0xFFFFFFFE


class EventHead(NamedTuple):
    """EVENT: an event at `step`, the next one; then its reason and its detail. `event`: index into EVENTS."""

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
    """FINISH: a request ended in `step`, the last step that was forwarded. `reason`: index into FINISHED."""

    kind: int
    reason: int
    unused_1: int
    request: int
    step: int
    ts: int
    num_output_tokens: int
    unused_2: int


FINISH_HEAD = HeadLayout(FinishHead, "BBHIqqii")


NOT_ADMITTED, OTHER = wire_names.NOT_ADMITTED, wire_names.OTHER
EVENTS, FINISHED = wire_names.EVENTS, wire_names.FINISHED

ITEM_SIZES = (1, 2, 4, 8)
"""Bytes of the signed integers that an item code (0 to 3) names."""


def padded(length: int) -> int:
    """`length` rounded up to 8 bytes."""
    return (length + 7) & ~7
