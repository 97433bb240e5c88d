"""A replay's steps, kept small: columns, chunks by step, and each request's decodes as spans of steps."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replayer.events import Decision, Forward
from replayer.history import StepRow
from replayer.request import Progress
from replayer.scheduler import Scheduler

COLUMNS = (
    "step",
    "num_tokens",
    "token_budget",
    "num_scheduled_tokens",
    "num_prefill_tokens",
    "num_decode_tokens",
    "num_running",
    "num_running_decodes",
    "num_waiting",
    "num_preempted",
    "num_stalled",
    "num_free_blocks",
    "num_refused_tokens",
)
"""The columns of a replay; `num_refused_tokens`: prompt tokens held back though they fitted under the limit.
"""


@dataclass(slots=True)
class _Span:
    """A request decodes in each step from `first` to before `end`."""

    request_id: str
    first: int
    progress: Progress
    end: int | None = None


class Tape:
    """Records a replay step by step. A call whose forward runs 0 tokens is no step; what it did counts to the
    next.
    """

    def __init__(self, scheduler: Scheduler, first_step: int) -> None:
        self.scheduler, self.first_step = scheduler, first_step
        self.num_steps = 0
        self._table = array("q")
        self._chunks: list[list[tuple[str, int, int]]] = []
        self._spans: list[_Span] = []
        self._open: dict[str, _Span] = {}
        self._num_preempted = 0
        self._num_stalled = 0

    def resumed(self, request_id: str) -> None:
        """A request decodes from the next step on."""
        self._begin(request_id, self.num_steps)

    def _begin(self, request_id: str, step: int) -> None:
        span = _Span(request_id, step, self.scheduler.progress_of(request_id))
        self._spans.append(span)
        self._open[request_id] = span

    def _end(self, request_id: str, step: int) -> None:
        span = self._open.pop(request_id, None)
        if span is not None:
            span.end = step

    def record(self, decision: Decision, forward: Forward, num_refused: int) -> bool:
        """A call and its forward, after both; whether it was a step."""
        step = self.num_steps
        for gone in (decision.preempted, decision.aborted, forward.stalled):
            for request_id in gone:
                self._end(request_id, step)
        self._num_preempted += len(decision.preempted)
        self._num_stalled += len(forward.stalled)
        num_tokens = forward.num_tokens
        after = step + (num_tokens > 0)
        for request_id in forward.finished:
            self._end(request_id, after)
        for request_id in (*forward.stalled, *forward.started):
            self._begin(request_id, after)
        if num_tokens == 0:
            return False
        self._table.extend(
            (
                self.first_step + step,
                num_tokens,
                decision.token_budget,
                decision.num_scheduled_tokens,
                forward.num_prefill_tokens,
                forward.num_decode_tokens,
                decision.num_running,
                decision.num_running_decodes,
                decision.num_waiting,
                self._num_preempted,
                self._num_stalled,
                decision.num_free_blocks,
                num_refused,
            )
        )
        self._chunks.append(decision.chunks)
        self._num_preempted = self._num_stalled = 0
        self.num_steps = after
        return True

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns so far."""
        table = np.array(self._table, dtype=np.int64).reshape(-1, len(COLUMNS))
        return {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(COLUMNS)}

    def reader(self) -> StepReader:
        """What gives the rows of a step."""
        return StepReader(self._chunks, self._spans, self.first_step, self.scheduler.config.num_draft_tokens)


class StepReader:
    """Rebuilds the rows of any step from chunks and spans."""

    def __init__(
        self, chunks: list[list[tuple[str, int, int]]], spans: list[_Span], first_step: int, num_drafts: int
    ) -> None:
        self._chunks, self._spans, self._first_step, self._num_drafts = chunks, spans, first_step, num_drafts
        self._begins = np.array([span.first for span in spans], dtype=np.int64)
        endless = len(chunks) + 1
        self._ends = np.array([endless if span.end is None else span.end for span in spans], dtype=np.int64)

    def __call__(self, step: int) -> list[StepRow]:
        """The requests of a step, by its number: chunks in order of scheduling, then decodes by when they
        began.
        """
        at = step - self._first_step
        if not 0 <= at < len(self._chunks):
            return []
        rows = [StepRow(name, "prefill", end - start, start) for name, start, end in self._chunks[at]]
        for i in np.flatnonzero((self._begins <= at) & (at < self._ends)).tolist():
            span = self._spans[i]
            done, drafts = at - span.first, self._num_drafts
            total, accepted = span.progress.total(done), span.progress.accepted(done)
            rows.append(StepRow(span.request_id, "decode", 1 + drafts, total, drafts, accepted))
        return rows
