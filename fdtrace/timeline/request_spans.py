"""What requests ran, as spans of steps: a chunk of a prefill, or decodes; and lanes on which no two of them overlap."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns


@dataclass(slots=True)
class RequestSpan:
    """Steps in which one request ran without a pause: one chunk of a prefill, or decodes."""

    request: int
    first: int
    last: int
    """Entries of steps."""
    prefill: bool
    num_steps: int
    num_tokens: int
    num_accepted: int
    computed_before: int
    """Its tokens computed before the first of these steps."""
    computed_last: int
    """The same before the last of them."""


def spans_of(rows: BatchRowColumns, *, each: bool = False) -> Iterator[RequestSpan]:
    """The spans of some steps, by request and step.

    Args:
        rows: what requests ran.
        each: a span for each decode, too.
    """
    if not len(rows.step):
        return
    order = np.lexsort((rows.step, rows.request))
    step, request, prefill = rows.step[order], rows.request[order], rows.prefill[order]
    computed = rows.num_computed_tokens[order]
    begins = np.ones(len(step), bool)
    if not each:
        goes_on = (np.diff(request) == 0) & (np.diff(step) == 1) & ~prefill[1:] & ~prefill[:-1]
        begins[1:] = ~(goes_on & (np.diff(computed) >= 0))
    at = np.flatnonzero(begins)
    ends = np.append(at[1:], len(step)) - 1
    figures = (
        *(request[at], step[at], step[ends], prefill[at], ends - at + 1),
        np.add.reduceat(rows.num_tokens[order], at),
        np.add.reduceat(np.maximum(rows.num_accepted_tokens[order], 0), at),
        *(computed[at], computed[ends]),
    )
    for values in zip(*(figure.tolist() for figure in figures), strict=True):
        yield RequestSpan(*values)


class OpenSpans:
    """The spans of requests that are still running, while steps come in."""

    def __init__(self, last_entry: Ints, *, each: bool = False) -> None:
        """`last_entry`: the last step in which each request runs."""
        self._last, self._each = last_entry, each
        self._open: dict[int, list[RequestSpan]] = {}

    def feed(self, rows: BatchRowColumns, end: int) -> Iterator[tuple[int, list[RequestSpan]]]:
        """Take the next steps, those before entry `end`. Gives each request that ended in them, with all its spans."""
        for span in spans_of(rows, each=self._each):
            spans = self._open.setdefault(span.request, [])
            if spans and not self._each and _goes_on(spans[-1], span):
                _join(spans[-1], span)
            else:
                spans.append(span)
        ended = [request for request in self._open if self._last[request] < end]
        for request in sorted(ended, key=lambda number: (self._last[number], number)):
            yield request, self._open.pop(request)


def _goes_on(before: RequestSpan, span: RequestSpan) -> bool:
    decodes = not (before.prefill or span.prefill)
    return decodes and span.first == before.last + 1 and span.computed_before >= before.computed_last


def _join(before: RequestSpan, span: RequestSpan) -> None:
    before.last, before.computed_last = span.last, span.computed_last
    before.num_steps += span.num_steps
    before.num_tokens += span.num_tokens
    before.num_accepted += span.num_accepted


def lanes_of(intervals: Iterable[tuple[int, int, int]], count: int) -> Ints:
    """The lane of each request, from 0: the lowest that is free when its interval begins; MISSING: it has no interval.

    Args:
        intervals: beginning, end and request, in order of the beginnings; one may begin where another one ends.
        count: requests in all.
    """
    lanes = np.full(count, MISSING, np.int64)
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    for begin, end, request in intervals:
        while busy and busy[0][0] <= begin:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        lanes[request] = lane
        heapq.heappush(busy, (end, lane))
    return lanes
