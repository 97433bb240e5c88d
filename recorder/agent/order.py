"""Packs the order in which an engine met its events: what each call decided and knew, what came between two calls."""

from __future__ import annotations

import time
from array import array
from typing import Any, NamedTuple

from . import wire, wire_order


class Decided(NamedTuple):
    """What one scheduling call decided, and what it knew; requests by their ids.

    `needed_blocks`: the free blocks asked for before each chunk, in the order of `chunks`; one more for `refused`, the
    request that did not get them. `started`: requests that have a token since their admission and had none in the call
    before. `computed`: tokens computed of each running request after the call, in the order of the running queue; of a
    decode that the call visited, all but the last one that it knew.
    """

    call: int
    ts: int
    chunks: list[tuple[str, int, int]]
    extended: list[str]
    preempted: list[tuple[str, int]]
    """Each with its tokens when it lost its blocks."""
    aborted: list[str]
    skipped: list[str]
    """Whose preprocessing was not ready."""
    failed: list[str]
    started: list[str]
    needed_blocks: list[int]
    refused: str | None
    computed: array[int]


class OrderWriter:
    """Writes frames DECIDED and QUEUE; the caller holds the agent's lock."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.lap = -1

    @property
    def wants_whole(self) -> bool:
        """Whether the running queue must be told whole: a reader may have lost what an earlier segment held."""
        return bool(self.writer.ring.lap != self.lap)

    def event(
        self,
        call: int,
        kind: str,
        request_id: str | None,
        num_total_tokens: int = -1,
        more: tuple[int, ...] = (),
    ) -> bool:
        """Something that changed the queues before scheduling call `call`; False where the request was never told of.
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

    def found(self, place: str, request_id: str | None, value: int, *more: int) -> None:
        """What the first call finds: `value` and `more` as `wire_order.FOUND` and `wire_order.PLACES` have them."""
        self.event(0, "found", request_id, value, (wire_order.PLACES.index(place), *more))

    def decided(self, told: Decided, running: list[str] | None) -> None:
        """A call that found or did something. `running`: the running queue, where it must be told; None: it follows
        from the frames so far.
        """
        self.lap = self.writer.ring.lap
        lists: tuple[Any, ...] = told[2:10]
        words = self._words(told, running) if running is not None or any(lists) else b""
        number = self.writer.numbers.get
        refused = wire_order.NOBODY if told.refused is None else number(told.refused, wire_order.NOBODY)
        head = wire_order.DECIDED_HEAD.struct.pack(
            wire.DECIDED,
            running is not None,
            *[len(one) for one in lists],
            0,
            len(told.computed),
            refused,
            told.call,
            told.ts,
        )
        self.writer.put(head + words + told.computed.tobytes(), ends_idle=False)

    def _words(self, told: Decided, running: list[str] | None) -> bytes:
        """The lists of a call, in the order in which `Decided` has them, and the running queue."""
        number = self.writer.numbers.get
        words = array("I")
        for request_id, start, end in told.chunks:
            words.extend((number(request_id, wire_order.NOBODY), start, end))
        words.extend([number(request_id, wire_order.NOBODY) for request_id in told.extended])
        for request_id, tokens in told.preempted:
            words.extend((number(request_id, wire_order.NOBODY), max(tokens, 0)))
        for requests in (told.aborted, told.skipped, told.failed, told.started):
            words.extend([number(request_id, wire_order.NOBODY) for request_id in requests])
        words.extend(told.needed_blocks)
        if running is not None:
            words.extend([number(request_id, wire_order.NOBODY) for request_id in running])
        return words.tobytes()
