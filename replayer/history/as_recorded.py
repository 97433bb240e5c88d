"""What a formula would have allowed in each recorded step, every step keeping the state that it had. No
model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING
from numpy.typing import NDArray

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.outcome import MemoryQuestion, outcome_of
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.memory_fit import fit_memory
from fdtrace.replayer.recorded.step_state import column, formula_columns, known

RowsOfStep = Callable[[int], list[StepRow]]
"""The requests of a recorded step, by its number; read from the trace by whoever has it."""

_KEPT = (
    "step",
    "num_running",
    "num_waiting",
    "num_preempted",
    "num_stalled",
    "num_free_blocks",
    "num_decode_tokens",
)


_WHERE_RECORDED = (
    "num_running_decodes",
    "num_draft_tokens",
    "num_accepted_tokens",
    "num_predicted_tokens",
    "num_blocks",
    "num_missing_blocks",
    "not_admitted",
    "schedule_us",
    "forward_us",
)
"""Further columns of a recorded step, where the recording has them."""


def _where_recorded(recording: Recording) -> dict[str, NDArray[Any]]:
    return {name: recording.steps[name] for name in _WHERE_RECORDED if name in recording.steps}


def rows_of(recording: Recording) -> RowsOfStep:
    """Reads the requests of a recorded step from the recording's own trace.

    They raise a TraceError where the recording is in memory without them: that nothing ran would be a wrong answer.
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
    recording: Recording, rows: RowsOfStep | None = None, memory: MemoryQuestion | None = None
) -> History:
    """The recording itself, as the history that the replays stand beside; `rows` None: as `rows_of` has them."""
    memory = memory or MemoryQuestion(fit_memory(recording))
    rows = rows or rows_of(recording)
    names = (*_KEPT, "num_tokens", "num_prefill_tokens", "token_budget", "num_scheduled_tokens")
    columns: dict[str, NDArray[Any]] = {name: column(recording, name) for name in names}
    columns.update(_where_recorded(recording))
    if memory.fit is not None:
        columns["reserved_bytes"] = column(recording, memory.fit.column)
    limit = recording.engine.max_num_batched_tokens
    columns = memory.with_reserved(columns)
    outcome = outcome_of(
        columns,
        limit,
        num_refused_tokens=None,
        num_unfinished=num_unfinished(recording),
        memory=memory,
    )
    return History("recorded", "recorded", limit, columns, outcome, rows)


def num_unfinished(recording: Recording) -> int:
    """Requests that neither finished nor were aborted in the recording."""
    endings = recording.details.endings
    return int(((endings.finished_step == MISSING) & (endings.aborted_step == MISSING)).sum())


def as_recorded_history(
    recording: Recording,
    formula: Formula,
    memory: MemoryQuestion | None = None,
    rows: RowsOfStep | None = None,
) -> History:
    """The recorded steps under another budget formula, exactly, state for state.

    The decodes of a step run whatever the formula says: no formula chooses among them. Of the prompt tokens
    that the step ran, those run that the formula would still hand out once the running decodes are charged.
    So a step's tokens are its decode tokens and the lesser of its prefill tokens and that allowance
    (`allowed` is the sum of the first and the last). UsageError where the formula cannot be computed for a
    step.
    """
    memory, read = memory or MemoryQuestion(fit_memory(recording)), rows or rows_of(recording)
    variables, length = formula_columns(recording), recording.num_steps
    budget = formula.budgets(variables, length)
    charged = formula.charges(variables, length) * np.asarray(variables["num_running_decodes"])
    allowance = np.maximum(budget - charged, 0)
    decode, prefill = known(recording, "num_decode_tokens"), known(recording, "num_prefill_tokens")
    columns: dict[str, NDArray[Any]] = {name: column(recording, name) for name in _KEPT}
    columns["token_budget"] = budget
    columns["allowed"] = decode + allowance
    columns["num_prefill_tokens"] = np.minimum(prefill, allowance)
    columns["num_tokens"] = decode + columns["num_prefill_tokens"]
    limit = recording.engine.max_num_batched_tokens
    held_back = prefill - columns["num_prefill_tokens"]
    room = np.maximum(limit - columns["num_tokens"], 0)
    columns = memory.with_reserved(columns)
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
        return _cut(read(step), int(allowance[at]))

    return History(formula.name, "as recorded", limit, columns, outcome, allowed_rows)


def _cut(rows: list[StepRow], allowance: int) -> list[StepRow]:
    """A step's rows with its chunks cut where the allowance ends."""
    kept = []
    for row in rows:
        if row.kind == "prefill":
            num_tokens = min(row.num_tokens, allowance)
            allowance -= num_tokens
            if num_tokens == 0:
                continue
            if num_tokens < row.num_tokens:
                row = StepRow(row.request_id, row.kind, num_tokens, row.num_computed_tokens)  # noqa: PLW2901
        kept.append(row)
    return kept
