"""By time: a call sees a request some milliseconds after its client sent it; latencies start at the sending."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.recorded.client_times import delays_to_call
from fdtrace.replayer.recorded.step_durations import call_times
from fdtrace.replayer.workload.closed_loop import ArrivalMode
from tests.replayer.conftest import make_recording, read_case, read_golden
from tests.replayer.timed_recordings import timed_by_gpu

MS = 1_000_000


@pytest.fixture(scope="module")
def timed() -> Recording:
    """With times: its steps take some 20 to 150 ms."""
    plain = make_recording(read_case("speculative"), read_golden("speculative", "original"), "original")
    return timed_by_gpu(plain)[0]


def sent(timed: Recording, delay_ns: int) -> Recording:
    """Each request was ready at a random time between the call that saw it and the one before, and was sent `delay_ns`
    earlier.
    """
    calls, arrived = call_times(timed), np.asarray(timed.requests["arrived_at"])
    seen = np.searchsorted(calls, arrived)
    before = np.where(seen > 0, calls[np.maximum(seen - 1, 0)], calls[0] - 20 * MS)
    share = np.random.default_rng(4).random(len(arrived))
    ready = before + 1 + ((calls[seen] - before - 1) * share).astype(np.int64)
    return replace(timed, requests={**timed.requests, "sent_at": ready - delay_ns})


@pytest.mark.parametrize("delay_ms", [0, 3, 9])
def test_the_delay_is_found_that_explains_most_calls(timed: Recording, delay_ms: int) -> None:
    recording = sent(timed, delay_ms * MS)
    delays = delays_to_call(recording)
    assert np.median(delays) == pytest.approx(delay_ms * MS, abs=1.5 * MS)
    visible = np.asarray(recording.requests["sent_at"]) + delays
    calls = call_times(recording)
    seen_by = np.searchsorted(calls, visible)
    assert (seen_by == np.searchsorted(calls, recording.requests["arrived_at"])).all()


def test_an_idle_engine_shows_the_delay_itself(timed: Recording) -> None:
    """The first requests come to an idle engine, after 3 to 6 ms; of the others only bounds are known."""
    calls, arrived = call_times(timed), np.asarray(timed.requests["arrived_at"])
    seen = np.searchsorted(calls, arrived)
    idle_steps = np.unique(seen[seen > 0])[:20]
    is_idle = np.isin(seen, idle_steps)
    took = np.where(is_idle, 3 * MS + 3 * MS * np.random.default_rng(5).random(len(seen)), 15 * MS)
    left = np.full(timed.num_steps, 99)
    left[idle_steps - 1] = 0
    counts = {"num_running": left, "num_waiting": np.zeros_like(left)}
    recording = replace(
        timed,
        steps={**timed.steps, **counts, "forward_us": np.full(timed.num_steps, 5000)},
        requests={**timed.requests, "sent_at": calls[seen] - took.astype(np.int64)},
    )
    delays = delays_to_call(recording)
    assert 10 <= is_idle.sum() < len(seen)
    assert delays[is_idle] == pytest.approx(took[is_idle], abs=1)
    assert np.median(delays[~is_idle]) == pytest.approx(np.median(took[is_idle]), abs=1)


def test_without_a_time_of_sending_there_is_no_delay(timed: Recording) -> None:
    assert not delays_to_call(timed).any()
    count = len(timed.requests["request"])
    unknown = {**timed.requests, "sent_at": np.full(count, MISSING)}
    assert not delays_to_call(replace(timed, requests=unknown)).any()


def test_a_request_arrives_when_a_call_saw_it_and_its_client_waits_from_the_sending(timed: Recording) -> None:
    recording = sent(timed, 9 * MS)
    calls = call_times(recording)
    sent_at = dict(zip(recording.requests["request_id"], recording.requests["sent_at"], strict=True))
    seen_at = dict(zip(recording.requests["request_id"], recording.requests["arrived_at"], strict=True))
    for request in Experiment(recording, clock="time").workload.requests:
        client = (sent_at[request.request_id] - calls[0]) / 1000
        assert request.arrival - request.on_its_way == pytest.approx(client, abs=2) or client < 0
        arrives_at = calls[0] + request.arrival * 1000
        seen_by = np.searchsorted(calls, arrives_at)
        assert seen_by == np.searchsorted(calls, seen_at[request.request_id])


def test_another_rate_keeps_the_delay(timed: Recording) -> None:
    recording = sent(timed, 9 * MS)
    twice = Experiment(recording, clock="time", coming=ArrivalMode(rate=2.0)).workload.requests
    once = Experiment(recording, clock="time").workload.requests
    for fast, slow in zip(twice, once, strict=True):
        assert fast.on_its_way == slow.on_its_way > 0
        assert fast.arrival - fast.on_its_way == pytest.approx((slow.arrival - slow.on_its_way) / 2, abs=1)
