"""Formulas on vLLM's real `Scheduler`, which reads its budgets at each call. VLLM_PYTHON names a Python with vLLM."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main
from fdtrace.drivers.children import DriverPool
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import SchedulerConfig
from fdtrace.replayer.formulas import Formula, formula_from_class, parse_formula
from fdtrace.replayer.model.events import SCHEDULE, Arrived, Decision, Forwarded
from fdtrace.scheduler_option import given_schedulers
from tests.fdtrace.test_vllm_scheduler import PYTHON, real, trace_of
from tests.fdtrace.test_vllm_variants import base

Captured = pytest.CaptureFixture[str]
pytestmark = [real, pytest.mark.timeout(1200), pytest.mark.xdist_group("vllm variants")]

PLAIN = {
    "max_num_batched_tokens": 16,
    "max_num_seqs": 8,
    "num_blocks": 200,
    "block_size": 4,
    "max_model_len": 256,
}
DSPARK = {**PLAIN, "num_speculative_tokens": 4, "spec_method": "ngram"}
PARALLEL = {"speculative_config": {"parallel_drafting": True}}
"""A drafter that runs its K drafts at once, as DSpark does: each request pays K - 1 slots."""


@pytest.fixture(scope="module")
def children() -> Any:
    with DriverPool() as kept:
        yield kept


def first_calls(
    children: DriverPool, formula: Formula | str, prompts: list[int], calls: int = 1, **sizes: Any
) -> list[Decision]:
    """What the first calls decide of prompts that all wait."""
    config = SchedulerConfig(**{**DSPARK, **sizes})
    parsed = parse_formula(formula) if isinstance(formula, str) else formula
    scheduler = given_schedulers(["vllm"], PYTHON)[0].under(parsed)
    decisions = []
    with scheduler.open(config, {}, PARALLEL, children=children) as driven:
        for i, prompt in enumerate(prompts):
            driven.apply(Arrived(f"r{i}", prompt, 8, accepts=[0], num_output_tokens=8))
        for _ in range(calls):
            decisions.append(driven.apply(SCHEDULE))
            driven.apply(Forwarded())
    return decisions


def chunks(decision: Decision) -> list[int]:
    return [end - begin for _, begin, end in decision.chunks]


@pytest.mark.parametrize(
    ("formula", "prompts", "found"),
    [
        # The example of vLLM #52922, and the tests that #52996 describes.
        ("vllm_adaptive", [8, 8], [8, 2]),
        ("vllm_separate", [8, 8], [8, 8]),
        ("vllm_separate", [1, 1, 1, 1, 1], [1, 1, 1, 1]),
        ("vllm_adaptive", [30], [13]),  # one request pays its own slots alone
        ("vllm_static", [30], [16 - 3 * 4]),
        ("half: max_num_batched_tokens // 2", [30], [8]),
        ("more: 100; input_budget 40", [30], [30]),
        ("none: max_num_batched_tokens; draft_slots 0", [30], [16]),
        ("two: max_num_batched_tokens; max_requests 2", [1, 1, 1], [1, 1]),
        ("below: 5 - 9", [30], []),
    ],
)
def test_a_call_hands_out_what_the_formula_allows(
    formula: str, prompts: list[int], found: list[int], children: DriverPool
) -> None:
    sizes = {"max_num_seqs": 4} if formula == "vllm_static" else {}
    (decision,) = first_calls(children, formula, prompts, **sizes)
    assert chunks(decision) == found


def test_the_formula_sees_what_each_call_finds(children: DriverPool) -> None:
    seen = []

    class Watching:
        def budget(self, v: Any) -> int:
            seen.append((v.num_running, v.num_running_decodes, v.num_waiting, v.num_draft_slots))
            return int(v.max_num_batched_tokens)

    first_calls(children, formula_from_class(Watching), [4, 4, 40], calls=3)
    assert seen == [
        (0, 0, 3, 3),
        (2, 2, 1, 3),
        (2, 2, 1, 3),
    ]  # two decodes with their drafts and slots are 16


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("exact", r"charge of formula 'exact' cannot be used with --scheduler vllm.*\n.*vLLM itself takes"),
        ("mine: 10; admit 1; chunk_cap 4", "chunk_cap, admit of formula 'mine' cannot be used"),
        ("mine: 10 / num_running", "num_running is 0, and it divides"),
    ],
)
def test_what_vllm_cannot_take_is_refused(formula: str, said: str, children: DriverPool) -> None:
    with pytest.raises(UsageError) as caught:
        first_calls(children, formula, [4])
    assert re.search(said, str(caught.value), re.DOTALL)


@pytest.mark.parametrize("formula", ["mine: 10; max_requests 2", "mine: 10; draft_slots 1"])
def test_without_speculation_nothing_is_charged_for_a_request(formula: str, children: DriverPool) -> None:
    plain: dict[str, Any] = {"spec_method": None, "num_speculative_tokens": 0}
    with pytest.raises(UsageError, match="cannot be used without speculation"):
        first_calls(children, formula, [4], **plain)


def test_formulas_of_the_command_line_run_through_the_recorded_engines_scheduler(
    tmp_path: Path, capsys: Captured
) -> None:
    path = recorded_trace(tmp_path)
    half = "half: max_num_batched_tokens // 2"
    options = ["--scheduler", "vllm", "--scheduler-python", PYTHON, "--json"]
    more = ["-w", "both: formula=max_num_batched_tokens // 4, max_num_seqs=2", "--arrivals", "steps"]
    same = ["-f", "vllm_adaptive", "-f", "mine: max_num_batched_tokens"]
    assert main(["replay", str(path), "-f", half, *same, *more, *options]) == 0
    recorded, first, *as_recorded, own, both = json.loads(capsys.readouterr().out)["formulas"]
    assert (first["name"], own["name"], both["name"]) == ("half", "vllm", "both")
    assert [one["fidelity"]["share"] for one in as_recorded] == [1.0, 1.0], "they give the recorded budgets"
    assert (recorded["peak_tokens"], own["peak_tokens"]) == (64, 64)
    assert (first["peak_tokens"], both["peak_tokens"]) == (32, 16)
    assert both["settings"] == {"max_num_seqs": 2}
    assert own["fidelity"]["share"] == 1.0
    assert first["fidelity"] is None


def test_a_budget_that_never_allows_a_token_is_told(tmp_path: Path, capsys: Captured) -> None:
    path = recorded_trace(tmp_path)
    options = ["--scheduler", "vllm", "--scheduler-python", PYTHON, "--json"]
    assert main(["replay", str(path), "-f", "stuck: 0 if num_waiting else 64", *options]) == 0
    _, stuck, _ = json.loads(capsys.readouterr().out)["formulas"]
    assert "the budget is 0" in stuck["hang"]["cause"]


def recorded_trace(tmp_path: Path) -> Path:
    run, engine = base("small")
    return trace_of(run, engine, tmp_path / "t.duckdb")
