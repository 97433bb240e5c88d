"""What a recording's step columns say about the state in which each scheduling call began."""

from __future__ import annotations

from typing import Any

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING
from numpy.typing import NDArray

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import FormulaColumns
from fdtrace.replayer.formulas.variables import VARIABLES, VARYING, Variables

StepColumn = NDArray[np.int64]


def column(recording: Recording, name: str) -> StepColumn:
    """A step column as int64; all MISSING where the recording has none."""
    values = recording.steps.get(name)
    if values is None:
        return np.full(recording.num_steps, MISSING, dtype=np.int64)
    return np.asarray(values, dtype=np.int64)


def known(recording: Recording, name: str) -> StepColumn:
    """A step column with 0 for MISSING."""
    values = column(recording, name)
    return np.where(values == MISSING, 0, values)


def formula_columns(recording: Recording) -> FormulaColumns:
    """The variables of every recorded call, as formulas see them."""
    fixed = Variables.of(SchedulerConfig.from_engine(recording.engine))
    found: dict[str, Any] = {name: getattr(fixed, name) for name in VARIABLES if name not in VARYING}
    found["num_running_decodes"] = running_decodes(recording)
    found["num_running"] = running_before(recording)
    found["num_waiting"] = waiting_before(recording)
    return found


def running_decodes(recording: Recording) -> StepColumn:
    """Running requests past their prefill when each call began.

    Recorded where the engine reports it; else the decodes that ran (each a token and its drafts), those that
    stalled and those that the call preempted.
    """
    recorded = column(recording, "num_running_decodes")
    if not (recorded == MISSING).any():
        return recorded
    ran = known(recording, "num_decode_tokens") - known(recording, "num_draft_tokens")
    derived = ran + known(recording, "num_stalled") + known(recording, "num_preempted")
    return np.asarray(np.where(recorded == MISSING, np.maximum(derived, 0), recorded))


def running_before(recording: Recording) -> StepColumn:
    """Running requests when each call began: those after the call before, less those that its forward
    finished.
    """
    after = known(recording, "num_running")
    left = _count_at(recording, recording.details.endings.finished_step)
    first = min(len(recording.details.initial), int(after[0])) if len(after) else 0
    before: StepColumn = np.concatenate([[first], after[:-1] - left[:-1]])[: len(after)]
    return np.maximum(before, 0)


def waiting_before(recording: Recording) -> StepColumn:
    """Waiting requests when each call began: those after the call before, new ones, and ones that it
    preempted.
    """
    after = known(recording, "num_waiting")
    back = known(recording, "num_preempted")
    arrived = _count_at(recording, np.asarray(recording.requests["arrived_step"], dtype=np.int64))
    before = np.concatenate([[0], after[:-1] + back[:-1]])[: len(after)]
    total: StepColumn = before + arrived
    return total


def _count_at(recording: Recording, at: StepColumn) -> StepColumn:
    """How many of the step numbers in `at` fall on each recorded step."""
    steps = np.asarray(recording.steps["step"], dtype=np.int64)
    at = at[at != MISSING]
    index = np.searchsorted(steps, at)
    return np.bincount(index[index < len(steps)], minlength=len(steps)).astype(np.int64)
