"""The frames that an agent writes and the collector reads: their numbers and their layouts.

A frame is 8-byte aligned: a commit word (sequence number in the high half, total length in bytes in the low half),
then a payload that begins with one of the structs below. All integers are little-endian. -1 stands for "not known".
"""

from __future__ import annotations

import struct

PROTOCOL = 4
"""Raised with every change of a layout or a list of names below; an agent and a collector of different protocols refuse
each other."""

ENGINE, REQUEST, BATCH, BLOCKS, SCHEDULE, FORWARD, EVENT, FINISH, CALL, MEMORY, HASHES = range(1, 12)
"""Frame types.

A ring whose ENGINE frame has a `part` is one process of an engine of several: `engine` schedules, `worker` runs the
forwards, `rank` runs the same forwards as the ring that tells of them, and tells of its own memory alone. Where there
is no `worker`, `engine` tells of the forwards too, and rank 0's memory comes from a `rank`. `token` is the engine's own
number, which rides on its tasks and comes back in the CALL frames of the others. `ts` is when the engine's first
keyframe was written: its forwards before that are no part of the recording. `stalls` is false where no decode can lack
blocks for its forward, as its call has given it them or preempted it."""

HEAD = struct.Struct("<BBHI")
"""Type, flags, and two counts whose meaning depends on the type. ENGINE: length of its JSON."""

KEYFRAME = 1
"""Flag of BATCH: the rows named are all there are (the state at a step's boundary), not a change of them."""

REQUEST_HEAD = struct.Struct("<BBHIqqii")
"""REQUEST: type, flags, length of the id, request; ts, step before whose scheduling it came; prompt, max_tokens."""

BATCH_HEAD = struct.Struct("<BBHIq")
"""BATCH: type, flags, rows vacated, rows joined; the next step. Then `uint16` rows vacated, then the joined."""

JOINED = struct.Struct("<HHIiiqiiiq")
"""A row joined: row, length of the id, request, prompt, max_tokens, tokens computed before the next step, blocks,
cached tokens, output tokens so far, step before whose scheduling it came (-1: not known). Then the id."""

BLOCKS_HEAD = struct.Struct("<BBHI")
"""BLOCKS: type, flags, 0, count; then pairs of `uint32`: row, blocks that its request holds."""

SCHEDULE_BODY = struct.Struct("<BBHIqqiiiiiiiiii")
"""SCHEDULE: type, reason the head was not admitted (index into NOT_ADMITTED), flags, duration in us; call, ts; budget
at the start, tokens counted, running, running decodes at the start, waiting, preempted, free blocks, blocks, missing
blocks, reservation (see RATIO; -1: not known)."""

EMPTY = 1
"""Flag of SCHEDULE: the call handed out no task, so no CALL frame will name it."""

RATIO = 2
"""Flag of SCHEDULE: the reservation is a ratio in millionths of the tokens still to come; else blocks a request."""

FORWARD_HEAD = struct.Struct("<BBHHHqqqIiqqqq")
"""FORWARD: type, item codes (tokens in the low, accepted in the high nibble), rows, prefill rows, stalled rows; step,
call, ts; duration in us, tokens predicted; allocated, reserved, peak allocated, peak reserved bytes. Then `uint16`
prefill rows (LAST_CHUNK set where the chunk ends the prefill), `uint16` stalled rows, padding to 8, tokens of each
row, padding to 8, tokens emitted of each row."""

LAST_CHUNK = 0x8000

UNKNOWN_US = 0xFFFFFFFF
"""Duration of a FORWARD whose ring does not know it."""

LANDED = 0x08
"""Flag in the item codes of FORWARD: `call` is the last one whose tasks had reached the worker, so the forward belongs
to it or to a later empty call that ended before the forward began."""

CALL_BODY = struct.Struct("<BBHIqQ")
"""CALL: type, 0, 0, 0; the scheduling call whose tasks have reached this worker, the token of its engine."""

MEMORY_BODY = struct.Struct("<BBHIqqqqqqii")
"""MEMORY: type, 0, rank, forwards of this rank since the call's tasks reached it (from 0); call, ts; allocated,
reserved, peak allocated, peak reserved bytes; duration of the forward in us, tokens that it was launched for."""

HASHES_HEAD = struct.Struct("<BBHIII")
"""HASHES: type, 0, 0, request; count, tokens a block; then `uint64`s, what tells each full block of its prompt from
others. They are salted before they reach a trace."""

EVENT_HEAD = struct.Struct("<BBHIiiqq")
"""EVENT: type, kind (index into EVENTS), length of the reason, length of the detail; request, padding; step, ts."""

FINISH_BODY = struct.Struct("<BBHIqqii")
"""FINISH: type, reason (index into FINISHED), 0, request; step, ts; output tokens, padding."""

NOT_ADMITTED = ("", "budget", "blocks", "slots", "preemption", "other")

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
)

FINISHED = ("stop", "length", "abort", "error")

ITEM_SIZES = (1, 2, 4, 8)
"""Bytes of the signed integers that an item code (0 to 3) names."""


def padded(length: int) -> int:
    """`length` rounded up to 8 bytes."""
    return (length + 7) & ~7
