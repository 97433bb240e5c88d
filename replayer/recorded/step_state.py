"""The scheduler's state when each recorded scheduling call began, from the recording's step columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.columns_on_demand import stored_column
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import FormulaColumns
from fdtrace.replayer.formulas.variables import VARIABLES, VARYING, Variables

StepColumn = NDArray[np.int64]


def column(recording: Recording, name: str) -> StepColumn:
    """A step column as int64; all MISSING if the recording does not have it."""
    values = recording.steps.get(name)
    if values is None:
        return np.full(recording.num_steps, MISSING, dtype=np.int64)
    return np.asarray(values, dtype=np.int64)


def small_column(recording: Recording, name: str) -> NDArray[Any]:
    """The same in the smallest type that there is of it: to compare and to sum, not to multiply."""
    if name not in recording.steps:
        return np.broadcast_to(np.int64(MISSING), recording.num_steps)
    return stored_column(recording.steps, name)


def column_or_zero(recording: Recording, name: str) -> StepColumn:
    """A step column as int64, with 0 in place of MISSING."""
    values = column(recording, name)
    return np.where(values == MISSING, 0, values)


def formula_columns(recording: Recording) -> FormulaColumns:
    """The variables of a formula for every recorded call: a scalar, or an array with one entry for each step."""
    fixed = Variables.of(SchedulerConfig.from_engine(recording.engine))
    columns: dict[str, Any] = {name: getattr(fixed, name) for name in VARIABLES if name not in VARYING}
    columns["num_running_decodes"] = running_decodes(recording)
    columns["num_running"] = running_before(recording)
    columns["num_waiting"] = waiting_before(recording)
    return columns


def running_decodes(recording: Recording) -> StepColumn:
    """Running requests past their prefill when each call began.

    If the engine does not report them, they are the sum of the decodes that ran (each has one token and its
    drafts), those that stalled and those that the call preempted.
    """
    recorded = column(recording, "num_running_decodes")
    if not (recorded == MISSING).any():
        return recorded
    ran = column_or_zero(recording, "num_decode_tokens") - column_or_zero(recording, "num_draft_tokens")
    derived = ran + column_or_zero(recording, "num_stalled") + column_or_zero(recording, "num_preempted")
    return np.asarray(np.where(recorded == MISSING, np.maximum(derived, 0), recorded))


def running_before(recording: Recording) -> StepColumn:
    """Running requests when each call began: those after the previous call, minus those that its forward finished."""
    after = column_or_zero(recording, "num_running")
    finished = _count_at(recording, recording.details.endings.finished_step)
    first = min(len(recording.details.initial), int(after[0])) if len(after) else 0
    before: StepColumn = np.concatenate([[first], after[:-1] - finished[:-1]])[: len(after)]
    return np.maximum(before, 0)


def waiting_before(recording: Recording) -> StepColumn:
    """Waiting requests when each call began: those after the previous call, those that it preempted, and new ones."""
    after = column_or_zero(recording, "num_waiting")
    preempted = column_or_zero(recording, "num_preempted")
    arrived = _count_at(recording, np.asarray(recording.requests["arrived_step"], dtype=np.int64))
    before = np.concatenate([[0], after[:-1] + preempted[:-1]])[: len(after)]
    total: StepColumn = before + arrived
    return total


def _count_at(recording: Recording, step_numbers: StepColumn) -> StepColumn:
    """For each recorded step: how many of `step_numbers` are equal to it. MISSING ones do not count."""
    steps = np.asarray(recording.steps["step"], dtype=np.int64)
    step_numbers = step_numbers[step_numbers != MISSING]
    index = np.searchsorted(steps, step_numbers)
    return np.bincount(index[index < len(steps)], minlength=len(steps)).astype(np.int64)
