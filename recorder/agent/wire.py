"""The frames that an agent writes and the collector reads: their numbers and their layouts.

A frame is 8-byte aligned: a commit word (sequence number in the high half, total length in bytes in the low half),
then a payload that begins with one of the structs below. All integers are little-endian. -1 stands for "not known".
"""

from __future__ import annotations

import struct

PROTOCOL = 1
"""Raised with every change of a layout below; an agent and a collector of different protocols refuse each other."""

ENGINE, REQUEST, BATCH, BLOCKS, SCHEDULE, FORWARD, EVENT, FINISH = range(1, 9)
"""Frame types."""

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
"""SCHEDULE: type, reason the head was not admitted (index into NOT_ADMITTED), 0, duration in us; call, ts; budget at
the start, tokens counted, running, running decodes at the start, waiting, preempted, free blocks, blocks, missing
blocks, padding."""

FORWARD_HEAD = struct.Struct("<BBHHHqqqIiqqqq")
"""FORWARD: type, item codes (tokens in the low, accepted in the high nibble), rows, prefill rows, stalled rows; step,
call, ts; duration in us, tokens predicted; allocated, reserved, peak allocated, peak reserved bytes. Then `uint16`
prefill rows (LAST_CHUNK set where the chunk ends the prefill), `uint16` stalled rows, padding to 8, tokens of each
row, padding to 8, tokens emitted of each row."""

LAST_CHUNK = 0x8000

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
)

FINISHED = ("stop", "length", "abort", "error")

ITEM_SIZES = (1, 2, 4, 8)
"""Bytes of the signed integers that an item code (0 to 3) names."""


def padded(length: int) -> int:
    """`length` rounded up to 8 bytes."""
    return (length + 7) & ~7
