"""What a formula would have allowed in each recorded step. Every step keeps its recorded state: there is no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.call_rules import refuse_rules
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.outcome_figures import FIGURES, MemoryQuestion, outcome_of
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.memory_fit import fit_memory
from fdtrace.replayer.recorded.only_sums import refuse_only_sums
from fdtrace.replayer.recorded.step_state import column, column_or_zero, formula_columns
from fdtrace.replayer.recorded.step_view import StepView

RowsOfStep = Callable[[int], list[StepRow]]
"""Gives the requests of a step by the step's number. It usually reads the trace."""

_UNCHANGED = (
    "step",
    "num_running",
    "num_waiting",
    "num_preempted",
    "num_stalled",
    "num_free_blocks",
    "num_decode_tokens",
)
"""Columns of a recorded step that no formula changes."""

_OPTIONAL = (
    "num_running_decodes",
    "num_draft_tokens",
    "num_accepted_tokens",
    "num_predicted_tokens",
    "num_blocks",
    "num_missing_blocks",
    "cache_read_budget",
    "num_cache_read_tokens",
    "not_admitted",
    "schedule_us",
    "forward_us",
)
"""Columns of a recorded step that some recordings do not have."""


def rows_of(recording: Recording) -> RowsOfStep:
    """A function that reads the requests of a recorded step from the recording's own trace.

    It raises a TraceError if the recording is in memory without them: an empty list would say that nothing ran.
    """
    read = recording.details.step_rows

    def rows(step: int) -> list[StepRow]:
        if read is None:
            raise TraceError(
                f"the requests of step {step} are not known",
                why="this recording is in memory, without the requests of each step",
                hint="ask while its trace is open, or give `rows` that read them",
            )
        return [StepRow(**row._asdict()) for row in read(step)]

    return rows


def recorded_history(
    recording: Recording,
    rows: RowsOfStep | None = None,
    memory: MemoryQuestion | None = None,
    *,
    counts_unfinished: bool = True,
) -> History:
    """The recording itself as a history, to compare replays with.

    Args:
        recording: what was recorded.
        rows: gives the requests of a step; None: those of `rows_of`.
        memory: its fit, if that is known already.
        counts_unfinished: False leaves `num_unfinished` unknown: to count them, all requests and events are read.
    """
    memory = memory or MemoryQuestion(fit_memory(recording))
    rows = rows or rows_of(recording)
    names = {
        name: name
        for name in (*_UNCHANGED, "num_tokens", "num_prefill_tokens", "token_budget", "num_scheduled_tokens")
    }
    names |= {name: name for name in _OPTIONAL if name in recording.steps}
    if memory.fit is not None:
        names[memory.column] = memory.fit.column
    columns = StepView(recording, names)
    limit = recording.engine.max_num_batched_tokens
    outcome = outcome_of(
        {
            name: columns.stored(name)
            for name in (*FIGURES, *([memory.column] if memory.fit is not None else []))
        },
        limit,
        num_refused_tokens=None,
        num_unfinished=num_unfinished(recording) if counts_unfinished else None,
        memory=memory,
    )
    return History("recorded", "recorded", limit, columns, outcome, rows)


def num_unfinished(recording: Recording) -> int:
    """Requests that were neither finished nor aborted in the recording."""
    endings = recording.details.endings
    return int(((endings.finished_step == MISSING) & (endings.aborted_step == MISSING)).sum())


def as_recorded_history(
    recording: Recording,
    formula: Formula,
    memory: MemoryQuestion | None = None,
    rows: RowsOfStep | None = None,
) -> History:
    """The recorded steps under another budget formula; each step keeps its recorded state.

    All decodes of a step run, because a formula does not choose among decodes. The allowance of a step is the
    formula's budget minus its charges for the running decodes. Of the recorded prefill tokens, at most that many run.
    The column `allowed` is the step's decode tokens plus its allowance. UsageError if the formula cannot be computed
    for a step.
    """
    refuse_only_sums(recording)
    refuse_rules(
        formula.name,
        formula.rules,
        ("charge",),
        "--as-recorded",
        "its other rules are about requests that another call would have scheduled",
    )
    memory, read_rows = memory or MemoryQuestion(fit_memory(recording)), rows or rows_of(recording)
    variables, length = formula_columns(recording), recording.num_steps
    budget = formula.budgets(variables, length)
    charged = formula.charges(variables, length) * np.asarray(variables["num_running_decodes"])
    allowance = np.maximum(budget - charged, 0)
    decode, prefill = (
        column_or_zero(recording, "num_decode_tokens"),
        column_or_zero(recording, "num_prefill_tokens"),
    )
    columns: dict[str, NDArray[Any]] = {name: column(recording, name) for name in _UNCHANGED}
    columns["token_budget"] = budget
    if memory.fit is not None and memory.fit.cache_read:
        columns["num_cache_read_tokens"] = column(recording, "num_cache_read_tokens")
    columns["allowed"] = decode + allowance
    columns["num_prefill_tokens"] = np.minimum(prefill, allowance)
    columns["num_tokens"] = decode + columns["num_prefill_tokens"]
    limit = recording.engine.max_num_batched_tokens
    held_back = prefill - columns["num_prefill_tokens"]
    room = np.maximum(limit - columns["num_tokens"], 0)
    columns = dict(memory.with_memory(columns))
    outcome = outcome_of(
        columns,
        limit,
        num_refused_tokens=int(np.minimum(held_back, room).sum()),
        num_unfinished=num_unfinished(recording),
        memory=memory,
    )
    numbers = columns["step"]

    def allowed_rows(step: int) -> list[StepRow]:
        at = int(np.searchsorted(numbers, step))
        return _cut(read_rows(step), int(allowance[at]))

    return History(formula.name, "as recorded", limit, columns, outcome, allowed_rows)


def _cut(rows: list[StepRow], allowance: int) -> list[StepRow]:
    """The rows of a step, with its chunks cut where the allowance ends."""
    allowed = []
    for row in rows:
        if row.kind == "prefill":
            num_tokens = min(row.num_tokens, allowance)
            allowance -= num_tokens
            if num_tokens == 0:
                continue
            if num_tokens < row.num_tokens:
                row = StepRow(row.request_id, row.kind, num_tokens, row.num_computed_tokens)  # noqa: PLW2901
        allowed.append(row)
    return allowed
