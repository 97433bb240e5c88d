"""The allocator's high-water, fitted from what a recording reserved."""

from __future__ import annotations

import numpy as np
import pytest

from recorder.recording import MISSING, EngineInfo, Recording
from replayer.compare import replay
from replayer.formulas import BUILTIN
from replayer.memory import fit_memory


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
    return Recording(
        engine, steps, requests, nothing.astype(np.int16), np.zeros(1, np.int64), nothing, nothing
    )


def test_growth_at_new_maxima_alone_is_a_line_over_a_floor() -> None:
    tokens = [50, 90, 80, 110, 120, 60, 140]
    reserved = [1000, 1000, 1000, 1100, 1200, 1200, 1400]
    fit = fit_memory(recording(tokens, reserved))
    assert fit is not None
    assert (fit.floor_bytes, fit.num_points) == (1000, 3)
    assert fit.bytes_per_token == pytest.approx(10)
    assert fit.max_error_bytes == pytest.approx(0, abs=1e-6)
    assert fit.high_water(90) == 1000
    assert fit.high_water(200) == 2000
    assert fit.reserved(np.array(tokens)).tolist() == reserved
    assert fit.first_over(np.array(tokens), 1150) == 4
    assert fit.first_over(np.array(tokens), 1400) is None


def test_one_growth_is_a_line_from_the_end_of_the_flat_part() -> None:
    fit = fit_memory(recording([50, 100, 120], [1000, 1000, 1200]))
    assert fit is not None
    assert fit.high_water(100) == 1000
    assert fit.high_water(110) == 1100


def test_no_growth_is_flat_and_unknown_memory_is_none() -> None:
    fit = fit_memory(recording([50, 100, 120], [1000, 1000, 1000]))
    assert fit is not None
    assert fit.high_water(10_000) == 1000
    assert fit.num_points == 0
    assert fit_memory(recording([50, 60], [MISSING, MISSING])) is None


def test_an_inexact_fit_tells_its_error() -> None:
    fit = fit_memory(recording([100, 110, 120, 130], [1000, 1150, 1150, 1300]))
    assert fit is not None
    assert 0 < fit.rms_error_bytes <= fit.max_error_bytes < 150


def test_a_formula_implies_its_high_water() -> None:
    found = recording([50, 90, 110, 120], [1000, 1000, 1100, 1200])
    recorded, original, tiny = replay(found, [BUILTIN["original"], BUILTIN["pr7438"]], "as recorded")
    assert recorded.outcome.reserved_high_water == 1200
    assert original.outcome.peak_tokens == 100
    assert original.outcome.reserved_high_water == 1000
    assert tiny.columns["reserved_bytes"].tolist() == [1000, 1000, 1000, 1000]
