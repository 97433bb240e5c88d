"""How long steps take: the form that a recording asks for, its errors, and what clients wait under other settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer import BUILTIN
from fdtrace.replayer.analysis.token_times import ClientRequests, ServedSteps, latencies, parse_slo
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.history.outcome_figures import outcome_dict
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
from fdtrace.replayer.recorded.time_forms import SumOfTerms, TimeForm, non_negative
from fdtrace.replayer.recorded.time_model import fit_time_model
from fdtrace.replayer.replay.workload_replay import Replay
from fdtrace.replayer.workload.closed_loop import AS_FOUND, ArrivalMode, closed_loop_of
from fdtrace.replayer.workload.engine_settings import read_settings
from fdtrace.replayer.workload.under_settings import ChangedSettings
from tests.replayer.timed_recordings import gpu, timed_by_gpu

Floats = NDArray[np.float64]


def cpu(features: Floats) -> Floats:
    """The same on something like a CPU: everything adds up."""
    prefill, prefills, _, kv, attention, _ = features.T
    found: Floats = 19000 + 120 * prefill + 4000 * prefills + 2.3 * kv + 0.13 * attention
    return found


def compiling(features: Floats) -> Floats:
    """The same, where a number of tokens that comes for the first time needs a kernel of its own."""
    found: Floats = cpu(features) + 30000 * features[:, 5]
    return found


def drawn(num_steps: int) -> Floats:
    rng = np.random.default_rng(1)
    prefill = np.where(rng.random(num_steps) < 0.4, np.round(500 * rng.random(num_steps)), 0)
    decode = rng.integers(1, 14, num_steps).astype(float)
    kv = decode * 400 + 100 * rng.standard_normal(num_steps)
    attention = prefill * (300 + prefill / 2)
    is_new = np.zeros(num_steps)
    is_new[np.unique(prefill + decode, return_index=True)[1]] = 1
    return np.stack([prefill, prefill > 0, decode, kv, attention, is_new], axis=1)


@pytest.mark.parametrize("truth", [gpu, cpu, compiling])
def test_the_form_is_chosen_that_holds_where_steps_are_others(truth: Callable[[Floats], Floats]) -> None:
    features = drawn(1200)
    noise = 1 + 0.05 * np.random.default_rng(2).standard_normal(len(features))
    model = fit_time_model(features, truth(features) * noise)
    small = features[features[:, 0] > 0].copy()
    small[:, 0] = np.minimum(small[:, 0], 64)
    small[:, 4] = small[:, 0] * 300
    small[:, 5] = 0
    told = model.form.us(small)
    assert abs(told.sum() / truth(small).sum() - 1) < 0.05, "chunks that a smaller budget would give"
    assert model.name != "tokens"
    assert (model.name == "shapes") == (truth is compiling)
    assert 0.02 < model.random.median_error < 0.06
    assert model.worst_region is not None
    assert abs(model.worst_region.total_error) < 0.12


def test_a_sum_of_tokens_is_taken_where_nothing_better_is_told() -> None:
    features = drawn(600)
    noise = 1 + 0.03 * np.random.default_rng(3).standard_normal(600)
    assert (
        fit_time_model(features, (5000 + 100 * features[:, 0] + 300 * features[:, 2]) * noise).name
        == "tokens"
    )


def test_what_says_nothing_is_refused() -> None:
    features = drawn(300)
    wild = np.exp(3 * np.random.default_rng(4).standard_normal(300)) * 1000
    with pytest.raises(UsageError, match="half of the held-out steps are off by"):
        fit_time_model(features, wild)
    slower = cpu(features) * np.where(np.arange(300) < 150, 1, 2)
    with pytest.raises(UsageError, match="predicted from the other, by"):
        fit_time_model(features, slower)
    with pytest.raises(UsageError, match="20 steps have another right after them"):
        fit_time_model(features[:20], cpu(features[:20]))


def test_least_squares_without_negative_factors_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        terms = np.abs(rng.standard_normal((60, 5))) * 10.0 ** rng.integers(0, 6, 5)
        took = terms @ (rng.standard_normal(5) / terms.max(axis=0)) + 0.1 * rng.standard_normal(60)
        factors = non_negative(terms, took)
        assert (factors >= 0).all()
        best = float((took**2).sum())
        for chosen in product((False, True), repeat=5):
            some = terms[:, np.array(chosen)]
            solved = np.linalg.lstsq(some, took, rcond=None)[0] if any(chosen) else np.zeros(0)
            if len(solved) and (solved >= 0).all():
                best = min(best, float(((some @ solved - took) ** 2).sum()))
        assert float(((terms @ factors - took) ** 2).sum()) <= best * (1 + 1e-6)


def test_tokens_of_requests_are_dated_by_the_steps_that_made_them() -> None:
    """r0: a prompt of 10 in two chunks, then two decodes, one of which accepts a draft. r1 is preempted and prefilled
    anew with the token that it had made.
    """
    rows = [  # step, request, prefill, tokens, computed before, accepted
        (0, 0, 1, 6, 0, 0), (1, 0, 1, 4, 6, 0), (1, 1, 1, 3, 0, 0), (2, 0, 0, 2, 11, 1), (3, 1, 1, 4, 0, 0),
        (3, 0, 0, 2, 13, 0), (4, 1, 0, 2, 5, 1),
    ]  # fmt: skip
    step, request, prefill, tokens, computed, accepted = np.array(rows).T
    batch = BatchRowColumns(step, request, prefill.astype(bool), tokens, computed, accepted)
    starts = np.array([0.0, 100, 200, 300, 400]) * 1000
    clients = ClientRequests(np.array([0.0, 50_000.0]), [10, 3], [4, 3], np.array([True, True]))
    found = latencies(
        ServedSteps(batch, starts, starts + 100_000, clients), parse_slo("ttft=180ms, latency=0.42s")
    )
    assert found.num_requests == 2
    assert found.ttft_us.p50 == pytest.approx((200_000 + 150_000) / 2)
    assert found.itl_us.p99 == pytest.approx(200_000, rel=0.02)
    assert found.latency_us.p50 == pytest.approx((400_000 + 450_000) / 2)
    assert found.output_tokens_per_s == pytest.approx(7 / 0.5)
    assert found.requests_per_s == pytest.approx(2 / 0.5)
    assert found.busy_share == 1.0
    assert found.goodput_per_s == 0.0, "r0's first token is late, and so is r1's last"
    easy = latencies(ServedSteps(batch, starts, starts + 100_000, clients), parse_slo("ttft=250,tpot=140ms"))
    assert easy.goodput_per_s == pytest.approx(1 / 0.5), "r1 took 150 ms for each token after its first"
    assert latencies(ServedSteps(batch, starts, starts + 1, clients), {}).goodput_per_s is None


@pytest.mark.parametrize("text", ["ttft", "ttft=fast", "ttft=5 parsecs", "speed=3ms"])
def test_objectives_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="objective"):
        parse_slo(text)


# A recording of known durations, replayed under other settings -----------------------------------------------


@pytest.fixture
def timed(
    case_of: Callable[[str], dict[str, Any]],
    golden_of: Callable[[str, str], list[dict[str, Any]]],
    recording_of: Callable[..., Recording],
) -> tuple[Recording, BatchRowColumns]:
    """A recording whose steps took what `gpu` says, each request there just before its recorded step."""
    return timed_by_gpu(
        recording_of(case_of("tight_blocks"), golden_of("tight_blocks", "original"), "original")
    )


def test_a_step_is_the_first_of_its_shape_in_the_recording_and_in_the_replay(
    timed: tuple[Recording, BatchRowColumns],
) -> None:
    recording, rows = timed
    timing = RecordedTiming(recording, lambda: rows)
    tokens = recording.steps["num_tokens"].tolist()
    firsts = [float(num not in tokens[:at]) for at, num in enumerate(tokens)]
    assert timing.features[:, 5].tolist() == firsts
    assert 30 < sum(firsts) < len(firsts)
    shapes = SumOfTerms("shapes", np.array([20_000.0, 7_000.0]), (5,))
    timing.__dict__["model"] = replace(timing.model, form=shapes)
    run = Replay(Experiment(recording, timing=timing, clock="time").workload, BUILTIN["original"])
    run.run()
    assert run.timed is not None
    took = run.timed.ends_us - run.timed.starts_us
    replayed = run.log.columns()["num_tokens"].tolist()
    assert took.tolist() == pytest.approx(
        [20_000.0 + 7_000.0 * (num not in replayed[:at]) for at, num in enumerate(replayed)]
    )


def test_a_replay_by_time_tells_what_clients_waited(timed: tuple[Recording, BatchRowColumns]) -> None:
    recording, rows = timed
    timing = RecordedTiming(recording, lambda: rows)
    experiment = Experiment(recording, clock="time", timing=timing, slo=parse_slo("ttft=1s"))
    recorded, replayed = experiment.recorded(), experiment.reschedule(BUILTIN["original"])
    real, told = recorded.outcome.latency, replayed.outcome.latency
    assert real is not None
    assert told is not None
    assert real.num_requests == told.num_requests == 80
    assert (real.num_steps_beyond, told.num_steps_beyond) == (None, 0)
    for name in ("ttft_us", "itl_us", "latency_us"):
        for quantile in ("p50", "p95"):
            one, other = getattr(getattr(real, name), quantile), getattr(getattr(told, name), quantile)
            assert other == pytest.approx(one, rel=0.05), (name, quantile)
    assert told.output_tokens_per_s == pytest.approx(real.output_tokens_per_s, rel=0.02)
    assert told.goodput_per_s == pytest.approx(real.goodput_per_s, rel=0.1)
    found = outcome_dict(replayed)["clock"]["model"]
    assert found["form"] == timing.model.name
    assert found["largest"]["prefill_tokens"] == rows.features(recording.num_steps)[:, 0].max()


def test_other_settings_are_told_as_they_would_have_been(timed: tuple[Recording, BatchRowColumns]) -> None:
    """The truth: the same replay on a clock that `gpu` itself drives."""
    recording, rows = timed
    timing = RecordedTiming(recording, lambda: rows)
    changed = ChangedSettings(read_settings(recording.engine, {"max_num_batched_tokens": 256}))
    told = Experiment(recording, clock="time", changed_settings=changed, timing=timing).reschedule(
        BUILTIN["original"]
    )
    real = RecordedTiming(recording, lambda: rows)
    real.__dict__["model"] = replace(timing.model, form=_Gpu())  # a cached property: set before it is asked
    truth = Experiment(recording, clock="time", changed_settings=changed, timing=real).reschedule(
        BUILTIN["original"]
    )
    assert told.outcome.latency is not None
    assert truth.outcome.latency is not None
    for name in ("ttft_us", "itl_us", "latency_us"):
        one, other = getattr(truth.outcome.latency, name), getattr(told.outcome.latency, name)
        assert other.p50 == pytest.approx(one.p50, rel=0.05), name
        assert other.p95 == pytest.approx(one.p95, rel=0.10), name
    assert told.outcome.clock is not None
    assert told.outcome.clock.kind == "time"


class _Gpu(TimeForm):
    @property
    def name(self) -> str:
        return "gpu"

    def us(self, features: Floats) -> Floats:
        return gpu(features)


def test_changed_settings_are_not_told_by_time_where_steps_say_nothing(
    timed: tuple[Recording, BatchRowColumns],
) -> None:
    recording, _ = timed
    timing = RecordedTiming(recording, lambda: None)
    changed = ChangedSettings(read_settings(recording.engine, {"max_num_seqs": 8}))
    with pytest.raises(UsageError, match="too many to be taken into memory"):
        Experiment(recording, clock="time", changed_settings=changed, timing=timing).workload  # noqa: B018
    plain = Experiment(recording, clock="time", timing=timing)
    assert plain.reschedule(BUILTIN["original"]).outcome.latency is None


# Who comes when ---------------------------------------------------------------------------------------------


def with_clients(recording: Recording, num_clients: int) -> Recording:
    """The recording as if so many clients had each waited for an answer before the next request."""
    free = [10**18] * num_clients
    arrived, finished = [], []
    for i in range(len(recording.requests["request_id"])):
        at = free.index(min(free))
        arrived.append(free[at] + 2_000_000)
        finished.append(arrived[-1] + 300_000_000 + 17_000_000 * (i % 7))
        free[at] = finished[-1]
    return replace(
        recording,
        requests={**recording.requests, "arrived_at": np.array(arrived), "finished_at": np.array(finished)},
    )


def test_clients_that_wait_for_their_answers_are_found_and_wait_in_the_replay(
    timed: tuple[Recording, BatchRowColumns],
) -> None:
    recording, rows = timed
    recording = with_clients(recording, 6)
    found = closed_loop_of(recording)
    assert found is not None
    assert found.num_clients == 6
    experiment = Experiment(
        recording, clock="time", timing=RecordedTiming(recording, lambda: rows), coming=AS_FOUND
    )
    run = Replay(experiment.workload, BUILTIN["original"])
    most = 0
    while not run.is_done():
        assert run.advance()
        most = max(most, run.scheduler.num_requests)
    assert most == 6
    assert len(run.arrivals_after_answers) == 80 - 6
    history = experiment.reschedule(BUILTIN["original"])
    assert "6 clients that wait for their answers" in history.outcome.modelled[0]
    assert history.outcome.latency is not None
    assert history.outcome.latency.num_requests == 80
    assert (history.outcome.latency.ttft_us.p50 or 0) > 0
    few = ChangedSettings(read_settings(recording.engine, {"max_num_seqs": 2}))
    slow = Experiment(
        recording, clock="time", timing=experiment.timing, coming=AS_FOUND, changed_settings=few
    ).reschedule(BUILTIN["original"])
    assert slow.columns["num_waiting"].max() <= 4, "no more than the clients that are not served"


def test_open_traffic_is_not_taken_for_clients_that_wait(timed: tuple[Recording, BatchRowColumns]) -> None:
    recording, _ = timed
    rng = np.random.default_rng(1)
    arrived = 10**18 + np.cumsum(rng.exponential(250e6, 80)).astype(np.int64)
    finished = arrived + rng.exponential(2e9, 80).astype(np.int64)
    opened = replace(
        recording, requests={**recording.requests, "arrived_at": arrived, "finished_at": finished}
    )
    assert closed_loop_of(opened) is None
    with pytest.raises(UsageError, match="no clients that wait for their answers"):
        Experiment(opened, clock="time", coming=ArrivalMode(closed=True)).workload  # noqa: B018


def test_requests_come_faster(timed: tuple[Recording, BatchRowColumns]) -> None:
    recording, _ = timed
    plain = Experiment(recording, clock="time").workload
    fast = Experiment(recording, clock="time", coming=ArrivalMode(rate=2.0, closed=False)).workload
    assert fast.requests[-1].arrival == pytest.approx(plain.requests[-1].arrival / 2, abs=1)
    assert "2 times as fast" in fast.notes[0]
