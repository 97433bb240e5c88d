"""Packs the order of an engine's events: what each call decided and knew, and what happened between calls."""

from __future__ import annotations

import struct
import time
from array import array
from typing import Any, Callable, NamedTuple

from . import wire, wire_order
from .writer import EVENTS

NOBODY = wire_order.NOBODY

Pack = Callable[..., bytes]


class Packers:
    """Functions that pack so many numbers, made when they are first asked for. `codes`: those of the module `struct`.

    Not `array`: with cold caches its code takes as long as all else of a frame.
    """

    def __init__(self, before: str, each: str) -> None:
        self.before, self.each = before, each
        self.by_count: dict[int, Pack] = {}

    def of(self, count: int) -> Pack:
        """Packs what comes before, and `count` numbers."""
        pack = self.by_count.get(count)
        if pack is None:
            pack = self.by_count[count] = struct.Struct("<%s%d%s" % (self.before, count, self.each)).pack
        return pack


HEADS, NARROW, WIDE = Packers(wire_order.DECIDED_HEAD.codes, "I"), Packers("", "H"), Packers("", "I")


class CallDecision(NamedTuple):
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
    computed: list[int]


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
            wire.QUEUE, EVENTS[kind], len(more), number, call, time.time_ns(), num_total_tokens
        )
        self.writer.put(head + array("I", more).tobytes() if more else head, ends_idle=False)
        return True

    def write_found(self, place: str, request_id: str | None, value: int, *more: int) -> None:
        """Write what the first call finds. `value` and `more`: see `wire_order.FOUND` and `wire_order.PLACES`."""
        self.event(0, "found", request_id, value, (wire_order.PLACES.index(place), *more))

    def decided(self, decision: CallDecision, running: list[str] | None) -> None:
        """Write a call that found or did something. `running`: the running queue, if the frame must name it; None: it
        follows from the frames so far.
        """
        self.lap = self.writer.ring.lap
        _, _, chunks, extended, preempted, aborted, skipped, failed, started, needed, _, computed = decision
        has_words = chunks or extended or preempted or aborted or skipped or failed or started or needed
        words = self._words(decision, running) if has_words or running is not None else []
        refused = NOBODY
        if decision.refused is not None:
            refused = self.writer.numbers.get(decision.refused, NOBODY)
        flags = 0 if running is None else wire_order.RUNNING
        try:
            numbers = NARROW.of(len(computed))(*computed)
            flags |= wire_order.NARROW
        except struct.error:  # a context is longer
            numbers = WIDE.of(len(computed))(*computed)
        frame = HEADS.of(len(words))(  # in the order of `wire_order.DecidedHead`
            wire.DECIDED, flags, len(chunks), len(extended), len(preempted), len(aborted), len(skipped), len(failed),
            len(started), len(needed), 0, len(computed), refused, decision.call, decision.ts, *words,
        )  # fmt: skip
        self.writer.put(frame + numbers, ends_idle=False)

    def _words(self, decision: CallDecision, running: list[str] | None) -> list[int]:
        """The lists of a call in the order of `CallDecision`, then the running queue."""
        number = self.writer.numbers.get
        words: list[int] = []
        for request_id, start, end in decision.chunks:
            words += (number(request_id, NOBODY), start, end)
        for request_id in decision.extended:
            words.append(number(request_id, NOBODY))
        for request_id, tokens in decision.preempted:
            words += (number(request_id, NOBODY), max(tokens, 0))
        for requests in (decision.aborted, decision.skipped, decision.failed, decision.started):
            for request_id in requests:
                words.append(number(request_id, NOBODY))
        words += decision.needed_blocks
        if running is not None:
            words += [number(request_id, NOBODY) for request_id in running]
        return words
