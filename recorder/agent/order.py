"""Packs the order of an engine's events: what each call decided and knew, and what happened between calls."""

from __future__ import annotations

import time
from array import array
from typing import Any, NamedTuple

from . import wire, wire_order


class Decided(NamedTuple):
    """What one scheduling call decided, and what it knew. Requests are named by their ids.

    `needed_blocks`: the free blocks that were required before each chunk, in the order of `chunks`; one more for
    `refused`, the request that did not get them. `started`: requests that have a token since their admission and had
    none at the call before. `computed`: computed tokens of each running request after the call, in the order of the
    running queue; for a decode that the call visited, all tokens that it knew but the last.
    """

    call: int
    ts: int
    chunks: list[tuple[str, int, int]]
    extended: list[str]
    preempted: list[tuple[str, int]]
    """Each with the number of its tokens when it lost its blocks."""
    aborted: list[str]
    skipped: list[str]
    """Requests whose preprocessing was not ready."""
    failed: list[str]
    started: list[str]
    needed_blocks: list[int]
    refused: str | None
    computed: array[int]


class OrderWriter:
    """Writes the frames DECIDED and QUEUE. The caller holds the agent's lock."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.lap = -1

    @property
    def wants_whole(self) -> bool:
        """Whether the next frame must name the whole running queue: a reader may have lost an earlier segment."""
        return bool(self.writer.ring.lap != self.lap)

    def event(
        self,
        call: int,
        kind: str,
        request_id: str | None,
        num_total_tokens: int = -1,
        more: tuple[int, ...] = (),
    ) -> bool:
        """Write a change of the queues before scheduling call `call`. False: the request was never written.
        `more`: see `wire_order.FOUND`.
        """
        number = wire_order.NOBODY if request_id is None else self.writer.numbers.get(request_id)
        if number is None:
            return False
        head = wire_order.QUEUE_HEAD.struct.pack(
            wire.QUEUE, wire.EVENTS.index(kind), len(more), number, call, time.time_ns(), num_total_tokens
        )
        self.writer.put(head + array("I", more).tobytes(), ends_idle=False)
        return True

    def write_found(self, place: str, request_id: str | None, value: int, *more: int) -> None:
        """Write what the first call finds. `value` and `more`: see `wire_order.FOUND` and `wire_order.PLACES`."""
        self.event(0, "found", request_id, value, (wire_order.PLACES.index(place), *more))

    def decided(self, decision: Decided, running: list[str] | None) -> None:
        """Write a call that found or did something. `running`: the running queue, if the frame must name it; None: it
        follows from the frames so far.
        """
        self.lap = self.writer.ring.lap
        lists: tuple[Any, ...] = decision[2:10]
        words = self._words(decision, running) if running is not None or any(lists) else b""
        number = self.writer.numbers.get
        refused = (
            wire_order.NOBODY if decision.refused is None else number(decision.refused, wire_order.NOBODY)
        )
        head = wire_order.DECIDED_HEAD.struct.pack(
            wire.DECIDED,
            running is not None,
            *[len(items) for items in lists],
            0,
            len(decision.computed),
            refused,
            decision.call,
            decision.ts,
        )
        self.writer.put(head + words + decision.computed.tobytes(), ends_idle=False)

    def _words(self, decision: Decided, running: list[str] | None) -> bytes:
        """The lists of a call in the order of `Decided`, then the running queue."""
        number = self.writer.numbers.get
        words = array("I")
        for request_id, start, end in decision.chunks:
            words.extend((number(request_id, wire_order.NOBODY), start, end))
        words.extend([number(request_id, wire_order.NOBODY) for request_id in decision.extended])
        for request_id, tokens in decision.preempted:
            words.extend((number(request_id, wire_order.NOBODY), max(tokens, 0)))
        for requests in (decision.aborted, decision.skipped, decision.failed, decision.started):
            words.extend([number(request_id, wire_order.NOBODY) for request_id in requests])
        words.extend(decision.needed_blocks)
        if running is not None:
            words.extend([number(request_id, wire_order.NOBODY) for request_id in running])
        return words.tobytes()
