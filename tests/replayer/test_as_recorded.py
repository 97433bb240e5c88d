"""Formulas over the recorded states: exact, step for step, and quick over many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import EngineInfo, LoadedDetails, Recording
from fdtrace.replayer.analysis.fidelity import has_budgets_of, recorded_formula
from fdtrace.replayer.experiment import replay_recording
from fdtrace.replayer.formulas import BUILTIN, MODEL_FORMULAS, parse_formula
from fdtrace.replayer.history.as_recorded import as_recorded_history, recorded_history
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.step_state import formula_columns, running_decodes


def recording(**columns: list[int]) -> Recording:
    """A recording of hand-made steps, M 100 and K 3."""
    engine = EngineInfo(0, "sandbox", "1", 100, 16, 3, 64, 1000, 4096, spec_method="ngram")
    length = len(next(iter(columns.values())))
    steps = {"step": np.arange(10, 10 + length), **{n: np.array(v) for n, v in columns.items()}}
    nothing = np.zeros(0, dtype=np.int64)
    requests: dict[str, Any] = {"arrived_step": nothing, "request": nothing}
    return Recording(engine, steps, requests, (), LoadedDetails.unknown(0))


STEPS = {
    "num_tokens": [60, 115, 44],
    "num_decode_tokens": [0, 40, 44],
    "num_prefill_tokens": [60, 75, 0],
    "num_draft_tokens": [0, 30, 33],
    "num_running_decodes": [0, 10, 11],
    "num_running": [1, 11, 11],
    "num_waiting": [0, 2, 2],
}


def test_prefill_is_held_back_and_decodes_are_not() -> None:
    history = as_recorded_history(recording(**STEPS), BUILTIN["pr7499"])
    assert history.columns["token_budget"].tolist() == [100, 60, 56]
    assert history.columns["allowed"].tolist() == [100, 100, 100]
    assert history.columns["num_tokens"].tolist() == [60, 100, 44]
    assert history.outcome.num_exceeded == 0
    assert history.outcome.num_refused_tokens == 0


def test_a_formula_that_charges_too_little_exceeds() -> None:
    history = as_recorded_history(recording(**STEPS), BUILTIN["original"])
    assert history.columns["allowed"].tolist() == [100, 130, 133]
    assert history.columns["num_tokens"].tolist() == [60, 115, 44]
    assert history.exceeded.tolist() == [1]
    assert (history.outcome.num_exceeded, history.outcome.max_excess) == (1, 15)


def test_a_history_says_what_it_is() -> None:
    history = as_recorded_history(recording(**STEPS), BUILTIN["original"])
    assert repr(history) == "<History 'original' (as recorded): 3 steps, 1 exceed the limit of 100>"
    assert repr(recorded_history(recording(**STEPS), rows=lambda _step: [])) == (
        "<History 'recorded' (recorded): 3 steps, 1 exceed the limit of 100>"
    )


def test_tokens_refused_though_they_fitted() -> None:
    history = as_recorded_history(recording(**STEPS), parse_formula("tiny: 5"))
    assert history.columns["num_tokens"].tolist() == [5, 45, 44]
    assert history.outcome.num_refused_tokens == 55 + 55


def test_running_decodes_are_derived_where_they_are_missing() -> None:
    steps = {**STEPS, "num_running_decodes": [MISSING, MISSING, 11], "num_stalled": [0, 1, 0]}
    assert running_decodes(recording(**steps)).tolist() == [0, 11, 11]


def test_the_formula_that_recorded_is_found_by_its_budgets() -> None:
    assert recorded_formula(recording(**STEPS, token_budget=[100, 60, 56])) == "pr7499"
    assert recorded_formula(recording(**STEPS, token_budget=[100, 100, 100])) == "original"
    assert recorded_formula(recording(**STEPS, token_budget=[1, 2, 3])) is None
    assert recorded_formula(recording(**STEPS)) is None


def test_budgets_are_compared_with_those_of_a_formula() -> None:
    """An engine's own scheduler by this formula is to reproduce the recording."""
    whole = recording(**STEPS, token_budget=[100, 100, MISSING], input_budget=[100, 100, 100])
    assert has_budgets_of(whole, parse_formula("mine: max_num_batched_tokens"))
    assert has_budgets_of(whole, BUILTIN["vllm_adaptive"])
    assert not has_budgets_of(whole, parse_formula("half: max_num_batched_tokens // 2"))
    assert not has_budgets_of(whole, parse_formula("less: 100; input_budget 99"))
    assert not has_budgets_of(whole, parse_formula("slots: 100; draft_slots 1"))
    assert not has_budgets_of(whole, parse_formula("few: 100; max_requests 16"))
    one = recording(**STEPS, token_budget=[100, 100, 100])
    assert has_budgets_of(one, parse_formula("mine: 100"))
    assert has_budgets_of(one, BUILTIN["vllm_adaptive"]), "the second budget is the engine's own"
    assert not has_budgets_of(one, parse_formula("less: 100; input_budget 99"))
    assert not has_budgets_of(recording(**STEPS), parse_formula("mine: 100"))


def test_rows_are_cut_where_the_allowance_ends() -> None:
    rows = [StepRow("a", "prefill", 50, 0), StepRow("b", "prefill", 25, 7), StepRow("c", "decode", 4, 90)]
    history = as_recorded_history(
        recording(**STEPS), BUILTIN["pr7499"], rows=lambda step: rows if step == 11 else []
    )
    assert history.rows(11) == [StepRow("a", "prefill", 50, 0), StepRow("b", "prefill", 10, 7), rows[2]]


def test_a_recording_as_recorded_under_its_own_formula_is_itself(
    case_of: Callable[[str], dict[str, Any]],
    golden_of: Callable[[str, str], list[dict[str, Any]]],
    recording_of: Callable[..., Recording],
) -> None:
    for version in ("original", "pr7499", "pr7623"):
        found = recording_of(case_of("speculative"), golden_of("speculative", version), version)
        recorded, replayed = replay_recording(found, [BUILTIN[version]], "as recorded")
        assert recorded.how == "recorded"
        assert replayed.how == "as recorded"
        assert replayed.columns["num_tokens"].tolist() == recorded.columns["num_tokens"].tolist()
        assert replayed.outcome.num_exceeded == recorded.outcome.num_exceeded


def test_every_formula_does_a_million_steps(recwarn: pytest.WarningsRecorder) -> None:
    rng = np.random.default_rng(1)
    count = 1_000_000
    decodes = rng.integers(0, 17, count)
    found = recording(
        num_running_decodes=decodes,  # type: ignore[arg-type]
        num_decode_tokens=decodes * 4,  # type: ignore[arg-type]
        num_prefill_tokens=rng.integers(0, 60, count),  # type: ignore[arg-type]
        num_running=decodes + 1,  # type: ignore[arg-type]
        num_waiting=rng.integers(0, 9, count),  # type: ignore[arg-type]
    )
    columns = formula_columns(found)
    mine = parse_formula(
        "mine: max_num_batched_tokens - num_running * 4 if num_waiting > 3 else num_blocks // 9"
    )
    for formula in (*MODEL_FORMULAS.values(), mine):
        history = as_recorded_history(found, formula)
        assert len(history.columns["num_tokens"]) == count
        at = 123_456
        assert isinstance(columns["num_running_decodes"], np.ndarray)
        charged = int(formula.charges(columns, count)[at] * decodes[at])
        allowance = max(0, int(history.columns["token_budget"][at]) - charged)
        assert history.columns["allowed"][at] == decodes[at] * 4 + allowance
    assert not recwarn.list


def test_the_recording_is_a_history() -> None:
    history = recorded_history(recording(**STEPS, num_preempted=[0, 2, 0]))
    assert history.outcome.num_exceeded == 1
    assert history.outcome.num_preemptions == 2
    assert history.outcome.num_refused_tokens is None
    assert (history.columns["num_free_blocks"] == MISSING).all()
