"""A replay that sums its batches up as they change: the same figures as from the rows of every step."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from fdtrace.replayer import BUILTIN
from fdtrace.replayer.analysis.token_times import replayed_latencies
from fdtrace.replayer.config import ORIGINAL, POLICIES, Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.history import Outcome
from fdtrace.replayer.model.request import AcceptancePlan
from fdtrace.replayer.recorded.step_durations import Clock
from fdtrace.replayer.recorded.time_forms import Roofline, SumOfTerms, TimeForm
from fdtrace.replayer.recorded.time_model import HeldOutErrors, TimeModel
from fdtrace.replayer.replay.replay_history import history_of
from fdtrace.replayer.replay.summed_log import SummedLog
from fdtrace.replayer.replay.timed_steps import TimedSteps
from fdtrace.replayer.replay.workload_replay import Replay
from fdtrace.replayer.search.draw_case import SearchSpace, drawn_case
from fdtrace.replayer.workload.from_case import workload_from_case
from fdtrace.replayer.workload.workload import Workload
from tests.replayer.conftest import DATA, read_case

GOLDEN = sorted(path.name for path in (DATA / "golden").iterdir())
SLO = {"ttft": 400_000.0, "itl": 30_000.0, "tpot": 25_000.0, "latency": 9e6}
US_A_STEP = 10_000

ADDITIVE = SumOfTerms("additive", np.array([9000.0, 31.7, 12.1, 900.3, 0.71, 0.013]), (0, 2, 1, 3, 4))
BENT = SumOfTerms("hinges", np.array([7000.0, 3.3, 0.0, 90.1, 21.7]), (0, 2), ((0, -1.0), (2, 12.5)))
SHAPES = SumOfTerms("shapes", np.array([8000.0, 27.1, 0.9, 3000.7]), (0, 3, 5))
ROOFLINE = Roofline(np.array([6000.3, 1.7]), np.array([5000.1, 30.3, 0.017]))


def timed(workload: Workload, form: TimeForm) -> Workload:
    """The workload by time: an arrival's step as so many steps' time."""
    held = HeldOutErrors("none", 1, 0.0, 0.0)
    model = TimeModel(form, 100, 1e4, 0.1, (), (held, held), held, (64.0, 2.0, 30.0, 900.0, 9000.0))
    requests = tuple(
        request._replace(
            arrival=request.arrival * US_A_STEP,
            abort_after=None if request.abort_after is None else request.abort_after * US_A_STEP,
        )
        for request in workload.requests
    )
    return replace(workload, requests=requests, clock=Clock("time", None, model), max_steps=4000)


def both(workload: Workload, formula: Formula, policy: Policy) -> tuple[Replay, Replay]:
    runs = Replay(workload, formula, policy), Replay(workload, formula, policy, sums=False)
    for run in runs:
        run.run()
    return runs


def outcome(run: Replay) -> Outcome:
    return replace(history_of(run).outcome, clock=None, latency=replayed_latencies(run, SLO))


def assert_equal(workload: Workload, formula: Formula, policy: Policy) -> Replay:
    lean, full = both(workload, formula, policy)
    assert isinstance(lean.log, SummedLog)
    assert isinstance(full.timed, TimedSteps)
    assert lean.timed is not None
    assert lean.timed.ends_us.tolist() == full.timed.ends_us.tolist()
    assert outcome(lean) == outcome(full)
    ids = [request.request_id for request in workload.requests]
    one, other = lean.log.reader(), full.log.reader()
    assert all(one(step) == other(step) for step in range(0, lean.log.num_steps, 31))
    assert all(one.request_steps(name) == other.request_steps(name) for name in ids[:5])
    return lean


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_cases_have_the_same_figures(name: str) -> None:
    """The last stalls in hundreds of steps, and hangs."""
    for formula, form in (("original", ADDITIVE), ("release_2_6", BENT)):
        by = BUILTIN[formula]
        policy = ORIGINAL if by.policy is None else POLICIES[by.policy]
        run = assert_equal(timed(workload_from_case(read_case(name)), form), by, policy)
        if (name, formula) == ("full_reservation", "release_2_6"):
            assert run.log.columns()["num_stalled"].sum() > 1000


def test_drawn_workloads_have_the_same_figures() -> None:
    chance, seen = Random("summed"), {"preempted": 0, "aborted": 0, "beyond": 0}
    for i in range(90):
        workload = workload_from_case(drawn_case(chance, SearchSpace()))
        formula = BUILTIN[("original", "pr7499", "exact", "release_2_6")[i % 4]]
        policy = ORIGINAL if formula.policy is None else POLICIES[formula.policy]
        run = assert_equal(timed(workload, (ADDITIVE, BENT, ROOFLINE, SHAPES)[i // 4 % 4]), formula, policy)
        columns = run.log.columns()
        seen["preempted"] += int(columns["num_preempted"].sum())
        seen["aborted"] += sum(request.abort_after is not None for request in workload.requests)
        seen["beyond"] += 0 if run.timed is None else run.timed.num_beyond
    assert min(seen.values()) > 10, seen


def test_roles_keep_the_rows() -> None:
    case = {**read_case("no_speculation"), "role": "prefill"}
    run = Replay(timed(workload_from_case(case), ADDITIVE), BUILTIN["exact"], ORIGINAL)
    assert isinstance(run.timed, TimedSteps)


def test_running_sums_go_on_after_the_last_acceptance() -> None:
    for accepts in ([], [2], [1, 0, 3], np.array([3, 0], np.uint8)):
        plan = AcceptancePlan(accepts, 99)
        for first in range(6):
            for count in range(7):
                expected = [plan.after(first + i) for i in range(count)]
                assert plan.after_each(first, count).tolist() == expected


@pytest.mark.parametrize("form", [ADDITIVE, BENT, ROOFLINE, SHAPES])
def test_one_step_takes_as_long_by_itself_as_among_others(form: TimeForm) -> None:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 40, (50, 6)).astype(float)
    alone = [form.us_of_step(row) for row in features.tolist()]
    assert alone == pytest.approx(form.us(features).tolist(), rel=1e-12)
