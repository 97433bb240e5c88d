"""Decodes the frames that hold the order of an engine's calls. `wire_order` defines their layouts."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from fdtrace.recorder.agent import wire, wire_order
from fdtrace.recorder.collector.prompt_hash_salt import salted


class DecidedFrame(NamedTuple):
    """What a scheduling call did with each request; see `wire_order.DecidedHead`. Requests by this ring's numbers.

    `chunks`: (request, first token, end token). `preempted`: (request, its tokens). `started`: requests that have a
    token since their admission and had none at the call before. `needed`: free blocks that were required. `computed`:
    computed tokens of each running request, in their order. `running`: these requests; None if the frame does not
    name them.
    """

    head: wire_order.DecidedHead
    chunks: tuple[tuple[int, int, int], ...]
    extended: tuple[int, ...]
    preempted: tuple[tuple[int, int], ...]
    aborted: tuple[int, ...]
    skipped: tuple[int, ...]
    failed: tuple[int, ...]
    started: tuple[int, ...]
    needed: tuple[int, ...]
    running: tuple[int, ...] | None
    computed: tuple[int, ...]


class QueueFrame(NamedTuple):
    """A change of the queues before a scheduling call. `wire_order.FOUND` names the values of `more`."""

    head: wire_order.QueueHead
    kind: str
    more: tuple[int, ...]


def decided(data: bytes, at: int) -> DecidedFrame:
    """The frame DECIDED that begins at `at`."""
    head = wire_order.DECIDED_HEAD.read(data, at)
    tells_running = bool(head.flags & wire_order.RUNNING)
    counts: Sequence[int] = (
        3 * head.num_chunks, head.num_extended, 2 * head.num_preempted, head.num_aborted, head.num_skipped,
        head.num_failed, head.num_started, head.num_needed, tells_running * head.num_running,
    )  # fmt: skip
    num_words, begin = sum(counts), at + wire_order.DECIDED_HEAD.size
    code = "H" if head.flags & wire_order.NARROW else "I"
    numbers = struct.unpack_from(f"<{num_words}I{head.num_running}{code}", data, begin)
    words, computed = iter(numbers), numbers[num_words:]
    lists = [tuple(islice(words, count)) for count in counts]
    chunks, extended, preempted, aborted, skipped, failed, started, needed, running = lists
    return DecidedFrame(
        head,
        tuple(zip(chunks[::3], chunks[1::3], chunks[2::3], strict=True)),
        extended,
        tuple(zip(preempted[::2], preempted[1::2], strict=True)),
        aborted,
        skipped,
        failed,
        started,
        needed,
        running if tells_running else None,
        computed,
    )


def queue(data: bytes, at: int) -> QueueFrame:
    """The frame QUEUE that begins at `at`."""
    head = wire_order.QUEUE_HEAD.read(data, at)
    more = struct.unpack_from(f"<{head.num_more}I", data, at + wire_order.QUEUE_HEAD.size)
    return QueueFrame(head, wire.EVENTS[head.event], more)


def cached_blocks(words: Sequence[int], salt: bytes) -> list[list[Any]]:
    """Blocks of the prefix cache as the trace keeps them; `words` as of `wire_order.CACHED`.

    Returns:
        For each block: the number of the block before it in its prefix (None: it is a first block), its salted hash,
        the requests that use it, the order of its last use, whether it is on the device, whether requests find it
        behind the block before it, and its place in the heap of blocks that can be evicted (None: it is not there).
    """
    return list(_cached_blocks(words, salt))


def _cached_blocks(words: Sequence[int], salt: bytes) -> Iterator[list[Any]]:
    width = len(wire_order.CACHED)
    for at in range(0, len(words), width):
        parent, low, high, num_sharing, used_at, flags, place = words[at : at + width]
        (value,) = salted(struct.pack("<II", low, high), salt)
        yield [
            None if parent == wire_order.NOBODY else parent,
            value,
            num_sharing,
            used_at,
            bool(flags & wire_order.ON_DEVICE),
            bool(flags & wire_order.CHILD),
            None if place == wire_order.NOBODY else place,
        ]
