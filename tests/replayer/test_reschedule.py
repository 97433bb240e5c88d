"""A recording scheduled afresh: it reproduces itself, and under another formula it is what FastDeploy would
do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.initial_state import InitialRequest
from fdtrace.recorder.trace.recording import Acceptance, Endings, LoadedDetails, Recording
from fdtrace.replayer import ORIGINAL, POLICIES, Scheduler
from fdtrace.replayer.experiment import replay_recording, reschedule
from fdtrace.replayer.formulas import BUILTIN, MODEL_FORMULAS, parse_formula
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.outcome_figures import outcome_dict
from fdtrace.replayer.replay.replay_history import history_of
from fdtrace.replayer.replay.simulation import Simulation
from fdtrace.replayer.replay.workload_replay import Replay, ReplayCancelled
from fdtrace.replayer.workload.from_case import workload_from_case
from fdtrace.replayer.workload.from_recording import workload_from_recording

CaseOf = Callable[[str], dict[str, Any]]
GoldenOf = Callable[[str, str], list[dict[str, Any]]]
RecordingOf = Callable[..., Recording]

CASES = ("preemptions", "speculative", "tight_blocks", "whole_prefill")


def assert_equals(history: History, golden: list[dict[str, Any]], rows_every: int = 7) -> None:
    golden = [line for line in golden if line["tokens"] > 0]
    assert history.columns["num_tokens"].tolist() == [line["tokens"] for line in golden]
    assert history.columns["num_running"].tolist() == [line["running"] for line in golden]
    assert history.columns["num_waiting"].tolist() == [line["waiting"] for line in golden]
    assert history.columns["num_free_blocks"].tolist() == [line["free_blocks"] for line in golden]
    for i in range(0, len(golden), rows_every):
        rows = history.rows(int(history.columns["step"][i]))
        found = sorted([row.request_id, row.kind, row.num_tokens, row.num_computed_tokens] for row in rows)
        assert found == sorted(golden[i]["rows"])


@pytest.mark.parametrize("name", [*CASES, "aborts", "no_speculation", "shared_prefix"])
def test_a_recording_reproduces_itself(
    name: str, case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf
) -> None:
    golden = golden_of(name, "original")
    recording = recording_of(case_of(name), golden, "original")
    history = reschedule(recording, BUILTIN["original"], ORIGINAL)
    assert history.outcome.fidelity is not None
    assert history.outcome.fidelity.share == 1.0
    assert history.outcome.fidelity.first_divergence is None
    assert history.outcome.num_unfinished == 0
    assert_equals(history, golden)


@pytest.mark.parametrize("version", ["pr7438", "pr7499", "pr7623", "release_2_6"])
@pytest.mark.parametrize("name", [*CASES, "shared_prefix"])
def test_another_formula_gives_what_the_real_scheduler_decides(
    name: str, version: str, case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf
) -> None:
    """Recorded under `original`; arrivals are known by recorded step, so both runs must have been equally
    busy.
    """
    golden, recorded = golden_of(name, version), golden_of(name, "original")
    last = max(request["arrival"] for request in case_of(name)["requests"])
    idle = [line["step"] for line in golden + recorded if line["tokens"] == 0 and 0 < line["step"] <= last]
    if idle:
        pytest.skip("a run without tokens while requests still arrive: recorded steps are no clock for it")
    recording = recording_of(case_of(name), recorded, "original")
    policy = POLICIES.get(version, ORIGINAL)
    formula = BUILTIN[policy.formula if version in POLICIES else version]
    history = reschedule(recording, formula, policy)
    fidelity = history.outcome.fidelity  # where M is 512 or less, #7438's floor makes it the same formula
    assert fidelity is None or (version == "pr7438" and fidelity.share == 1.0)
    assert_equals(history, golden)


def test_a_hang_is_found_and_named(case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf) -> None:
    golden = golden_of("full_reservation", "original")
    recording = recording_of(case_of("full_reservation"), golden, "original")
    recorded, original, fixed = replay_recording(recording, [BUILTIN["original"], BUILTIN["pr7499"]])
    assert original.outcome.hang is None
    assert original.outcome.fidelity is not None
    assert original.outcome.fidelity.share == 1.0
    hang = fixed.outcome.hang
    assert hang is not None
    assert "the budget is 0" in hang.cause
    assert "no block table is extended" in hang.cause
    assert (fixed.outcome.num_unfinished or 0) > 0
    ran = [line for line in golden_of("full_reservation", "pr7499") if line["tokens"] > 0]
    assert fixed.columns["num_tokens"].tolist() == [line["tokens"] for line in ran]
    assert hang.step == int(recorded.columns["step"][0]) + len(ran)


def test_a_workload_hangs_like_its_recording(case_of: CaseOf) -> None:
    run = Replay(workload_from_case(case_of("full_reservation")), BUILTIN["pr7623"])
    run.run()
    assert run.hang is not None
    assert history_of(run).outcome.hang is run.hang


def test_a_divergence_is_explained(case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf) -> None:
    recording = recording_of(case_of("speculative"), golden_of("speculative", "original"), "original")
    recording.steps["num_tokens"][50] += 3
    history = reschedule(recording, BUILTIN["original"], ORIGINAL)
    fidelity = history.outcome.fidelity
    assert fidelity is not None
    assert (fidelity.num_steps, fidelity.num_equal) == (recording.num_steps, recording.num_steps - 1)
    assert fidelity.first_divergence == 150
    recorded = int(recording.steps["num_tokens"][50])
    assert f"num_tokens {recorded} recorded, {recorded - 3} replayed" in fidelity.explanation
    assert "the replay decided" in fidelity.explanation


def test_all_kinds_of_formula_in_one_report(
    case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf
) -> None:
    recording = recording_of(case_of("speculative"), golden_of("speculative", "original"), "original")
    mine = parse_formula("mine: max_num_batched_tokens - num_running_decodes * (num_speculative_tokens + 1)")
    histories = replay_recording(recording, [*MODEL_FORMULAS.values(), mine])
    by_name = {history.name: history.outcome for history in histories}
    assert list(by_name) == ["recorded", *MODEL_FORMULAS, "mine"]
    assert by_name["original"].num_exceeded == by_name["recorded"].num_exceeded == 126
    assert (
        by_name["pr7438"].num_exceeded == by_name["pr7499"].num_exceeded == by_name["exact"].num_exceeded == 0
    )
    same = replay_recording(recording, [BUILTIN["pr7499"], mine])[1:]
    assert same[0].outcome == same[1].outcome
    assert by_name["pr7438"].num_refused_tokens > by_name["pr7499"].num_refused_tokens  # type: ignore[operator]
    assert outcome_dict(histories[1])["fidelity"]["share"] == 1.0


def test_progress_is_heard_and_a_replay_can_be_stopped(
    case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf
) -> None:
    recording = recording_of(case_of("preemptions"), golden_of("preemptions", "original"), "original")
    heard: list[tuple[int, int]] = []
    replay_recording(
        recording, [BUILTIN["pr7499"]], progressed=lambda done, expected: heard.append((done, expected))
    )
    assert (2000, recording.num_steps) in heard
    with pytest.raises(ReplayCancelled):
        replay_recording(recording, [BUILTIN["pr7499"]], cancelled=lambda: True)


def test_a_recording_cut_short_goes_on_to_where_it_ended(
    case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf
) -> None:
    case, golden = case_of("speculative"), golden_of("speculative", "original")[:120]
    recording = recording_of(case, golden, "original")
    workload = workload_from_recording(recording)
    assert any(request.target is not None for request in workload.requests)
    history = reschedule(recording, BUILTIN["original"], ORIGINAL)
    assert history.outcome.fidelity is not None
    assert history.outcome.fidelity.share == 1.0
    other = reschedule(recording, BUILTIN["pr7438"], ORIGINAL)
    assert len(other.columns["step"]) > recording.num_steps
    assert np.all(np.diff(other.columns["step"]) == 1)


@pytest.mark.parametrize("cut", [3, 40, 100, 200])
def test_a_recording_that_began_in_the_middle_goes_on_as_the_engine_did(
    cut: int, case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf
) -> None:
    """Requests that ran when recording began enter as they were: tokens computed, blocks held."""
    case, golden = case_of("speculative"), golden_of("speculative", "original")
    whole = recording_of(case, golden, "original")
    history = reschedule(begun_at(whole, case, cut), BUILTIN["original"], ORIGINAL)
    assert history.outcome.fidelity is not None
    assert history.outcome.fidelity.share == 1.0
    ran = [line for line in golden if line["tokens"] > 0]
    assert_equals(history, ran[cut:])


def begun_at(whole: Recording, case: dict[str, Any], cut: int) -> Recording:
    """The recording that an agent attached before step `cut` would have made; nobody waits then."""
    simulation = Simulation(workload_from_case(case), BUILTIN["original"])
    ran = 0
    forwards: dict[str, int] = {}
    for step in simulation:
        ran += step.forward.num_tokens > 0
        for row in step.rows or []:
            forwards[row.request_id] = forwards.get(row.request_id, 0) + (row.kind == "decode")
        if ran == cut:
            break
    scheduler = simulation.scheduler
    assert isinstance(scheduler, Scheduler)
    first = int(whole.steps["step"][cut])
    names = whole.requests["request_id"].tolist()
    prompts = whole.requests["num_prompt_tokens"]
    running = [request.id for request in scheduler._state.running]
    waiting = [request.id for request in scheduler._state.waiting]
    initial = []
    for name in running:
        i, total = names.index(name), scheduler.num_total_tokens_of(name)
        decoding = total > prompts[i]
        computed = total if decoding else scheduler._state.requests[name].computed
        initial.append(InitialRequest(i, computed, scheduler.num_blocks_of(name), decoding))
    offsets, accepts = [0], []
    for i, name in enumerate(names):
        acceptance = whole.details.acceptance
        recorded = acceptance.num_accepted[acceptance.forwards(i)].tolist()
        accepts += recorded[forwards.get(name, 0) :]
        offsets.append(len(accepts))
    kept = [i for i, name in enumerate(names) if name in running + waiting]
    kept += [i for i in range(len(names)) if whole.requests["arrived_step"][i] >= first]
    kept = sorted(set(kept))
    arrived = np.where(whole.requests["arrived_step"] < first, MISSING, whole.requests["arrived_step"])
    spans = [accepts[offsets[i] : offsets[i + 1]] for i in kept]
    return replace(
        whole,
        steps={name: values[cut:] for name, values in whole.steps.items()},
        requests={name: values[kept] for name, values in {**whole.requests, "arrived_step": arrived}.items()},
        details=LoadedDetails(
            Endings(whole.details.endings.finished_step[kept], whole.details.endings.aborted_step[kept]),
            Acceptance(
                np.array([n for span in spans for n in span], dtype=np.int16),
                np.cumsum([0, *(len(span) for span in spans)]),
            ),
            tuple(initial),
        ),
    )
