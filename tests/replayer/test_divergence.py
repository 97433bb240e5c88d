"""A recording that its formula does not reproduce: the first step that differs, side by side, and the rule."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer import BUILTIN, ORIGINAL, RELEASE_2_6
from fdtrace.replayer.analysis.fidelity import recorded_formula, recorded_policy
from fdtrace.replayer.config import RATIO_VARIABLES
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.history.history import Divergence, Fidelity, History
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.step_state import formula_columns
from fdtrace.tui.report.report import histories_json, render_report

Make = Callable[[str], Recording]


@pytest.fixture
def claims(
    case_of: Callable[[str], dict[str, Any]],
    golden_of: Callable[[str, str], list[dict[str, Any]]],
    recording_of: Callable[..., Recording],
) -> Make:
    """What `original` did on a case, claimed to be of some formula."""
    golden = golden_of("speculative", "original")

    def make(formula: str) -> Recording:
        return recording_of(case_of("speculative"), golden, formula)

    return make


@pytest.fixture
def rows(golden_of: Callable[[str, str], list[dict[str, Any]]]) -> Callable[[int], list[StepRow]]:
    """The recorded rows: steps are numbered from 100."""
    golden = [line for line in golden_of("speculative", "original") if line["tokens"]]
    return lambda step: [StepRow(*row) for row in golden[step - 100]["rows"]]


def replayed(
    recording: Recording, formula: str, rows: Callable[[int], list[StepRow]]
) -> tuple[History, Fidelity]:
    history = Experiment(recording, rows).reschedule(BUILTIN[formula])
    assert history.outcome.fidelity is not None
    return history, history.outcome.fidelity


def divergence(fidelity: Fidelity) -> Divergence:
    assert fidelity.divergence is not None
    return fidelity.divergence


def test_a_wrong_claim_is_seen_at_the_first_step_that_differs(
    claims: Make, rows: Callable[[int], list[StepRow]], golden_of: Callable[[str, str], list[dict[str, Any]]]
) -> None:
    recording = claims("pr7499")
    _, fidelity = replayed(recording, "pr7499", rows)
    found = divergence(fidelity)
    original, claimed = (
        [line for line in golden_of("speculative", version) if line["tokens"]]
        for version in ("original", "pr7499")
    )
    first = next(i for i, (a, b) in enumerate(zip(original, claimed, strict=False)) if a != b)
    assert found.step == fidelity.first_divergence == first + 100
    assert fidelity.share < 0.5
    assert ("num_tokens", original[first]["tokens"], claimed[first]["tokens"]) in found.compared
    assert dict(found.before)["num_free_blocks"] == original[first - 1]["free_blocks"]
    assert found.rule.startswith("prefill")
    chunks = {tuple(row[:3]) for row in original[first]["rows"]} - {
        tuple(r[:3]) for r in claimed[first]["rows"]
    }
    assert {tuple(row.split()[:3]) for row in found.only_recorded} == {(a, b, str(c)) for a, b, c in chunks}
    assert any(reason.startswith("prefill") for reason in found.reasons)


def test_a_recorded_budget_names_the_formula_as_the_rule(
    claims: Make, rows: Callable[[int], list[StepRow]]
) -> None:
    recording = claims("pr7499")
    recording.steps["token_budget"][:] = recording.engine.max_num_batched_tokens  # what `original` hands out
    _, fidelity = replayed(recording, "pr7499", rows)
    assert divergence(fidelity).rule.startswith("the budget formula")
    by_budget = replace(recording, engine=replace(recording.engine, config={}))
    assert replayed(by_budget, "original", rows)[1].share == 1.0
    assert Experiment(by_budget, rows).reschedule(BUILTIN["pr7499"]).outcome.fidelity is None


TAMPERED = {
    "num_free_blocks": "KV blocks",
    "num_waiting": "admission",
    "num_preempted": "preemption",
    "num_tokens": "none: the recorded prefill and decode tokens are reproduced",
    "num_decode_tokens": "decodes",
}


@pytest.mark.parametrize("column", TAMPERED)
def test_a_tampered_step_is_found_and_its_rule_named(
    column: str, claims: Make, rows: Callable[[int], list[StepRow]]
) -> None:
    recording = claims("original")
    recording.steps[column][60] += 1
    _, fidelity = replayed(recording, "original", rows)
    found = divergence(fidelity)
    assert (found.step, fidelity.num_equal) == (160, recording.num_steps - 1)
    assert found.rule.startswith(TAMPERED[column])
    assert [name for name, a, b in found.compared if a != b] == [column]
    assert (found.only_recorded, found.only_replayed) == ((), ())


def test_a_lost_step_at_the_end_is_told_as_a_longer_replay(
    claims: Make, rows: Callable[[int], list[StepRow]]
) -> None:
    whole = claims("original")
    cut = replace(whole, steps={name: values[:-1] for name, values in whole.steps.items()})
    _, fidelity = replayed(cut, "original", rows)
    assert fidelity.divergence is None
    assert "the replay goes on" in fidelity.explanation


def test_the_report_shows_both_sides(claims: Make, rows: Callable[[int], list[StepRow]]) -> None:
    recording = claims("original")
    recording.steps["num_free_blocks"][60] += 5
    history, fidelity = replayed(recording, "original", rows)
    for width in (80, 160):
        out = io.StringIO()
        render_report(recording, [history], Console(file=out, width=width))
        text = " ".join(out.getvalue().split())
        values = next(v for v in divergence(fidelity).compared if v[0] == "num_free_blocks")
        assert f"num_free_blocks {values[1]} {values[2]} <" in text
        assert "first departs at step 160" in text
        assert "before it: num_running" in text
        assert "the rule that differed: KV blocks" in text
        assert "the replay decided:" in text
    loaded = histories_json(recording, [history])["formulas"][0]["fidelity"]
    assert loaded["divergence"]["step"] == 160
    assert loaded["share"] == pytest.approx(1 - 1 / recording.num_steps)


def test_memory_and_clock_are_told_once_for_all(claims: Make) -> None:
    recording = claims("original")
    recording.steps["reserved_bytes"][:] = 2**30 + 2**20 * np.maximum.accumulate(
        recording.steps["num_tokens"]
    )
    experiment = Experiment(recording, device_bytes=2 * 2**30)
    histories = [
        experiment.recorded(),
        *(experiment.reschedule(BUILTIN[name]) for name in ("original", "pr7499")),
    ]
    out = io.StringIO()
    render_report(recording, histories, Console(file=out, width=160))
    text = out.getvalue()
    step = int(recording.steps["step"][int(np.argmax(recording.steps["num_tokens"] > 1024))])
    assert f"original: a device of 2.0G would have run out at step {step}" in text
    assert "pr7499: a device of 2.0G would have held every step" in text
    assert text.count("clock: requests arrive by recorded step") == 1
    assert text.count("memory: 1.0M a token of the largest step so far, fitted from reserved_bytes") == 1


def test_how_blocks_were_reserved_tells_the_policy(claims: Make) -> None:
    recording = claims("pr7623")
    unnamed = replace(recording, engine=replace(recording.engine, config={}))
    assert recorded_policy(unnamed) is ORIGINAL
    ratio = {**unnamed.steps, "new_token_ratio": np.full(unnamed.num_steps, 0.7)}
    assert recorded_policy(replace(unnamed, steps=ratio)) is RELEASE_2_6
    unknown = {**unnamed.steps, "new_token_ratio": np.full(unnamed.num_steps, -1.0)}
    assert recorded_policy(replace(unnamed, steps=unknown)) is ORIGINAL
    newer = replace(unnamed, engine=replace(unnamed.engine, version="2.6.1"))
    assert recorded_policy(newer) is RELEASE_2_6


def test_a_checkout_of_release_2_6_that_reserves_as_before_is_known_by_its_variables(claims: Make) -> None:
    """Its version is not known, and its calls have no new-token ratio."""
    recording = claims("pr7623")
    engine = replace(recording.engine, config={}, version="", name="fastdeploy")
    set_by_user = {"FD_INIT_NEW_TOKEN_RATIO": "0.02", "FD_MIN_NEW_TOKEN_RATIO": "0.01"}
    assert recorded_policy(replace(recording, engine=replace(engine, env=set_by_user))) is ORIGINAL
    variables = set_by_user | dict.fromkeys(RATIO_VARIABLES - set_by_user.keys(), "0")
    assert recorded_policy(replace(recording, engine=replace(engine, env=variables))) is RELEASE_2_6


def test_of_formulas_with_equal_budgets_that_of_the_recorded_version_is_named(claims: Make) -> None:
    """`pr7499` and `pr7623` differ only without a speculative method."""
    recording = claims("pr7623")
    steps = dict(recording.steps)
    engine = replace(
        recording.engine, config={}, num_speculative_tokens=2, spec_method="mtp", name="fastdeploy"
    )
    unnamed = replace(recording, engine=engine, steps=steps)
    steps["token_budget"] = BUILTIN["pr7499"].budgets(formula_columns(unnamed), recording.num_steps)
    for version, name in (("2.5", "pr7499"), ("2.6", "pr7623")):
        assert recorded_formula(replace(unnamed, engine=replace(engine, version=version))) == name
