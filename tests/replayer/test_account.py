"""Steps explained: the budget as arithmetic, what was charged, why the queue waited, a request's life."""

from __future__ import annotations

import numpy as np
import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import BUILTIN, ORIGINAL, History, Replay, history_of, parse_formula, workload_from_case
from fdtrace.replayer.analysis.explain_step import Explainer
from fdtrace.replayer.analysis.request_story import story_of
from fdtrace.replayer.analysis.step_account import StepAccounting
from fdtrace.replayer.formulas.worked_example import budget_and_charge, substitute_values
from fdtrace.replayer.history.condition import Condition
from fdtrace.replayer.workload.workload import Workload
from tests.tui.recordings import case, golden, lab_recording, plain_steps, recording_of

VALUES = {
    "max_num_batched_tokens": 2048, "max_num_seqs": 128, "num_speculative_tokens": 4, "num_draft_tokens": 4,
    "speculation": 1, "block_size": 64, "num_blocks": 10, "max_model_len": 99, "num_running_decodes": 61,
    "num_running": 70, "num_waiting": 2,
}  # fmt: skip


def replayed(name: str, formula: str) -> tuple[Workload, History]:
    workload = workload_from_case(case(name))
    run = Replay(workload, BUILTIN.get(formula) or parse_formula(formula), ORIGINAL)
    run.run()
    return workload, history_of(run)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("max_num_batched_tokens - num_running_decodes * (num_speculative_tokens + 1)",
         ("2048 − 61×(4+1)", "1743")),
        ("max(max_num_batched_tokens - max_num_seqs * 20, min(max_num_batched_tokens, 512))",
         ("max(2048 − 128×20, min(2048, 512))", "max(−512, 512)", "512")),
        ("max_num_seqs if not speculation else max_num_seqs / num_waiting - 1",
         ("128 if not 1 else 128/2 − 1", "128/2 − 1", "63")),
        ("num_running // (num_waiting - 4) % 8", ("70//(2−4)%8", "5")),
        ("-(num_waiting - 3) * 7", ("−(2 − 3) × 7", "7")),
    ],
)  # fmt: skip
def test_arithmetic_in_numbers(text: str, lines: tuple[str, ...]) -> None:
    found = substitute_values(text, VALUES)
    assert found.lines == lines


def test_arithmetic_says_which_side_of_a_choice_was_taken() -> None:
    floor = substitute_values("max(max_num_batched_tokens - max_num_seqs * 20, 512)", VALUES)
    assert floor.because == ("max takes 512, more than max_num_batched_tokens − max_num_seqs × 20 = −512",)
    assert substitute_values("max(512, 512)", VALUES).because == ()
    taken = substitute_values("7 if speculation else min(1, 2)", VALUES)
    assert taken.because == ("`speculation` holds: the value is 7",)


@pytest.mark.parametrize("name", ["tight_blocks", "full_reservation", "no_speculation", "preemptions"])
@pytest.mark.parametrize("formula", ["original", "pr7438", "pr7499", "pr7623", "exact", "ternary"])
def test_the_arithmetic_of_every_step_gives_its_budget(name: str, formula: str) -> None:
    _, history = replayed(name, formula)
    accountant = _accountant(name)
    steps = history.columns["step"].tolist()
    for step in steps[:: max(5, len(steps) // 100)]:
        account = accountant.account(history, BUILTIN[formula], step)
        assert account is not None
        assert account.arithmetic is not None
        assert account.arithmetic.value == account["token_budget"]
        charged, decodes = account.charged_decodes, account["num_running_decodes"]
        assert charged is not None
        assert decodes is not None
        if account.charge:
            assert 0 <= charged <= decodes * account.charge + account.charge


def _accountant(name: str) -> StepAccounting:
    config = workload_from_case(case(name)).config
    sizes = ("max_num_batched_tokens", "max_num_seqs", "num_blocks", "block_size", "max_model_len")
    engine = {size: getattr(config, size) for size in (*sizes, "num_speculative_tokens", "spec_method")}
    return StepAccounting(recording_of(plain_steps([1]), **engine))


def test_tight_blocks_shows_that_the_floor_is_why_pr7438_did_not_help() -> None:
    _, history = replayed("tight_blocks", "pr7438")
    accountant = _accountant("tight_blocks")
    step = int(history.columns["step"][history.exceeded[0]])
    account = accountant.account(history, BUILTIN["pr7438"], step)
    assert account is not None
    assert account.arithmetic is not None
    assert account.arithmetic.lines[:2] == ("max(512 − 32×(3+1), min(512, 512))", "max(384, 512)")
    assert "min(max_num_batched_tokens, 512) = 512" in account.arithmetic.because[0]
    assert account.excess > 0
    assert account.uncounted == 3 * ((account["num_decode_tokens"] or 0) // 4)


@pytest.mark.parametrize("name", ["tight_blocks", "preemptions"])
def test_explained_steps_are_those_of_the_replay(name: str) -> None:
    workload, history = replayed(name, "pr7499")
    explainer = Explainer(lambda: workload, BUILTIN["pr7499"], ORIGINAL)
    steps = history.columns["step"].tolist()
    for step in [steps[5], steps[40], steps[41], steps[10], steps[-1]]:
        at = steps.index(step)
        found = explainer.explain(step)
        chunks = [(r.request_id, r.num_tokens) for r in history.rows(step) if r.kind == "prefill"]
        decided = [(name, end - start) for name, start, end in found.decisions[-1].chunks]
        assert decided == chunks
        assert found.forward is not None
        assert found.forward.num_tokens == history.columns["num_tokens"][at]
        assert (found.decisions[-1].not_admitted or "") == history.columns["not_admitted"][at]
        prefills = [r for d in found.decisions for r in d.reasons if r.kind == "prefill"]
        assert [reason.request_id for reason in prefills] == [row[0] for row in chunks]


def test_a_hang_is_explained_by_its_last_call() -> None:
    workload, history = replayed("full_reservation", "pr7499")
    assert history.outcome.hang is not None
    found = Explainer(lambda: workload, BUILTIN["pr7499"], ORIGINAL).explain(history.outcome.hang.step)
    assert found.decisions[-1].is_empty
    assert found.decisions[-1].token_budget <= 0
    account = _accountant("full_reservation").hung(history, BUILTIN["pr7499"], found)
    assert account.arithmetic is not None
    assert account.arithmetic.value == account["token_budget"] == found.decisions[-1].token_budget


@pytest.mark.parametrize("version", ["original", "pr7499"])
def test_a_requests_steps_are_those_that_fastdeploy_ran(version: str) -> None:
    _, history = replayed("preemptions", version)
    lines = golden("preemptions", version)
    assert history.request_steps is not None
    offset = int(history.columns["step"][0])
    by_request: dict[str, list[tuple[str, int, int]]] = {}
    for line in lines:
        for request, kind, ran, computed in line["rows"]:
            by_request.setdefault(request, []).append((kind, ran, computed))
    for request in list(by_request)[:12]:
        found = history.request_steps(request)
        rows = [(row.kind, row.num_tokens, row.num_computed_tokens) for _, row in found]
        assert rows == by_request[request]
        assert all(any(row == one for one in history.rows(step)) for step, row in found[::4])
        assert min(step for step, _ in found) >= offset


def test_a_story_tells_chunks_decodes_and_restarts() -> None:
    _, history = replayed("preemptions", "original")
    preempted = next(name for line in golden("preemptions", "original") for name in line["preempted"])
    story = story_of(lab_recording("preemptions"), history, preempted)
    assert story is not None
    assert history.request_steps is not None
    assert story.restarts
    rows = history.request_steps(preempted)
    assert sum(part.num_steps for part in story.decodes) == sum(row.kind == "decode" for _, row in rows)
    assert sum(part.num_tokens for part in story.chunks) == sum(
        row.num_tokens for _, row in rows if row.kind == "prefill"
    )


def test_conditions_hold_where_numpy_says() -> None:
    _, history = replayed("tight_blocks", "original")
    columns = history.columns
    hits = Condition("num_free_blocks < 8 and num_waiting > 0").steps(history)
    where = (columns["num_free_blocks"] < 8) & (columns["num_waiting"] > 0)
    assert where.any()
    assert np.array_equal(hits, columns["step"][where])
    over = Condition("num_tokens > limit").steps(history)
    assert np.array_equal(over, columns["step"][history.exceeded])
    at = int(history.exceeded[0])
    assert Condition("excess").value(history, at) == columns["num_tokens"][at] - history.limit


def test_unknown_columns_never_hit() -> None:
    _, history = replayed("tight_blocks", "original")
    assert not len(Condition("num_missing_blocks < 0").steps(history))
    assert not len(Condition("device_used_bytes < 5").steps(history))
    assert Condition("device_used_bytes").value(history, 0) is None


def test_a_bad_condition_says_where() -> None:
    with pytest.raises(UsageError) as error:
        Condition("num_free_block < 8")
    assert "did you mean 'num_free_blocks'" in str(error.value)
    lines = str(error.value).splitlines()
    (at,) = (at for at, line in enumerate(lines) if line.strip() == "^" * len("num_free_block"))
    assert lines[at].index("^") == lines[at - 1].index("num_free_block")


def test_the_parts_of_a_formulas_text() -> None:
    assert budget_and_charge("a - b; charge 1 + 2") == ("a - b", "1 + 2")
    assert budget_and_charge("a") == ("a", "0")
