"""The frames that tell the order in which an engine met its events: their layouts, as those of `wire`."""

# No `from __future__ import annotations`: see `wire`.

from typing import NamedTuple

from .wire import HeadLayout


class DecidedHead(NamedTuple):
    """DECIDED: what scheduling call `call`, begun at `ts`, did with each request.

    `uint32`s follow, requests by their numbers: (request, first token, end token) of each chunk; requests extended;
    (request, its tokens) of each preempted; requests aborted, skipped as not ready, failed; those that have a token
    since their admission and had none in the call before; blocks asked for before each chunk, and, where `num_needed`
    is one more than the chunks, those that `refused` did not get; with RUNNING, the running requests in their order,
    else these are those of the frame before, less those that left, were preempted or aborted, and those of the chunks
    behind them. Then the tokens computed of each running request. A call without a frame did nothing and knew what the
    call before knew.
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
"""Flag of DECIDED: the running queue is told whole."""

NOBODY = 0xFFFFFFFF
"""A request that has no number."""


class QueueHead(NamedTuple):
    """QUEUE: something that changed the queues before scheduling call `call`. `event`: index into EVENTS.
    `num_total_tokens`: the request's prompt and output tokens then. `num_more` `uint32`s follow, as FOUND names them
    for `found`: what the first call that was recorded found there.
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
"""What follows a QUEUE frame of `found`; `place` is an index into PLACES."""

PLACES = ("running", "requeued", "preempted", "aborting", "reserve", "relaxed reserve", "ratio")
"""Where a request was found, or what is kept for the running ones: then `num_total_tokens` has blocks or a ratio in
billionths."""
