"""A replay's steps with the rows of each: for schedulers whose decodes may skip steps or vary their drafts."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.digest import digests_of
from fdtrace.replayer.model.events import Decision, Forward, StepRow
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.replay.step_log import COLUMNS as STEP_COLUMNS
from fdtrace.replayer.replay.step_log import figures_of
from fdtrace.replayer.workload.request_columns import entry_of_request
from fdtrace.replayer.workload.workload import Workload

ROW_LOG_COLUMNS = (*STEP_COLUMNS, "num_draft_tokens", "num_accepted_tokens")
"""The columns of `StepLog`, plus drafts and acceptances, which differ from step to step here."""

_ROW = 7
"""Numbers of a row: request, whether a decode, tokens, computed before, drafts, accepted, blocks."""


class RowsSource(Protocol):
    """Something that knows the rows of the last forward."""

    def rows(self, decision: Decision) -> list[StepRow]:
        """The requests of a call's forward."""


class RowLog:
    """As `StepLog`, but its memory grows with the rows: 56 bytes for each."""

    def __init__(self, scheduler: RowsSource, workload: Workload) -> None:
        self.scheduler, self.workload = scheduler, workload
        self.num_steps = 0
        self._numbers = {request.request_id: i for i, request in enumerate(workload.requests)}
        self._table = array("q")
        self._rows = array("q")
        self._ends = array("q")
        self._not_admitted: list[str] = []
        self._lags = array("q")
        self._num_preempted = self._num_stalled = 0

    def came(self, request_id: str, number: int) -> None:
        """A request has arrived; `number` is its entry in the workload."""
        self._numbers[request_id] = number

    def left(self, request_id: str) -> int:
        """A request has ended. Returns its entry in the workload."""
        return self._numbers[request_id]

    def resumed(self, request_id: str) -> None:
        """A request decodes from the next step on. Nothing is to do: its rows show it."""

    def record(self, decision: Decision, forward: Forward, num_refused: int) -> bool:
        """Record a call and its forward after both have run. Returns whether it was a step."""
        self._num_preempted += len(decision.preempted)
        self._num_stalled += len(forward.stalled)
        if forward.num_tokens == 0:
            return False
        self._add(decision, forward, num_refused)
        return True

    def record_forward(
        self, decision: Decision, forward: Forward, preempted: int, refused: int, lag: int
    ) -> None:
        """Record a step of a deployment: the call that it belongs to, the forward (which may have run nothing), how
        many requests were preempted since the step before, the prompt tokens refused, and how many forwards before it
        the call did not know (MISSING: the call knew no outputs).
        """
        self._num_preempted, self._num_stalled = preempted, len(forward.stalled)
        self._lags.append(lag)
        self._add(decision, forward, refused)

    def _add(self, decision: Decision, forward: Forward, num_refused: int) -> None:
        rows = self.scheduler.rows(decision)
        for row in rows:
            self._rows.extend(
                (
                    self._numbers[row.request_id],
                    row.kind == "decode",
                    row.num_tokens,
                    row.num_computed_tokens,
                    row.num_draft_tokens,
                    row.num_accepted_tokens,
                    MISSING if row.num_blocks is None else row.num_blocks,
                )
            )
        self._ends.append(len(self._rows) // _ROW)
        self._not_admitted.append(decision.not_admitted or "")
        step = self.workload.first_step + self.num_steps
        self._table.extend(
            figures_of(step, decision, forward, self._num_preempted, self._num_stalled, num_refused)
        )
        self._table.append(sum(row.num_draft_tokens for row in rows))
        self._table.append(sum(row.num_accepted_tokens for row in rows))
        self._num_preempted = self._num_stalled = 0
        self.num_steps += 1

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns so far; of a deployment also `num_unseen_steps`, as in the view `call_lag`."""
        table = np.array(self._table, dtype=np.int64).reshape(-1, len(ROW_LOG_COLUMNS))
        columns = {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(ROW_LOG_COLUMNS)}
        columns["not_admitted"] = np.array(self._not_admitted, dtype=object)
        columns["num_context_tokens"] = self._context_tokens()
        if self._lags:
            columns["num_unseen_steps"] = np.array(self._lags, dtype=np.int64)
        return columns

    def _context_tokens(self) -> NDArray[np.int64]:
        """Tokens that the requests of each step had computed before it: what its attention reads."""
        computed = np.array(self._rows, dtype=np.int64).reshape(-1, _ROW)[:, 3]
        sums = np.concatenate([[0], np.cumsum(computed)])
        ends = np.array(self._ends, dtype=np.int64)
        return np.asarray(np.diff(sums[ends], prepend=0))

    def reader(self) -> RowReader:
        """A reader of the rows of a step."""
        return RowReader(self.workload, self._rows, self._ends)


class RowReader:
    """The rows of any step."""

    def __init__(self, workload: Workload, rows: array[int], ends: array[int]) -> None:
        self._workload = workload
        self._rows = np.array(rows, dtype=np.int64).reshape(-1, _ROW)
        self._ends = np.array(ends, dtype=np.int64)

    def __call__(self, step: int) -> list[StepRow]:
        """The requests of a step, by its number, in the order in which they were scheduled."""
        at = step - self._workload.first_step
        if not 0 <= at < len(self._ends):
            return []
        return [
            self._row(row) for row in self._rows[self._ends[at - 1] if at else 0 : self._ends[at]].tolist()
        ]

    def request_steps(self, request_id: str) -> list[tuple[int, StepRow]]:
        """The steps in which a request ran, each with its row, in order; empty if the request is unknown."""
        number = entry_of_request(self._workload.requests, request_id)
        if number is None:
            return []
        row_indices = np.flatnonzero(self._rows[:, 0] == number)
        steps = self._workload.first_step + np.searchsorted(self._ends, row_indices, side="right")
        return [
            (step, self._row(row))
            for step, row in zip(steps.tolist(), self._rows[row_indices].tolist(), strict=True)
        ]

    def batches(self) -> BatchRowColumns:
        """The rows of all steps; requests by their entry in the workload."""
        steps = np.searchsorted(self._ends, np.arange(len(self._rows)), side="right").astype(np.int64)
        request, decodes, tokens, computed, _, accepted, _ = self._rows.T
        return BatchRowColumns(steps, request, decodes == 0, tokens, computed, accepted)

    def digests(self, number_of: Mapping[str, int]) -> NDArray[np.int64]:
        """The `recorder.digest` of each step, with the recording's numbers of the requests."""
        numbers = np.array([number_of[request.request_id] for request in self._workload.requests], np.int64)
        steps = np.searchsorted(self._ends, np.arange(len(self._rows)), side="right")
        rows = self._rows
        return digests_of(steps, (numbers[rows[:, 0]], rows[:, 2], rows[:, 4]), len(self._ends))

    def _row(self, row: list[int]) -> StepRow:
        number, decodes, num_tokens, computed, drafts, accepted, blocks = row
        return StepRow(
            self._workload.requests[number].request_id,
            "decode" if decodes else "prefill",
            num_tokens,
            computed,
            drafts,
            accepted,
            None if blocks == MISSING else blocks,
        )
