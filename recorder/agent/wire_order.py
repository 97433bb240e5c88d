"""Layouts of the frames that hold the order of an engine's events, in the manner of `wire`."""

# No `from __future__ import annotations`: see `wire`.

from typing import NamedTuple

from .wire import HeadLayout


class DecidedHead(NamedTuple):
    """DECIDED: what scheduling call `call`, begun at `ts`, did with each request.

    These `uint32`s follow, requests by their numbers:

    - (request, first token, end token) of each chunk
    - requests extended; (request, its tokens) of each preempted one; requests aborted, skipped as not ready, failed
    - requests that have a token since their admission and had none at the call before
    - blocks required before each chunk. If `num_needed` is one more than the chunks: also those that `refused` lacked
    - with RUNNING, the running requests in their order. Without, they are those of the frame before, without requests
      that left, were preempted or aborted; the requests of the chunks come behind them
    - computed tokens of each running request; with NARROW, these are `uint16`s

    A call without a frame did nothing, and knew what the call before it knew.
    """

    kind: int
    flags: int
    num_chunks: int
    num_extended: int
    num_preempted: int
    num_aborted: int
    num_skipped: int
    num_failed: int
    num_started: int
    num_needed: int
    unused: int
    num_running: int
    refused: int
    call: int
    ts: int


DECIDED_HEAD = HeadLayout(DecidedHead, "BBHHHHHHHHHIIqq")

RUNNING = 1
"""Flag of DECIDED: the frame names the whole running queue."""

NARROW = 2
"""Flag of DECIDED: no request has more computed tokens than a `uint16` holds."""

NOBODY = 0xFFFFFFFF
"""A request that has no number."""


class QueueHead(NamedTuple):
    """QUEUE: a change of the queues before scheduling call `call`. `event`: index into EVENTS. `num_total_tokens`: the
    request's prompt and output tokens then. `num_more` `uint32`s follow. For `found` and `checkpoint`, FOUND names
    them: they are the state that the first recorded call, or call `call` of a flight recorder, found.
    """

    kind: int
    event: int
    num_more: int
    request: int
    call: int
    ts: int
    num_total_tokens: int


QUEUE_HEAD = HeadLayout(QueueHead, "BBHIqqq")

FOUND = (
    *("place", "num_computed_tokens", "num_prefill_tokens", "num_blocks"),
    *("cache_block", "num_cached_tokens", "num_cached_blocks"),
)
"""The values that follow a QUEUE frame of `found` or `checkpoint`. `place` is an index into PLACES. The last three
are only there if the prefix cache is written: the number of the request's last block in it (NOBODY: it has none), the
request's tokens up to there, and its blocks that belong to the cache."""

RESERVES = ("reserve", "relaxed reserve", "ratio")
"""What is kept free for running requests: `num_total_tokens` holds blocks or a ratio, in billionths."""

CACHES = ("cached", "cache left out")
"""The prefix cache. `cached`: `num_total_tokens` are the free blocks, and CACHED follow. The other: `num_total_tokens`
are the blocks in the cache, which are not written."""

LEAVING = "leaving"
"""A request that had left the running queue and held its blocks. A recording that begins there knows it only by its
number, which is in `num_total_tokens`, also of the frame that says that it was `freed`. A `checkpoint` names the
request too, if the recording knows it."""

AGAIN = ("queued", "abort_wanted")
"""Places of a `checkpoint`: for the first recorded call, these are changes of the queues before it."""

WHOLE = "whole"
"""The end of a `checkpoint`: `num_total_tokens` is the number of its frames before this one."""

PLACES = (
    "running",
    "requeued",
    "preempted",
    "aborting",
    *RESERVES,
    *CACHES,
    LEAVING,
    "preallocated",
    *AGAIN,
    WHOLE,
)
"""Where a request was found, or what else."""

CACHED = ("parent", "hash_low", "hash_high", "num_sharing", "used_at", "flags", "heap_place")
"""The values of each block in the prefix cache. Blocks are numbered in the order in which they are written. `parent`:
the number of the block before it in its prefix. `hash_low`, `hash_high`: the halves of its hash, as of HASHES.
`num_sharing`: requests that use it. `used_at` orders the blocks by their last use. `heap_place`: its place in the heap
of blocks that can be evicted. NOBODY: there is none."""

ON_DEVICE, CHILD = 1, 2
"""Flags of CACHED: the block is on the device; and it is the one that a request finds behind its parent."""
