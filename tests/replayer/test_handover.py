"""Recordings of the prefill and decode roles: what the other instance did is played as it was recorded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Endings, HandoverSteps, LoadedDetails, Recording
from fdtrace.replayer import ORIGINAL, POLICIES
from fdtrace.replayer.experiment import reschedule
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.history.history import Fidelity, History
from fdtrace.replayer.workload.from_recording import workload_from_recording

DATA = Path(__file__).parent.parent / "data" / "random"
VERSIONS = ("original", "pr7438", "pr7499", "pr7623", "release_2_6")
EXACT = ("prefill2", "decode0", "decode1", "decode2")
ONE_STEP_OFF = ("prefill0", "prefill1")
"""In these, one request got blocks in a call between two idle calls. A step's number does not say in which idle call
before it something happened."""

RecordingOf = Callable[..., Recording]
Lines = list[dict[str, Any]]


def read(name: str, version: str) -> tuple[dict[str, Any], Lines]:
    with gzip.open(DATA / f"{name}.{version}.jsonl.gz", "rt") as lines:
        return json.loads((DATA / f"{name}.json").read_text()), [json.loads(line) for line in lines]


def record(recording_of: RecordingOf, name: str, version: str) -> tuple[Recording, Lines]:
    case, golden = read(name, version)
    formula = POLICIES[version].formula if version in POLICIES else version
    return recording_of(case, golden, formula, version if version in POLICIES else "original"), golden


def scheduled(recording: Recording, version: str) -> History:
    policy = POLICIES.get(version, ORIGINAL)
    return reschedule(recording, BUILTIN[policy.formula if version in POLICIES else version], policy)


def fidelity_of(recording: Recording, version: str) -> Fidelity:
    fidelity = scheduled(recording, version).outcome.fidelity
    assert fidelity is not None
    return fidelity


def changed(recording: Recording, **details: Any) -> Recording:
    """The recording with other details."""
    assert isinstance(recording.details, LoadedDetails)
    return replace(recording, details=replace(recording.details, **details))


def assert_equals(history: History, golden: Lines) -> None:
    golden = [line for line in golden if line["tokens"] > 0]
    for column, key in (
        ("num_tokens", "tokens"),
        ("num_running", "running"),
        ("num_waiting", "waiting"),
        ("num_free_blocks", "free_blocks"),
    ):
        assert history.columns[column].tolist() == [line[key] for line in golden]
    for step, line in zip(history.columns["step"].tolist(), golden, strict=True):
        rows = [[r.request_id, r.kind, r.num_tokens, r.num_computed_tokens] for r in history.rows(step)]
        assert sorted(rows) == sorted(line["rows"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", EXACT)
def test_a_recording_of_a_role_reproduces_itself(name: str, version: str, recording_of: RecordingOf) -> None:
    recording, golden = record(recording_of, name, version)
    history = scheduled(recording, version)
    assert history.outcome.fidelity is not None
    assert history.outcome.fidelity.share == 1.0
    assert_equals(history, golden)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ONE_STEP_OFF)
def test_idle_calls_are_not_told_apart(name: str, version: str, recording_of: RecordingOf) -> None:
    recording, _ = record(recording_of, name, version)
    fidelity = fidelity_of(recording, version)
    assert fidelity.num_steps - fidelity.num_equal == 1
    assert fidelity.divergence is not None
    differs = {column for column, recorded, replayed in fidelity.divergence.compared if recorded != replayed}
    assert differs <= {"num_running", "num_free_blocks"}


@pytest.mark.parametrize("name", [*EXACT, *ONE_STEP_OFF])
def test_what_the_other_instance_did_is_needed_for_that(name: str, recording_of: RecordingOf) -> None:
    recording, _ = record(recording_of, name, "original")
    known = fidelity_of(recording, "original")
    alone = changed(recording, handover=None)
    assert fidelity_of(alone, "original").num_equal < known.num_equal


def test_what_a_request_waits_for_is_in_steps_from_when_it_got_its_blocks(recording_of: RecordingOf) -> None:
    recording, _ = record(recording_of, "prefill2", "original")
    first, last = (int(recording.steps["step"][at]) for at in (0, -1))
    count = len(recording.details.endings.finished_step)
    steps = {kind: np.full(count, MISSING) for kind in ("preallocated", "joined", "discarded", "last_ran")}
    finished = np.full(count, MISSING)
    steps["preallocated"][:4] = first + 2
    steps["joined"][0], steps["discarded"][1], steps["joined"][2] = first + 5, first + 9, first + 2
    steps["last_ran"][0], finished[0] = first + 7, first + 11
    steps["last_ran"][2] = first + 7
    endings = Endings(finished, recording.details.endings.aborted_step)
    handover = HandoverSteps(steps["preallocated"], steps["joined"], steps["discarded"], steps["last_ran"])
    work = workload_from_recording(changed(recording, handover=handover, endings=endings))
    by_id = {request.request_id: request for request in work.requests}
    told = [by_id[str(name)] for name in recording.requests["request_id"][:5]]
    more = last + 1 - first
    assert [request.join_after for request in told] == [3, 7, 0, more - 2, 0]
    assert [request.discarded for request in told] == [False, True, False, False, False]
    assert [request.send_after for request in told] == [4, 0, more - 7, 0, 0]


def test_what_a_decode_instance_preempted_may_make_more_than_it_had(recording_of: RecordingOf) -> None:
    recording, golden = record(recording_of, "decode0", "original")
    preempted = {name for line in golden for name in line["preempted"]}
    work = {request.request_id: request for request in workload_from_recording(recording).requests}
    specs = {spec["id"]: spec for spec in read("decode0", "original")[0]["requests"]}
    assert preempted
    for name in preempted:
        assert work[name].num_output_tokens == specs[name]["output"] > (work[name].target or 0)
