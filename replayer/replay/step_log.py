"""A replay's steps, kept small: columns, chunks by step, and each request's decodes as spans of steps."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.replayer.history.step_columns import MANY_STEPS, StepColumns
from fdtrace.replayer.model.events import Decision, Forward, StepRow
from fdtrace.replayer.model.request import AcceptancePlan
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.recorded.compact_numbers import CompactTable, extended
from fdtrace.replayer.replay.any_scheduler import AnyScheduler
from fdtrace.replayer.workload.request_columns import entry_of_request
from fdtrace.replayer.workload.workload import Workload

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
    "num_missing_blocks",
)
"""The columns of a replay; `num_refused_tokens`: prompt tokens held back although they fitted under the
limit. There is also the column `not_admitted`, with texts as in a recording.
"""

_NOT_ADMITTED = ("", "budget", "blocks", "slots", "preemption", "formula")


def figures_of(
    step: int, decision: Decision, forward: Forward, num_preempted: int, num_stalled: int, num_refused: int
) -> tuple[int, ...]:
    """The values of `COLUMNS` for a step; preempted and stalled requests are counted since the step before."""
    return (
        step,
        forward.num_prefill_tokens + forward.num_decode_tokens,
        decision.token_budget,
        decision.num_scheduled_tokens,
        forward.num_prefill_tokens,
        forward.num_decode_tokens,
        decision.num_running,
        decision.num_running_decodes,
        decision.num_waiting,
        num_preempted,
        num_stalled,
        decision.num_free_blocks,
        num_refused,
        MISSING if decision.num_missing_blocks is None else decision.num_missing_blocks,
    )


SPAN = 5
"""Numbers of a span: request, first step, end step (or `OPEN`), tokens emitted by prefills, forwards run
before.
"""
OPEN = -1


class StepLog:
    """Records a replay step by step. A call whose forward runs 0 tokens is no step; its effects count in the next step.

    Everything is kept in flat arrays of integers: even millions of steps create no objects. Only the requests that
    have come and not ended are known by their ids.
    """

    def __init__(self, scheduler: AnyScheduler, workload: Workload) -> None:
        self.scheduler, self.workload = scheduler, workload
        self.num_steps = 0
        self._role = workload.config.role
        self._numbers: dict[str, int] = {}
        self._table = CompactTable(len(COLUMNS))
        self._not_admitted = array("b")
        self._chunks = array("i")
        self._chunk_ends = array("I")
        self._spans = array("i")
        self._open: dict[str, int] = {}
        self._num_preempted = 0
        self._num_stalled = 0

    def came(self, request_id: str, number: int) -> None:
        """A request has arrived; `number` is its entry in the workload."""
        self._numbers[request_id] = number

    def left(self, request_id: str) -> int:
        """A request has ended: no step after those recorded so far has it. Returns its entry in the workload."""
        return self._numbers.pop(request_id)

    def resumed(self, request_id: str) -> None:
        """A request decodes from the next step on."""
        self._begin(request_id, self.num_steps)

    def _begin(self, request_id: str, step: int) -> tuple[int, int, int]:
        """Begin a span. The number of its request, the tokens that its prefills emitted, its decode forwards before."""
        emitted, forwards = self.scheduler.progress_of(request_id)
        number = self._numbers[request_id]
        self._open[request_id] = len(self._spans)
        self._spans = extended(self._spans, (number, step, OPEN, emitted, forwards))
        return number, emitted, forwards

    def _end(self, request_id: str, step: int) -> None:
        at = self._open.pop(request_id, None)
        if at is not None:
            self._spans[at + 2] = step

    def record(self, decision: Decision, forward: Forward, num_refused: int) -> bool:
        """Record a call and its forward after both have run. Returns whether it was a step."""
        num_tokens = forward.num_prefill_tokens + forward.num_decode_tokens
        self._decodes(decision, forward, self.num_steps, self.num_steps + (num_tokens > 0))
        if num_tokens == 0:
            return False
        step = self.workload.first_step + self.num_steps
        self._table.append(
            figures_of(step, decision, forward, self._num_preempted, self._num_stalled, num_refused)
        )
        self._not_admitted.append(_NOT_ADMITTED.index(decision.not_admitted or ""))
        if self._role != "decode":
            for request_id, start, end in decision.chunks:
                self._chunks = extended(self._chunks, (self._numbers[request_id], start, end))
        self._chunk_ends.append(len(self._chunks))
        self._num_preempted = self._num_stalled = 0
        self.num_steps += 1
        return True

    def _decodes(self, decision: Decision, forward: Forward, step: int, after: int) -> None:
        """End and begin the spans of requests that stop or start to decode with this call or its forward."""
        stalled, started = forward.stalled, forward.started
        if decision.preempted or decision.aborted or stalled:
            self._num_preempted += len(decision.preempted)
            self._num_stalled += len(stalled)
            for request_id in (*decision.preempted, *decision.aborted, *stalled):
                self._end(request_id, step)
        if self._role == "decode":  # a chunk there is a request that came with its first token
            for request_id, _, _ in decision.chunks:
                self._open[request_id] = len(self._spans)
                self._spans = extended(self._spans, (self._numbers[request_id], step, OPEN, 1, 0))
        for request_id in forward.finished:
            self._end(request_id, after)
        for request_id in stalled:
            self._begin(request_id, after)
        if self._role == "mixed":
            for request_id in started:
                self._begin(request_id, after)

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """The columns so far."""
        texts, codes = np.array(_NOT_ADMITTED, dtype=object), np.array(self._not_admitted, np.int8)
        columns: dict[str, NDArray[Any]]
        if self.num_steps >= MANY_STEPS:
            columns = {name: self._table.small_column(i) for i, name in enumerate(COLUMNS)}
            columns["not_admitted"] = codes
            return StepColumns(columns, {"not_admitted": texts})
        columns = {name: self._table.column(i) for i, name in enumerate(COLUMNS)}
        columns["not_admitted"] = texts[codes]
        return columns

    def reader(self) -> StepReader:
        """A reader of the rows of a step."""
        return StepReader(self.workload, self._chunks, self._chunk_ends, self._spans)


class StepReader:
    """Rebuilds the rows of any step from chunks and spans."""

    def __init__(
        self, workload: Workload, chunks: array[int], chunk_ends: array[int], spans: array[int]
    ) -> None:
        self._workload, self._chunks, self._chunk_ends = workload, chunks, chunk_ends
        self._spans = np.array(spans).reshape(-1, SPAN)
        ends = self._spans[:, 2]
        ends[ends == OPEN] = len(chunk_ends) + 1

    def __reduce__(self) -> tuple[Any, ...]:
        """It can be pickled, where it is compiled too."""
        spans = array("i" if self._spans.itemsize == 4 else "q", self._spans.tobytes())
        return StepReader, (self._workload, self._chunks, self._chunk_ends, spans)

    def __call__(self, step: int) -> list[StepRow]:
        """The requests of a step, by its number: chunks in order of scheduling, then decodes by when they
        began.
        """
        at = step - self._workload.first_step
        if not 0 <= at < len(self._chunk_ends):
            return []
        return [*self._prefills(at), *self._decodes(at)]

    def request_steps(self, request_id: str) -> list[tuple[int, StepRow]]:
        """The steps in which a request ran, each with its row, in order; empty if the request is unknown."""
        number = entry_of_request(self._workload.requests, request_id)
        if number is None:
            return []
        chunks = np.array(self._chunks).reshape(-1, 3)
        chunk_indices = np.flatnonzero(chunks[:, 0] == number)
        at_step = np.searchsorted(np.array(self._chunk_ends), chunk_indices * 3, side="right")
        rows = [
            (int(at), self._prefill(*chunks[i].tolist()))
            for at, i in zip(at_step, chunk_indices.tolist(), strict=True)
        ]
        for span in self._spans[self._spans[:, 0] == number].tolist():
            plan = self._plan(number)
            last = min(span[2], len(self._chunk_ends))
            rows += [(at, self._decode(span, plan, at)) for at in range(span[1], last)]
        first = self._workload.first_step
        return [(first + at, row) for at, row in sorted(rows, key=lambda step_and_row: step_and_row[0])]

    def batches(self) -> BatchRowColumns:
        """The rows of all steps; requests by their entry in the workload."""
        chunks = np.array(self._chunks, np.int64).reshape(-1, 3)
        ends = np.array(self._chunk_ends, dtype=np.int64)
        chunk_steps = np.searchsorted(ends, np.arange(len(chunks)) * 3, side="right")
        number, start, end = chunks.T
        ones, zeros = np.ones_like(number), np.zeros_like(number)
        prefills = np.stack([chunk_steps, number, ones, end - start, start, zeros])
        plans = {number: self._plan(number) for number in np.unique(self._spans[:, 0]).tolist()}
        decodes = (self._decodes_of(span, plans[span[0]], len(ends)) for span in self._spans.tolist())
        parts = [prefills, *decodes]
        table = np.concatenate(parts, axis=1)
        step, request, prefill, *figures = table[:, np.argsort(table[0], kind="stable")]
        return BatchRowColumns(step, request, prefill.astype(bool), *figures)

    def _decodes_of(self, span: list[int], plan: AcceptancePlan, num_steps: int) -> NDArray[np.int64]:
        """A span's decodes, a column each: step, request, 0, tokens, tokens computed before, accepted drafts."""
        number, first, end, emitted, forwards = span
        steps = np.arange(first, max(first, min(end, num_steps)))
        config = self._workload.config
        after = plan.after_each(forwards, len(steps) + 1)
        total = self._workload.requests[number].num_prompt_tokens + np.minimum(
            emitted + after[:-1], plan.output
        )
        tokens = np.full(len(steps), 1 + config.num_draft_tokens)
        if config.role == "decode" and forwards == 0:
            tokens[:1] = 1 + config.num_draft_tokens_of(first=True)
        rows = np.zeros((6, len(steps)), np.int64)
        rows[0], rows[1], rows[3], rows[4], rows[5] = steps, number, tokens, total, np.diff(after) - 1
        return rows

    def _prefills(self, at: int) -> Iterator[StepRow]:
        for i in range(self._chunk_ends[at - 1] if at else 0, self._chunk_ends[at], 3):
            yield self._prefill(*self._chunks[i : i + 3])

    def _prefill(self, number: int, start: int, end: int) -> StepRow:
        return StepRow(self._workload.requests[number].request_id, "prefill", end - start, start)

    def _plan(self, number: int) -> AcceptancePlan:
        request = self._workload.requests[number]
        return AcceptancePlan(request.accepts, request.num_output_tokens)

    def _decodes(self, at: int) -> Iterator[StepRow]:
        here = (self._spans[:, 1] <= at) & (at < self._spans[:, 2])
        for span in self._spans[here].tolist():
            yield self._decode(span, self._plan(span[0]), at)

    def _decode(self, span: list[int], plan: AcceptancePlan, at: int) -> StepRow:
        number, first, _, emitted, forwards = span
        request, config = self._workload.requests[number], self._workload.config
        done = forwards + at - first
        drafts = config.num_draft_tokens_of(first=config.role == "decode" and done == 0)
        total = request.num_prompt_tokens + min(emitted + plan.after(done), plan.output)
        accepted = plan.after(done + 1) - plan.after(done) - 1
        return StepRow(request.request_id, "decode", 1 + drafts, total, drafts, accepted)
