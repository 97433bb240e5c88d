"""A deployment's parts, each on its own time: what a replay under another formula goes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer import ORIGINAL, RELEASE_2_6, Policy, SchedulerConfig
from fdtrace.replayer.analysis.explain_pipeline import PipelineExplainer
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.model.events import Resumed
from fdtrace.replayer.recorded.pipeline_fit import fit_pipeline, is_lockstep
from fdtrace.replayer.recorded.pipeline_times import PipelineTimes, SizeDependentTime, StepTimeSeries
from fdtrace.replayer.replay.beginning import PipelineStart
from fdtrace.replayer.replay.fetching import ClientQueue, SentRequest
from fdtrace.replayer.replay.pipeline import PipelineReplay
from fdtrace.replayer.replay.worker import Slot
from fdtrace.replayer.workload.from_recording import workload_from_recording
from fdtrace.replayer.workload.workload import Workload, WorkRequest
from tests.replayer.test_deployments import opened, order_of, with_order

CONFIG = SchedulerConfig(max_num_batched_tokens=512, max_num_seqs=8, num_blocks=200, max_model_len=4096)
FORWARD, PAUSE, HAND_OVER, REST, CALL = 10.0, 1.0, 3.0, 5.0, 0.5


def always(value: float) -> StepTimeSeries:
    return StepTimeSeries(value, np.zeros(0))


def of_any_size(value: float) -> SizeDependentTime:
    return SizeDependentTime(value, {}, {})


TIMES = PipelineTimes(
    forward_terms=(FORWARD, 0.0, 0.0), forward_rest=always(0.0), pause=always(PAUSE),
    pause_with_tasks=of_any_size(PAUSE), check=0.0, hand_over=of_any_size(HAND_OVER), next_call=always(0.2),
    rest=always(REST), first_output=0.1, output_row=0.0, output_wait=always(0.0), leave=always(1.0), free=0.1,
    fetch=0.0, call=CALL, disturbed=0.0,
)  # fmt: skip


def request(name: str, prompt: int = 100, output: int = 3, **more: Any) -> WorkRequest:
    return WorkRequest(name, 0, prompt, output, max_tokens=output, **more)


def replayed(
    sent: Sequence[tuple[WorkRequest, float]],
    times: PipelineTimes = TIMES,
    *,
    formula: str = "original",
    policy: Policy = ORIGINAL,
    config: SchedulerConfig = CONFIG,
    **beginning: Any,
) -> PipelineReplay:
    workload = Workload(config, tuple(one for one, _ in sent))
    start = PipelineStart(0.0, tuple(SentRequest(one, at) for one, at in sent), **beginning)
    run = PipelineReplay(workload, times, start, BUILTIN[formula], policy)
    run.run()
    return run


def rows(run: PipelineReplay, step: int) -> dict[str, int]:
    return {row.request_id: row.num_tokens for row in run.log.reader()(step)}


def test_a_request_waits_for_the_next_call_its_tasks_and_a_forward() -> None:
    """It comes at 7 ms. Calls come each 5 ms and fetch before; tasks are 3 ms on their way, an idle worker looks each
    1.1 ms.
    """
    run = replayed([(request("a"), 7.0)])
    call = 10.0
    assert run.first_tokens["a"] == pytest.approx(call + HAND_OVER + 0.55 + PAUSE + FORWARD)
    assert run.num_unfinished == 0
    assert (run.hang, run.cut) == (None, None)


def test_tasks_enter_the_forward_that_begins_after_they_have_come() -> None:
    """`b` is scheduled while the forward runs; where its tasks take longer than that forward, it joins one later."""
    long = [(request("a", output=30), 0.0), (request("b", output=30), 20.0)]
    soon = next(step for step in range(40) if "b" in rows(replayed(long), step))
    slow = replace(TIMES, hand_over=of_any_size(HAND_OVER + FORWARD + PAUSE))
    # `a` begins so much later too: count from its first step.
    late = next(step for step in range(40) if "b" in rows(replayed(long, slow), step))
    assert late == soon
    after = [(request("a", output=30), 0.0), (request("b", output=30), 20.0 + FORWARD + PAUSE)]
    assert next(step for step in range(40) if "b" in rows(replayed(after), step)) == soon + 1


def test_one_request_is_fetched_at_a_time_and_only_while_none_waits() -> None:
    """Whenever clients sent them, the second enters the waiting queue only after the first has left it."""
    run = replayed([(request("a", 470), 0.0), (request("b", 470), 0.0), (request("c", 470), 0.0)])
    assert [rows(run, step) for step in range(2)] == [{"a": 470}, {"a": 1, "b": 470}]
    assert run.first_tokens["a"] < run.first_tokens["b"] < run.first_tokens["c"]
    few = replace(CONFIG, num_blocks=25)
    columns = replayed([(request(name, 300, 20), 0.0) for name in "abcdefghij"], config=few).log.columns()
    preempts = int(np.argmax(columns["num_preempted"] > 0))  # what comes back waits beside it
    assert columns["num_waiting"][:preempts].max() == 1


def test_whole_prompts_are_fetched_several_at_once() -> None:
    several = [SentRequest(request(name, 1000), 0.0) for name in "abcde"]
    whole = replace(CONFIG, chunked_prefill=False)
    assert [one.request_id for one in ClientQueue(CONFIG, several).fetch(1.0, 8)] == ["a"]
    assert [one.request_id for one in ClientQueue(whole, several).fetch(1.0, 8)] == ["a", "b", "c"]
    assert [one.request_id for one in ClientQueue(whole, several).fetch(1.0, 2)] == ["a", "b"]
    assert ClientQueue(whole, several).fetch(-1.0, 8) == []
    long = [SentRequest(request(name, 3000), 0.0) for name in "ab"]
    assert len(ClientQueue(whole, long).fetch(1.0, 8)) == 1


def test_release_2_6_looks_for_requests_every_20_ms() -> None:
    """Where requests come faster than that, they wait for it; before, each call fetches."""
    sent = [(request(name, 20, 40), 0.0) for name in "abcd"]
    config = replace(CONFIG, max_num_batched_tokens=4096)
    since = replayed(sent, config=config, formula="pr7623", policy=RELEASE_2_6)
    before = replayed(sent, config=config, formula="pr7623", policy=ORIGINAL)
    assert since.first_tokens["d"] - since.first_tokens["a"] > 3 * 20.0 - FORWARD
    assert before.first_tokens["d"] - before.first_tokens["a"] < 3 * 20.0 - FORWARD


def test_outputs_are_taken_in_one_forward_after_the_other() -> None:
    """If the token processor is late with one forward, it is late with all later ones too, so requests end later."""
    sent = [(request("a", output=8), 0.0)]
    late = StepTimeSeries(0.0, np.array([0.0, 100.0]))
    ends, held = [], []
    for times in (TIMES, replace(TIMES, output_wait=late)):
        run = replayed([*sent, (request("b", output=1), 60.0)], times)
        ends.append(run.first_tokens["b"])
        held.append(int(run.log.columns()["num_running"][-1]))
    assert ends[0] == ends[1]  # the worker does not wait for it
    assert held[0] <= held[1]
    assert held[1] == 2  # `a` is done in the worker, and the scheduler does not know it


def test_a_call_extends_too_late_where_outputs_are_taken_in_late() -> None:
    """The decode stalls until a call knows its tokens: that is what a lockstep replay never shows."""
    config = replace(CONFIG, num_speculative_tokens=3, spec_method="mtp")
    sent = [(request("a", 100, 200, accepts=(3,) * 50), 0.0)]
    lockstep_like = replayed(sent, config=config)
    assert lockstep_like.log.columns()["num_stalled"].sum() == 0
    late = replace(TIMES, output_wait=StepTimeSeries(0.0, np.full(60, 60.0)))
    run = replayed(sent, late, config=config)
    assert run.num_unfinished == 0
    assert run.log.columns()["num_stalled"].sum() + _idle(run) > _idle(lockstep_like)


def _idle(run: PipelineReplay) -> float:
    """Milliseconds in which no forward ran, between the first and the last."""
    return run.ends[-1] - run.ends[0] - (len(run.ends) - 1) * (FORWARD + PAUSE)


def test_aborted_and_preempted_requests_leave_when_the_worker_has_answered() -> None:
    config = replace(CONFIG, num_blocks=8, num_speculative_tokens=3, spec_method="mtp")
    sent = [(request(name, 100, 150, accepts=(2,) * 60), float(at)) for at, name in enumerate("ab")]
    run = replayed(sent, config=config)
    assert run.log.columns()["num_preempted"].sum() > 0
    assert run.num_unfinished == 0
    gone = replayed(sent, config=config, aborts=((40.0, "a"),))
    assert gone.log.num_steps < run.log.num_steps
    assert gone.num_unfinished == 0


def test_what_was_there_when_the_recording_began_goes_on() -> None:
    """`a` decodes, two of its tokens are under way; `b` has ended in the worker, and its blocks are held."""
    a, b = request("a", 100, 10), request("b", 200, 5)
    found = tuple(
        Resumed(one.arrived()._replace(accepts=None, num_output_tokens=None), one.num_prompt_tokens, 4, made)
        for one, made in ((a, 3), (b, 5))
    )
    slots = (Slot("a", 104, 104, 104, 4, 5),)
    workload = Workload(CONFIG, (a, b))
    start = PipelineStart(0.0, (), (), found, slots, {"a": 2}, ("b",))
    run = PipelineReplay(workload, TIMES, start, BUILTIN["original"], ORIGINAL)
    run.run()
    assert run.log.num_steps == 5
    assert run.num_unfinished == 0
    assert run.scheduler.num_free_blocks >= CONFIG.num_blocks - 4  # the last one's are about to be freed
    assert run.log.columns()["num_running"][0] == 2


def test_a_replay_ends_with_a_recording_that_was_cut() -> None:
    sent = [(request("a", output=500, target=20), 0.0)]
    run = replayed(sent, until=200.0)
    assert 200.0 <= run.ends[-1] < 200.0 + 2 * (FORWARD + PAUSE)
    assert (run.num_unfinished, run.hang) == (1, None)


def test_a_budget_of_nothing_hangs() -> None:
    """With M = max_num_seqs * (K + 1), nothing is extended once all decode: FastDeploy stands still."""
    config = SchedulerConfig(
        max_num_batched_tokens=16, max_num_seqs=4, num_blocks=100, num_speculative_tokens=3, spec_method="mtp"
    )
    sent = [(request(name, 10, 300, accepts=(1,) * 200), 0.0) for name in "abcd"]
    run = replayed(sent, config=config, formula="pr7499")
    assert run.hang is not None
    assert run.num_unfinished == 4
    assert replayed(sent, config=config).hang is None


def test_what_a_step_took_is_its_own_where_it_was_recorded() -> None:
    times = replace(TIMES, forward_rest=StepTimeSeries(0.0, np.array([0.0, 7.0, -2.0])))
    run = replayed([(request("a", output=6), 0.0)], times)
    took = np.diff(run.ends) - PAUSE
    assert took.tolist() == pytest.approx([17.0, 8.0, 10.0, 10.0, 10.0])


def test_a_value_of_about_this_size_is_the_nearest_recorded() -> None:
    found = SizeDependentTime.of(
        1.0, np.array([5, 50, 9]), np.array([2500, 2600, 40]), np.array([20.0, 30.0, 2.0])
    )
    assert [found.at(step, 2550) for step in (0, 20, 40, 90)] == [20.0, 20.0, 30.0, 30.0]
    assert (found.at(5, 45), found.at(5, 0)) == (2.0, 1.0)


@pytest.fixture(scope="module")
def tight() -> Recording:
    return opened("tight")


def test_times_are_within_what_was_recorded(tight: Recording) -> None:
    times = fit_pipeline(tight, order_of(tight))
    assert times is not None
    took = tight.steps["forward_us"] / 1e3
    for step in range(tight.num_steps):
        ran = times.forward(
            step, int(tight.steps["num_prefill_tokens"][step]), int(tight.steps["num_decode_tokens"][step])
        )
        assert ran == pytest.approx(took[step])
    assert times.hand_over.typical < times.forward_terms[0]
    assert times.rest.typical >= 5.0  # FastDeploy sleeps so long, and longer on a busy machine
    assert (
        fit_pipeline(tight.with_steps({name: v[:5] for name, v in tight.steps.items()}), order_of(tight))
        is None
    )


def test_a_host_that_stood_still_is_said_so(tight: Recording) -> None:
    calm = fit_pipeline(tight, order_of(tight))
    steps = dict(tight.steps)
    late = np.where(np.arange(tight.num_steps) > 40, 3_000_000_000, 0)
    still = fit_pipeline(tight.with_steps({**steps, "ts": steps["ts"] + late}), order_of(tight))
    assert calm is not None
    assert still is not None
    assert still.disturbed > calm.disturbed + 0.1


def test_calls_that_knew_every_forward_are_in_lockstep(tight: Recording) -> None:
    order = order_of(tight)
    assert not is_lockstep(tight, order)
    seen: Any = order.seen
    last = np.full(len(seen["step"]), tight.steps["step"][-1])
    knowing = with_order(tight, seen={"call": seen["call"], "step": last})
    assert is_lockstep(knowing, order_of(knowing))
    assert is_lockstep(tight, replace(order, seen={"call": np.zeros(0, int), "step": np.zeros(0, int)}))


def test_a_step_is_explained_by_the_call_that_it_belongs_to(tight: Recording) -> None:
    formula = BUILTIN["pr7499"]
    history = Experiment(tight).reschedule(formula)
    explainer = PipelineExplainer(tight, lambda: workload_from_recording(tight), formula, ORIGINAL)
    columns = history.columns
    for at in (0, 7, 40, 20, 100):
        step = int(columns["step"][at])
        found = explainer.explain(step)
        assert found.forward is not None
        assert found.forward.num_tokens == columns["num_tokens"][at]
        (decision,) = found.decisions
        assert (decision.token_budget, decision.num_running) == (
            columns["token_budget"][at],
            columns["num_running"][at],
        )
