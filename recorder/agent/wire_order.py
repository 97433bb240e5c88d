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
    request's prompt and output tokens then. `num_more` `uint32`s follow. For `found`, FOUND names them: they are the
    state that the first recorded call found.
    """

    kind: int
    event: int
    num_more: int
    request: int
    call: int
    ts: int
    num_total_tokens: int


QUEUE_HEAD = HeadLayout(QueueHead, "BBHIqqq")

FOUND = ("place", "num_computed_tokens", "num_prefill_tokens", "num_blocks")
"""The values that follow a QUEUE frame of `found`. `place` is an index into PLACES."""

PLACES = ("running", "requeued", "preempted", "aborting", "reserve", "relaxed reserve", "ratio")
"""Where a request was found. The last three are what is kept free for running requests: then `num_total_tokens` holds
blocks or a ratio, in billionths."""
