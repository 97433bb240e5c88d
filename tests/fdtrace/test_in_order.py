"""A recorded deployment through FastDeploy's real scheduler: every call comes out as it was, by FastDeploy's own code.

FASTDEPLOY_SRC names a checkout of one of the versions that the recordings under `tests/data/deployments` are of.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fdtrace.drivers import fastdeploy_driver_config as driver_config
from fdtrace.drivers.fastdeploy_in_order import FastDeployInOrder
from fdtrace.drivers.fastdeploy_scheduler import DrivenFastDeploy
from fdtrace.recorder.agent import fastdeploy_config as agent_config
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.history.history import Fidelity
from fdtrace.replayer.model.events import Arrived, DecodeTokenCounts, Freed, Left, Rescheduled, Schedule
from fdtrace.scheduler_option import given_schedulers
from tests.fdtrace.test_schedulers import PYTHON, SOURCE, real
from tests.replayer.test_deployments import NAMES, opened, order_of, with_left_before, with_order

OF = {
    "attached": "later",
    "attached_prefix_caching": "original",
    "tight": "original",
    "aborts_prefix_caching": "original",
    "release_2_6": "release_2_6",
    "prefill_role": "original",
    "decode_role": "original",
}
"""The version that recorded each."""

CONFIG = SchedulerConfig(max_num_batched_tokens=64, max_num_seqs=4, num_blocks=20, max_model_len=256)


FILES = ("fastdeploy/engine/sched/resource_manager_v1.py", "fastdeploy/cache_manager/prefix_cache_manager.py")
"""Of a checkout: what names its scheduler's code."""


def code_of(source: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What a recording of that checkout would name its code."""
    parts = []
    for file in FILES:
        module = ModuleType(file)
        module.__file__ = str(Path(source) / file)
        monkeypatch.setitem(sys.modules, file, module)
        parts.append(type("Made", (), {"__module__": file})())
    return agent_config.code_digest(*parts)


@contextmanager
def driven(recording: Recording) -> Iterator[DrivenFastDeploy]:
    experiment, engine = Experiment(recording), recording.engine
    (given,) = given_schedulers([f"fastdeploy={SOURCE}"], PYTHON)
    with given.open(experiment.workload.config, engine.env, engine.config) as scheduler:
        assert isinstance(scheduler, DrivenFastDeploy)
        yield scheduler


def recorded_by(recording: Recording, code: str | None) -> Recording:
    """The same, as if the scheduler of that code had recorded it."""
    return replace(
        recording,
        engine=replace(recording.engine, config={**recording.engine.config, "scheduler_code": code}),
    )


def through(recording: Recording) -> Fidelity:
    with driven(recording) as scheduler:
        history = Experiment(recording).reschedule(scheduler)
    assert history.outcome.order == "recorded"
    assert history.outcome.fidelity is not None
    return history.outcome.fidelity


@pytest.fixture(params=NAMES)
def recording(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recording:
    text = (Path(SOURCE) / FILES[0]).read_text()
    version = (
        "release_2_6"
        if "new_token_ratio" in text
        else "later"
        if "num_running_decode_reqs * tokens_per_seq" in text
        else "pr7438"
        if "tokens_per_seq" in text
        else "original"
    )
    if version != OF[request.param]:
        pytest.skip("another version recorded it")
    return recorded_by(opened(request.param), code_of(SOURCE, monkeypatch))


@real
def test_every_call_and_forward_comes_out_as_recorded(recording: Recording) -> None:
    fidelity = through(recording)
    assert fidelity.calls is not None
    assert fidelity.calls.departure is None
    assert (fidelity.calls.share, fidelity.calls.num_left_out, fidelity.share) == (1, 0, 1)


@real
def test_a_request_that_had_left_before_holds_its_blocks_until_they_are_freed(recording: Recording) -> None:
    """Not where its blocks are in the prefix cache: then it has a place there."""
    if recording.engine.prefix_caching:
        pytest.skip("see above")
    fidelity = through(with_left_before(recording, freed=True))
    assert fidelity.calls is not None
    assert (fidelity.calls.departure, fidelity.calls.share, fidelity.share) == (None, 1, 1)
    kept = through(with_left_before(recording, freed=False)).calls
    assert kept is not None
    assert kept.departure is not None
    assert kept.departure.differences[0][0] == "free blocks"


@real
@pytest.mark.parametrize("kind", ["queued", "left", "freed"])
def test_each_change_of_the_queues_is_needed(recording: Recording, kind: str) -> None:
    changes = order_of(recording).changes
    lost = np.flatnonzero(changes["kind"] == kind)[0]
    keep = np.arange(len(changes["kind"])) != lost
    fidelity = through(with_order(recording, changes={name: each[keep] for name, each in changes.items()}))
    assert fidelity.calls is not None
    assert fidelity.calls.departure is not None
    assert fidelity.calls.departure.before
    assert fidelity.calls.num_equal < fidelity.calls.num_calls


@real
def test_other_code_or_other_sizes_are_not_led_through_it(recording: Recording) -> None:
    with driven(recording) as scheduler:
        assert scheduler.in_order_of(recording.engine) is not None
        assert scheduler.in_order_of(recorded_by(recording, "0" * 16).engine) is None
        assert scheduler.in_order_of(recorded_by(recording, None).engine) is None
        other = replace(recording.engine, max_num_batched_tokens=100)
        assert scheduler.in_order_of(other) is None


# Without FastDeploy ------------------------------------------------------------------------------------------------


def test_the_recorder_and_the_driver_name_code_alike() -> None:
    """By the files that define a scheduler's classes: whichever of them changes, it is other code."""
    one, both = agent_config.code_digest(CONFIG), agent_config.code_digest(CONFIG, Schedule())
    assert (one, both) == (driver_config.code_digest(CONFIG), driver_config.code_digest(CONFIG, Schedule()))
    assert None not in (one, both)
    assert one != both
    assert agent_config.code_digest(1) is driver_config.code_digest(1) is None  # built in: it has no file


class Told:
    """In place of a driver's process: it keeps the messages, and gives a prepared answer."""

    def __init__(self, **answer: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        self.answer = answer

    def __call__(self, message: dict[str, Any]) -> dict[str, Any]:
        self.messages.append(message)
        return self.answer


def in_order(told: Told) -> FastDeployInOrder:
    tokens: dict[Any, int] = {}
    return FastDeployInOrder(
        told, CONFIG, "fastdeploy", lambda key: tokens.setdefault(key, 1000 + len(tokens))
    )


def test_what_the_engine_knew_goes_with_the_next_event() -> None:
    told = Told(taken=True)
    scheduler = in_order(told)
    scheduler.apply(DecodeTokenCounts({"a": 70}))
    scheduler.apply(DecodeTokenCounts({"b": 9}))
    assert told.messages == []
    scheduler.apply(Left("a"))
    scheduler.apply(Freed("a"))
    assert told.messages == [
        {"known": {"a": 70, "b": 9}, "event": ["left", "a"]},
        {"known": {}, "event": ["freed", "a"]},
    ]


def test_an_event_that_cannot_happen_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        in_order(Told(taken=False)).apply(Rescheduled("a"))


def test_a_request_comes_with_what_its_blocks_hold() -> None:
    """With prefix caching equal blocks are made of equal tokens, those of the output too."""
    told = Told(taken=True)
    scheduler = in_order(told)
    scheduler.config = replace(CONFIG, prefix_caching=True)
    keys: Mapping[int, str] = {0: "same", 1: "own"}
    scheduler.apply(Arrived("a", 80, 100, block_key=lambda block: keys.get(block, ("a", block))))
    scheduler.apply(Arrived("b", 80, 100, block_key=lambda block: keys.get(block, ("b", block))))
    (kind, first), (_, second) = (message["event"] for message in told.messages)
    assert kind == "queued"
    assert first["prompt"] == second["prompt"] == [[1000, 64], [1001, 16]]
    assert first["contents"][0] == second["contents"][0] == 1001
    assert first["contents"][1:] != second["contents"][1:]
    assert len(first["contents"]) == 2


def test_a_call_says_what_the_recorded_one_used() -> None:
    answer: dict[str, Any] = {
        "blocks": {"a": 3}, "need": {"a": 80}, "requests": 2, "running_decodes": 0, "chunks": [["a", 0, 64]],
        "extended": [], "preempted": [], "aborted": [], "errors": [], "free_blocks": 5, "running": 1, "waiting": 1,
        "faults": 1,
    }  # fmt: skip
    told = Told(**answer)
    scheduler = in_order(told)
    decision = scheduler.apply(Schedule(frozenset({"b"}), frozenset(), (4, 5)))
    assert told.messages == [{"known": {}, "call": {"not_ready": ["b"], "failed": [], "needed": [4, 5]}}]
    assert (decision.chunks, decision.num_reserve_faults) == ([("a", 0, 64)], 1)
    assert (scheduler.num_blocks_of("a"), scheduler.num_prefill_tokens_of("a"), scheduler.num_requests) == (
        3,
        80,
        2,
    )
