"""When the requests of a recording arrive in a replay: by recorded step, or by recorded time.

By time, a replayed step takes as long as its tokens say: durations are fitted from the recorded steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.step_state import column, known

ClockKind = Literal["steps", "time"]

FEWEST = 8
"""Steps that a fit needs."""


@dataclass(frozen=True)
class StepDurations:
    """A step takes base_us + us_per_prefill_token * its prefill tokens + us_per_decode_token * its decode tokens.

    From the start of its scheduling call to the start of the next, microseconds. The errors are those of the
    steps fitted.
    """

    base_us: float
    us_per_prefill_token: float
    us_per_decode_token: float
    num_steps: int
    variation: float
    """Standard deviation of the durations fitted, as a share of their mean: where it is small, little is left that a
    low `r_squared` could fail to explain.
    """
    r_squared: float
    """Share of the durations' variance that the fit explains, 1 at best."""
    median_relative_error: float
    """Half of the steps have a smaller error than this, as a share of their duration."""

    def of(self, num_prefill_tokens: int, num_decode_tokens: int) -> float:
        """Microseconds of one step."""
        return (
            self.base_us
            + self.us_per_prefill_token * num_prefill_tokens
            + self.us_per_decode_token * num_decode_tokens
        )


@dataclass(frozen=True)
class Clock:
    """By what requests arrive in a replay."""

    kind: ClockKind
    durations: StepDurations | None = None
    """By time: how long a replayed step takes."""


BY_STEPS = Clock("steps")


def call_times(recording: Recording) -> NDArray[np.int64]:
    """When each step's scheduling call began, ns: before its forward by as long as the call took.

    UsageError where the recording has no times.
    """
    began = column(recording, "ts")
    if not len(began) or (began == MISSING).any():
        raise UsageError("this recording has no times", hint="--clock steps")
    return began - 1000 * known(recording, "schedule_us")


def fit_durations(recording: Recording) -> StepDurations:
    """Least squares over the recorded steps, so that all of them together take as long as recorded; no term is
    negative.

    Steps after which nothing ran or waited are not fitted, as the time to the next one was spent idle.
    UsageError where too few steps are left.
    """
    took = np.diff(call_times(recording)) / 1000.0
    prefill, decode = known(recording, "num_prefill_tokens"), known(recording, "num_decode_tokens")
    busy = (_left(recording)[:-1] > 0) & (took > 0)
    terms = np.stack([np.ones(len(took)), prefill[:-1], decode[:-1]], axis=1)[busy].astype(np.float64)
    took = took[busy]
    if len(took) < FEWEST:
        raise UsageError(
            "the durations of this recording's steps cannot be fitted",
            why=f"it has {len(took)} steps with another right after them, and {FEWEST} are needed",
            hint="--clock steps",
        )
    factors = _solve(terms, took)
    error = took - terms @ factors
    spread = float(((took - took.mean()) ** 2).sum())
    return StepDurations(
        base_us=float(factors[0]),
        us_per_prefill_token=float(factors[1]),
        us_per_decode_token=float(factors[2]),
        num_steps=len(took),
        variation=float(took.std() / took.mean()),
        r_squared=1.0 - float((error**2).sum()) / spread if spread > 0 else 1.0,
        median_relative_error=float(np.median(np.abs(error) / took)),
    )


def _left(recording: Recording) -> NDArray[np.int64]:
    """Requests that ran or waited after each step, those that it finished taken off."""
    running, waiting = known(recording, "num_running"), known(recording, "num_waiting")
    steps = np.asarray(recording.steps["step"], dtype=np.int64)
    finished = recording.details.endings.finished_step
    finished = finished[finished != MISSING]
    index = np.searchsorted(steps, finished)
    gone = np.bincount(index[index < len(steps)], minlength=len(steps))
    left: NDArray[np.int64] = running + waiting - gone
    return left


def _solve(terms: NDArray[np.float64], took: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factors of least squares; a term that would be negative is left out, the largest such first."""
    active = np.ones(terms.shape[1], dtype=bool)
    while True:
        factors = np.zeros(terms.shape[1])
        factors[active] = np.linalg.lstsq(terms[:, active], took, rcond=None)[0]
        if (factors >= 0).all():
            return factors
        active[np.argmin(factors * terms.mean(axis=0))] = False
        if not active.any():
            return np.array([float(took.mean()), 0.0, 0.0])
