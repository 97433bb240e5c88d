"""When the requests of a recording arrive in a replay: by recorded step, or by recorded time.

By time, the duration of a replayed step is computed from its tokens. The formula is fitted to the recorded steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.step_state import column, column_or_zero
from fdtrace.replayer.recorded.time_model import TimeModel

ClockKind = Literal["steps", "time"]

FEWEST = 8
"""Steps that a fit needs."""


@dataclass(frozen=True)
class StepDurations:
    """A step takes base_us + us_per_prefill_token * its prefill tokens + us_per_decode_token * its decode tokens.

    Microseconds, from the start of its scheduling call to the start of the next one. The errors are those of the
    fitted steps.
    """

    base_us: float
    us_per_prefill_token: float
    us_per_decode_token: float
    num_steps: int
    variation: float
    """Standard deviation of the fitted durations, as a share of their mean. If it is small, a low `r_squared` does not
    matter.
    """
    r_squared: float
    """Share of the durations' variance that the fit explains; 1 at best."""
    median_relative_error: float
    """Median of the steps' errors, each as a share of the step's duration."""

    def of(self, num_prefill_tokens: int, num_decode_tokens: int) -> float:
        """Microseconds of one step."""
        return (
            self.base_us
            + self.us_per_prefill_token * num_prefill_tokens
            + self.us_per_decode_token * num_decode_tokens
        )


@dataclass(frozen=True)
class Clock:
    """Whether requests arrive in a replay by recorded step or by recorded time."""

    kind: ClockKind
    durations: StepDurations | None = None
    """With arrivals by time: how long a replayed step takes."""
    model: TimeModel | None = None
    """The same from all features of the batch. If it is there, it takes the place of `durations`."""
    counts_empty_calls: bool = False
    """By steps: a call whose forward runs nothing takes as long as a step, as in a simulation."""


BY_STEPS, BY_CALLS = Clock("steps"), Clock("steps", counts_empty_calls=True)


def call_times(recording: Recording) -> NDArray[np.int64]:
    """When each step's scheduling call began, in ns: the start of its forward minus the duration of the call.

    UsageError if the recording has no times.
    """
    forward_started = column(recording, "ts")
    if not len(forward_started) or (forward_started == MISSING).any():
        raise UsageError("this recording has no times", hint="--clock steps")
    return forward_started - 1000 * column_or_zero(recording, "schedule_us")


def fit_durations(recording: Recording) -> StepDurations:
    """Fit durations to the recorded steps by least squares; no term is negative.

    The fitted steps together take as long as recorded. A step after which no request ran or waited is not fitted,
    because the engine was idle until the next step. UsageError if too few steps remain.
    """
    durations = np.diff(call_times(recording)) / 1000.0
    prefill, decode = (
        column_or_zero(recording, "num_prefill_tokens"),
        column_or_zero(recording, "num_decode_tokens"),
    )
    busy = (requests_left(recording)[:-1] > 0) & (durations > 0)
    terms = np.stack([np.ones(len(durations)), prefill[:-1], decode[:-1]], axis=1)[busy].astype(np.float64)
    durations = durations[busy]
    if len(durations) < FEWEST:
        raise UsageError(
            "the durations of this recording's steps cannot be fitted",
            why=f"it has {len(durations)} steps with another right after them, and {FEWEST} are needed",
            hint="--clock steps",
        )
    factors = _solve(terms, durations)
    error = durations - terms @ factors
    spread = float(((durations - durations.mean()) ** 2).sum())
    return StepDurations(
        base_us=float(factors[0]),
        us_per_prefill_token=float(factors[1]),
        us_per_decode_token=float(factors[2]),
        num_steps=len(durations),
        variation=float(durations.std() / durations.mean()),
        r_squared=1.0 - float((error**2).sum()) / spread if spread > 0 else 1.0,
        median_relative_error=float(np.median(np.abs(error) / durations)),
    )


def requests_left(recording: Recording) -> NDArray[np.int64]:
    """Requests that ran or waited after each step, without those that it finished."""
    running, waiting = column_or_zero(recording, "num_running"), column_or_zero(recording, "num_waiting")
    steps = np.asarray(recording.steps["step"], dtype=np.int64)
    finished = recording.details.endings.finished_step
    finished = finished[finished != MISSING]
    index = np.searchsorted(steps, finished)
    num_finished = np.bincount(index[index < len(steps)], minlength=len(steps))
    num_remaining: NDArray[np.int64] = running + waiting - num_finished
    return num_remaining


def _solve(terms: NDArray[np.float64], durations: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factors of least squares. Terms that would be negative are left out, the most negative one first."""
    active = np.ones(terms.shape[1], dtype=bool)
    while True:
        factors = np.zeros(terms.shape[1])
        factors[active] = np.linalg.lstsq(terms[:, active], durations, rcond=None)[0]
        if (factors >= 0).all():
            return factors
        active[np.argmin(factors * terms.mean(axis=0))] = False
        if not active.any():
            return np.array([float(durations.mean()), 0.0, 0.0])
