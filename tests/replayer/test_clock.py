"""Arrivals by recorded step or by recorded time, and the fit of step durations that the second needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fdtrace.recorder.trace.column_values import MISSING

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer import BUILTIN
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.recorded.step_durations import fit_durations
from fdtrace.replayer.workload.from_recording import workload_from_recording

RecordingOf = Callable[..., Recording]

BASE, PREFILL, DECODE = 2000.0, 3.0, 11.0
"""Microseconds of a step, of a prefill token, of a decode token."""
SCHEDULE = 40


def timed(recording: Recording, noise: float = 0.0) -> Recording:
    """The recording with times: each step takes what its tokens say; requests come just before their step."""
    steps = dict(recording.steps)
    took = BASE + PREFILL * steps["num_prefill_tokens"] + DECODE * steps["num_decode_tokens"]
    took = took * (1 + noise * np.random.default_rng(3).standard_normal(len(took)))
    calls = 10**18 + np.concatenate([[0], np.cumsum(took)])[:-1].astype(np.int64) * 1000
    steps["ts"] = calls + SCHEDULE * 1000
    steps["schedule_us"] = np.full(len(calls), SCHEDULE)
    requests = dict(recording.requests)
    index = np.searchsorted(steps["step"], requests["arrived_step"])
    requests["arrived_at"] = calls[np.minimum(index, len(calls) - 1)] - 1000
    return replace(recording, steps=steps, requests=requests)


@pytest.fixture
def recording(
    case_of: Callable[[str], dict[str, Any]],
    golden_of: Callable[[str, str], list[dict[str, Any]]],
    recording_of: RecordingOf,
) -> Recording:
    return timed(recording_of(case_of("speculative"), golden_of("speculative", "original"), "original"))


def test_durations_are_fitted_from_the_tokens(recording: Recording) -> None:
    fit = fit_durations(recording)
    assert fit.base_us == pytest.approx(BASE, rel=1e-3)
    assert fit.us_per_prefill_token == pytest.approx(PREFILL, rel=1e-3)
    assert fit.us_per_decode_token == pytest.approx(DECODE, rel=1e-3)
    assert fit.r_squared > 0.999
    assert fit.variation > 0.05
    assert fit.median_relative_error < 0.001
    assert fit.of(100, 10) == pytest.approx(BASE + 300 + 110, rel=1e-3)


def test_noise_is_told_as_error(recording: Recording) -> None:
    fit = fit_durations(timed(recording, noise=0.2))
    assert 0.05 < fit.median_relative_error < 0.3
    assert fit.r_squared < 0.999


def test_no_term_of_a_fit_is_negative(recording: Recording) -> None:
    steps = dict(recording.steps)
    steps["ts"] = steps["ts"][0] + np.arange(len(steps["ts"])) ** 2 * 1000  # slower and slower, whatever runs
    fit = fit_durations(replace(recording, steps=steps))
    assert min(fit.base_us, fit.us_per_prefill_token, fit.us_per_decode_token) >= 0


def test_by_time_a_recording_of_exact_durations_reproduces_itself(recording: Recording) -> None:
    by_time, by_steps = (
        Experiment(recording, clock=kind).reschedule(BUILTIN["original"]) for kind in ("time", "steps")
    )
    assert by_steps.outcome.fidelity is not None
    assert by_steps.outcome.fidelity.share == 1.0
    assert by_time.outcome.fidelity is not None
    assert by_time.outcome.fidelity.share > 0.95
    assert (by_steps.outcome.clock, by_time.outcome.clock) != (None, None)
    assert by_steps.outcome.clock.kind == "steps"  # type: ignore[union-attr]
    assert by_time.outcome.clock.kind == "time"  # type: ignore[union-attr]
    assert by_time.outcome.clock.durations == fit_durations(recording)  # type: ignore[union-attr]


def test_by_time_slower_steps_meet_more_requests(recording: Recording) -> None:
    """A formula of smaller steps makes more of them in the same time; by steps it would wait longer."""
    late = recording.requests["arrived_at"][-1] - recording.steps["ts"][0] + SCHEDULE * 1000
    workload = workload_from_recording(recording, "time")
    assert workload.requests[-1].arrival == pytest.approx(late / 1000, abs=2)
    assert all(a.arrival <= b.arrival for a, b in zip(workload.requests, workload.requests[1:], strict=False))
    history = Experiment(recording, clock="time").reschedule(BUILTIN["pr7438"])
    assert history.outcome.num_unfinished == 0


def test_a_recording_without_times_says_so(recording: Recording) -> None:
    steps = {**recording.steps, "ts": np.full(recording.num_steps, MISSING)}
    with pytest.raises(UsageError, match="has no times"):
        workload_from_recording(replace(recording, steps=steps), "time")
    few = {name: values[:5] for name, values in recording.steps.items()}
    with pytest.raises(UsageError, match="cannot be fitted"):
        fit_durations(replace(recording, steps=few))
