"""The allocator's high-water, fitted from what a recording reserved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import EngineInfo, LoadedDetails, Recording
from fdtrace.replayer.experiment import replay_recording
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.recorded.memory_fit import MemoryFit, first_over, fit_memory


def recording(tokens: list[int], reserved: list[int]) -> Recording:
    engine = EngineInfo(0, "sandbox", "1", 100, 16, 3, 64, 1000, 4096, spec_method="ngram")
    count = len(tokens)
    steps = {
        "step": np.arange(count),
        "num_tokens": np.array(tokens),
        "num_decode_tokens": np.zeros(count, dtype=np.int64),
        "num_prefill_tokens": np.array(tokens),
        "num_running_decodes": np.zeros(count, dtype=np.int64),
        "reserved_bytes": np.array(reserved),
    }
    nothing = np.zeros(0, dtype=np.int64)
    requests = {"arrived_step": nothing, "request": nothing}
    return Recording(engine, steps, requests, (), LoadedDetails.unknown(0))


def after_each(fit: MemoryFit, tokens: list[int]) -> list[int]:
    return [int(size) for size in fit.after_each({"num_tokens": np.array(tokens)})]


def test_growth_at_new_maxima_alone_is_a_line_over_a_floor() -> None:
    tokens = [50, 90, 80, 110, 120, 60, 140]
    reserved = [1000, 1000, 1000, 1100, 1200, 1200, 1400]
    fit = fit_memory(recording(tokens, reserved))
    assert fit is not None
    assert (fit.floor_bytes, fit.num_points) == (1000, 3)
    assert fit.bytes_per_token == pytest.approx(10)
    assert fit.max_error_bytes == pytest.approx(0, abs=1e-6)
    assert after_each(fit, [90]) == [1000]
    assert after_each(fit, [200]) == [2000]
    assert after_each(fit, tokens) == reserved
    assert first_over(np.array(reserved), 1150) == 4
    assert first_over(np.array(reserved), 1400) is None


def test_one_growth_is_a_line_from_the_end_of_the_flat_part() -> None:
    fit = fit_memory(recording([50, 100, 120], [1000, 1000, 1200]))
    assert fit is not None
    assert after_each(fit, [100]) == [1000]
    assert after_each(fit, [110]) == [1100]


def test_no_growth_is_flat_and_unknown_memory_is_none() -> None:
    fit = fit_memory(recording([50, 100, 120], [1000, 1000, 1000]))
    assert fit is not None
    assert after_each(fit, [10_000]) == [1000]
    assert fit.num_points == 0
    assert fit_memory(recording([50, 60], [MISSING, MISSING])) is None


def test_an_inexact_fit_tells_its_error() -> None:
    fit = fit_memory(recording([100, 110, 120, 130], [1000, 1150, 1150, 1300]))
    assert fit is not None
    assert 0 < fit.rms_error_bytes <= fit.max_error_bytes < 150


def test_a_formula_implies_its_high_water() -> None:
    found = recording([50, 90, 110, 120], [1000, 1000, 1100, 1200])
    recorded, original, tiny = replay_recording(
        found, [BUILTIN["original"], BUILTIN["pr7438"]], "as recorded"
    )
    assert recorded.outcome.reserved_high_water == 1200
    assert original.outcome.peak_tokens == 100
    assert original.outcome.reserved_high_water == 1000
    assert tiny.columns["reserved_bytes"].tolist() == [1000, 1000, 1000, 1000]


def with_columns(found: Recording, **columns: list[int]) -> Recording:
    return replace(found, steps={**found.steps, **{name: np.array(v) for name, v in columns.items()}})


def test_peaks_are_fitted_where_what_is_reserved_stays_flat() -> None:
    """A CPU gives memory back after each forward: its peaks go down again too."""
    flat = recording([50, 90, 80, 110, 120], [1000] * 5)
    fit = fit_memory(with_columns(flat, peak_reserved_bytes=[1500, 1900, 1800, 2100, 2200]))
    assert fit is not None
    assert fit.column == "peak_reserved_bytes"
    assert fit.bytes_per_token == pytest.approx(10)
    assert after_each(fit, [200]) == [3000]
    grows = recording([50, 90, 80, 110, 120], [1000, 1000, 1000, 1100, 1200])
    fit = fit_memory(with_columns(grows, peak_reserved_bytes=[1500, 1900, 1800, 2100, 2200]))
    assert fit is not None
    assert fit.column == "reserved_bytes"
    neither = fit_memory(with_columns(flat, peak_reserved_bytes=[1000] * 5))
    assert neither is not None
    assert neither.column == "reserved_bytes"


def test_the_step_at_which_a_device_would_have_run_out() -> None:
    found = recording([50, 90, 110, 120], [1000, 1000, 1100, 1200])
    recorded, original, tiny = replay_recording(
        found, [BUILTIN["original"], BUILTIN["pr7438"]], "as recorded", device_bytes=1099
    )
    assert (recorded.outcome.out_of_memory_step, recorded.outcome.device_bytes) == (2, 1099)
    assert original.outcome.out_of_memory_step is None
    assert tiny.outcome.out_of_memory_step is None
    assert original.outcome.memory is recorded.outcome.memory
    unasked = replay_recording(found, [], "as recorded")[0].outcome
    assert (unasked.device_bytes, unasked.out_of_memory_step) == (None, None)


def test_what_the_device_holds_besides_counts() -> None:
    found = recording([50, 90, 110, 120], [1000, 1000, 1100, 1200])
    found = with_columns(found, device_used_bytes=[1300, MISSING, 1400, 1500])
    fit = fit_memory(found)
    assert fit is not None
    assert fit.other_bytes == 300
    assert replay_recording(found, [], "as recorded", device_bytes=1400)[0].outcome.out_of_memory_step == 3
    assert first_over(np.array(after_each(fit, [50, 120])), 1400 - fit.other_bytes) == 1
