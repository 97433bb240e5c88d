"""Recordings under changed settings are what the real FastDeploy decides with these; what is refused, and drawn."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Endings, EngineInfo, LoadedDetails, Recording
from fdtrace.replayer import BUILTIN
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.history.history import History
from fdtrace.replayer.workload.engine_settings import FASTDEPLOY_KNOBS, read_settings, recorded_value
from fdtrace.replayer.workload.from_recording import workload_from_recording
from fdtrace.replayer.workload.under_settings import ChangedSettings
from tests.replayer.conftest import make_recording, read_case, read_golden

DATA = Path(__file__).parent.parent / "data" / "variants"
GOLDEN: list[tuple[str, str, dict[str, Any]]] = [
    ("speculative", "seqs_32", {"max_num_seqs": 32}),
    ("speculative", "few_blocks", {"num_blocks": 600}),
    ("speculative", "small_steps", {"max_num_batched_tokens": 512}),
    ("speculative", "no_drafts", {"K": 0}),
    ("speculative", "four_blocks", {"FD_ENC_DEC_BLOCK_NUM": 4}),
    ("speculative", "whole_prompts", {"FD_DISABLE_CHUNKED_PREFILL": 1, "max_num_batched_tokens": 8192}),
    ("shared_prefix", "large_blocks", {"block_size": 128, "num_gpu_blocks_override": 200}),
    ("shared_prefix", "no_caching", {"enable_prefix_caching": False}),
    ("whole_prefill", "chunks", {"enable_chunked_prefill": True}),
]
"""Case, file of what the real FastDeploy of `original` decided, and the settings that are other than the case's."""


def recording_of(name: str) -> Recording:
    return make_recording(read_case(name), read_golden(name, "original"), "original")


def replayed(recording: Recording, settings: dict[str, Any], drawn: bool = False) -> History:
    changed = ChangedSettings(read_settings(recording.engine, settings), "drawn" if drawn else "recorded")
    return Experiment(recording, changed_settings=changed).reschedule(BUILTIN["original"])


def decisions(history: History) -> list[Any]:
    return [
        [
            sorted(
                [row.request_id, row.kind, row.num_tokens, row.num_computed_tokens]
                for row in history.rows(step)
            ),
            blocks,
        ]
        for step, blocks in zip(
            history.columns["step"].tolist(), history.columns["num_free_blocks"].tolist(), strict=True
        )
    ]


@pytest.mark.parametrize(("name", "file", "settings"), GOLDEN, ids=[f"{one[0]}-{one[1]}" for one in GOLDEN])
def test_changed_settings_are_scheduled_as_by_the_real_scheduler(
    name: str, file: str, settings: dict[str, Any]
) -> None:
    lines = gzip.decompress((DATA / f"{name}-{file}.jsonl.gz").read_bytes()).splitlines()
    golden = [
        [sorted(line["rows"]), line["free_blocks"]] for line in map(json.loads, lines) if line["tokens"]
    ]
    recording = recording_of(name)
    history = replayed(recording, settings)
    assert decisions(history) == golden
    assert decisions(replayed(recording, {})) != golden, "these settings change something"
    assert history.outcome.fidelity is None, "it need not be what was recorded"
    assert history.outcome.settings == read_settings(recording.engine, settings)


def test_every_knob_has_a_recorded_value_that_changes_nothing() -> None:
    recording = recording_of("tight_blocks")
    engine = recording.engine
    values = {name: recorded_value(knob, engine) for name, knob in FASTDEPLOY_KNOBS.items()}
    del values["FD_DETERMINISTIC_SPLIT_KV_SIZE"], values["FD_DISABLE_CHUNKED_PREFILL"]
    assert None not in values.values()
    same = decisions(Experiment(recording).reschedule(BUILTIN["original"]))
    assert decisions(replayed(recording, values)) == same


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_num_seq": 3}, "has no setting 'max_num_seq'.*max_num_seqs"),
        ({"max_num_seqs": "many"}, "max_num_seqs must be a whole number"),
        ({"max_num_seqs": 0}, "1 or more"),
        ({"max_num_seqs": 64.5}, "whole number"),
        ({"enable_chunked_prefill": "perhaps"}, "true or false"),
        ({"num_blocks": 90, "num_gpu_blocks_override": 90}, "given twice"),
        ({"block_size": 128}, "num_gpu_blocks_override=70 takes the same memory"),
        ({"enable_prefix_caching": True}, "prefix caching cannot be turned on"),
        ({"num_gpu_blocks_override": 20}, "would not start.*.*num_blocks 20 is less than"),
        ({"max_num_batched_tokens": 16}, "would not start.*.*less than max_num_seqs"),
        ({"K": 9}, "more than 5"),
        ({"FD_DETERMINISTIC_SPLIT_KV_SIZE": 16}, "alone changes nothing"),
        ({"gpu_memory_utilization": 0.9}, "give num_gpu_blocks_override"),
        ({"FD_INIT_NEW_TOKEN_RATIO": -1}, "must be a number"),
    ],
)
def test_what_the_engine_or_the_recording_does_not_allow_is_refused(
    settings: dict[str, Any], said: str
) -> None:
    recording = recording_of("tight_blocks")
    with pytest.raises(UsageError, match=f"(?s){said}"):
        replayed(recording, settings)


def test_speculation_that_was_not_recorded_cannot_be_turned_on() -> None:
    with pytest.raises(UsageError, match="speculation cannot be turned on"):
        replayed(recording_of("no_speculation"), {"num_speculative_tokens": 2})


def test_more_drafts_are_accepted_as_often_as_the_request_accepted_its_last() -> None:
    recording = recording_of("tight_blocks")
    settings = read_settings(recording.engine, {"K": 5})
    before = Experiment(recording).workload.requests
    experiment = Experiment(recording, changed_settings=ChangedSettings(settings))
    after = experiment.workload.requests
    more = 0
    for one, other in zip(before, after, strict=True):
        recorded, drawn = np.asarray(one.accepts, int), np.asarray(other.accepts, int)
        assert (drawn[recorded < 3] == recorded[recorded < 3]).all(), "what was rejected stays rejected"
        assert ((recorded <= drawn) & (drawn <= 5)).all()
        if (recorded >= 2).any() and not (recorded == 3).any():
            assert (drawn == recorded).all(), "one that never accepted all of them does not begin to"
        more += int((drawn > recorded).sum())
    assert more > 100
    again = Experiment(recording, changed_settings=ChangedSettings(settings)).workload.requests
    assert [list(one.accepts) for one in again] == [list(one.accepts) for one in after]
    assert "drawn position by position" in experiment.workload.notes[0]
    assert replayed(recording, {"K": 5}, drawn=True).outcome.modelled == experiment.workload.notes


def test_requests_that_are_too_long_are_rejected() -> None:
    recording = recording_of("tight_blocks")
    history = replayed(recording, {"max_model_len": 600})
    prompts = recording.requests["num_prompt_tokens"]
    assert history.outcome.num_rejected == (prompts > 598).sum() > 0
    longest = max(
        row.num_computed_tokens + row.num_tokens
        for step in history.columns["step"].tolist()
        for row in history.rows(step)
    )
    assert longest <= 600 + 3  # the drafts of the last forward beyond its end
    assert history.outcome.num_unfinished == 0


def test_a_recording_that_breaks_a_check_already_is_replayed_with_other_settings() -> None:
    """A case of the lab may break a check of a server. Only changed settings are checked."""
    recording = recording_of("full_reservation")
    recording = replace(recording, engine=replace(recording.engine, max_num_batched_tokens=15))
    assert replayed(recording, {"num_blocks": 3000}).outcome.settings == {"num_gpu_blocks_override": 3000}


def test_settings_of_another_engine_are_its_own_to_check() -> None:
    engine = EngineInfo(0, "vllm", "0", 64, 8, 0, 16, 60, 1024)
    found = read_settings(
        engine, {"watermark": "0.1", "long_prefill_token_threshold": "64", "num_blocks": "50"}
    )
    assert found == {"watermark": 0.1, "long_prefill_token_threshold": 64, "num_gpu_blocks_override": 50}


def test_a_client_aborts_when_it_did_and_not_when_the_engine_followed() -> None:
    """FastDeploy aborts a waiting request after its admission, which comes earlier under other settings."""
    case, recording = read_case("aborts"), recording_of("aborts")
    names = recording.requests["request_id"].tolist()
    entry, first = names.index("r43"), int(recording.steps["step"][0])
    (spec,) = [spec for spec in case["requests"] if spec["id"] == "r43"]
    wanted = np.full(len(names), MISSING)
    wanted[entry] = first + spec["arrival"] + spec["abort_after"]
    endings = recording.details.endings
    assert endings.aborted_step[entry] > wanted[entry], "the engine followed later"
    known = Endings(endings.finished_step, endings.aborted_step, wanted)
    assert isinstance(recording.details, LoadedDetails)
    details = replace(recording.details, endings=known)
    (request,) = [
        request
        for request in workload_from_recording(replace(recording, details=details)).requests
        if request.request_id == "r43"
    ]
    assert request.abort_after == spec["abort_after"]
