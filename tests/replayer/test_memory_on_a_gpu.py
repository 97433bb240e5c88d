"""The memory fit of recordings of an H100: transformers' continuous batching, 1.1 billion weights, a load that grows to
48 requests. `tests/data/gpu` has the columns of their steps.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fdtrace.recorder.trace.recording import EngineInfo, LoadedDetails, Recording
from fdtrace.replayer.experiment import replay_recording
from fdtrace.replayer.formulas.parse import parse_formula
from fdtrace.replayer.recorded.memory_fit import EXPLAINED, MemoryFit, fit_memory
from fdtrace.tui.report.sentences import shared_sentences

DATA = Path(__file__).resolve().parents[1] / "data" / "gpu"
MIB = 2**20


def recording(budget: int, first: int = 0, **config: int) -> Recording:
    """The recording under a budget, from its step `first` on."""
    with (DATA / f"h100_budget_{budget}.csv").open() as file:
        lines = list(csv.DictReader(file))[first:]
    steps = {name: np.array([int(line[name]) for line in lines]) for name in lines[0]}
    zeros = np.zeros(len(lines), dtype=np.int64)
    steps |= {"step": np.arange(len(lines)), "num_decode_tokens": zeros, "num_running_decodes": zeros}
    steps["num_prefill_tokens"] = steps["num_tokens"]
    engine = EngineInfo(0, "transformers", "5.17.0", budget, 64, 0, 32, 4096, 4096, config=config)
    nothing = np.zeros(0, dtype=np.int64)
    return Recording(
        engine, steps, {"arrived_step": nothing, "request": nothing}, (), LoadedDetails.unknown(0)
    )


def fit_of(found: Recording) -> MemoryFit:
    fit = fit_memory(found)
    assert fit is not None
    return fit


@pytest.mark.parametrize("budget", [1024, 2048])
def test_what_the_tensors_need_follows_tokens_and_cache_reads(budget: int) -> None:
    """Two thirds of what is reserved there is segments that no later step can use: 13 GiB for 7 GiB."""
    found = recording(budget)
    reserved = found.steps["reserved_bytes"]
    assert reserved.max() - reserved[0] > 6 * 2**30
    fit = fit_of(found)
    assert (fit.column, fit.cache_read) == ("peak_allocated_bytes", True)
    assert fit.explained > 0.99
    needed = found.steps["peak_allocated_bytes"]
    assert (
        np.abs(fit.after_each({**found.steps, "token_budget": np.array([budget])}) - needed).max() < 6 * MIB
    )
    # K and V of a KV cache token, copied for 32 heads of 64 16-bit numbers each (8 KiB), and its part of the masks
    assert 8192 <= fit.bytes_per_cache_read_token < 8192 + 2 * budget


def test_tokens_alone_are_not_trusted() -> None:
    """Without KV cache reads nothing explains the memory: no other budget gets a figure, and the report says so."""
    found = recording(1024)
    found = replace(found, steps={k: v for k, v in found.steps.items() if k != "num_cache_read_tokens"})
    fit = fit_of(found)
    assert fit.column == "reserved_bytes"
    assert fit.explained < EXPLAINED
    recorded, other = replay_recording(found, [parse_formula("other: 512")], "as recorded")
    assert recorded.outcome.reserved_high_water == found.steps["reserved_bytes"].max()
    assert other.outcome.reserved_high_water is None
    assert any("tokens do not explain it" in line for line in shared_sentences([recorded, other]))


def test_a_larger_budget_needs_larger_masks() -> None:
    """The mask has 16-bit numbers for each token of the budget and of the cache."""
    mask = 1024 * (131072 + 1024) * 2
    found = recording(1024, attention_mask_bytes=mask)
    same, larger = replay_recording(found, [parse_formula("larger: 2048")], "as recorded")
    needed, more = same.outcome.allocated_high_water, larger.outcome.allocated_high_water
    assert needed == found.steps["peak_allocated_bytes"].max()
    assert same.outcome.reserved_high_water is None
    assert more is not None
    assert needed is not None
    of_larger_budget = int(recording(2048).steps["allocated_bytes"][0])
    of_budget = int(found.steps["allocated_bytes"][0])
    assert more - needed == pytest.approx(of_larger_budget - of_budget, rel=0.03)


def test_steps_of_one_size_say_nothing_of_larger_ones() -> None:
    found = recording(1024)
    full = found.steps["num_tokens"] == 1024
    found = replace(found, steps={name: column[full] for name, column in found.steps.items()})
    fit = fit_of(found)
    assert not fit.extrapolates
    assert fit.holds_for({"num_tokens": np.array([1000])})
    assert not fit.holds_for({"num_tokens": np.array([1025])})


def test_the_step_that_runs_out_is_the_first_that_needs_too_much() -> None:
    found = recording(2048)
    needed = found.steps["peak_allocated_bytes"]
    fit = fit_of(found)
    device = int(needed[10]) + fit.other_bytes
    outcome = replay_recording(found, [], "as recorded", device_bytes=device)[0].outcome
    assert outcome.out_of_memory_step == int(np.flatnonzero(needed > needed[10])[0])
