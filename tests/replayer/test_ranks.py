"""Ranks of a deployment: replayed together on one clock, their requests routed in other ways."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer import BUILTIN
from fdtrace.replayer.analysis.token_times import parse_slo
from fdtrace.replayer.rank_experiment import RankExperiment, RankRun
from fdtrace.replayer.rank_figures import (
    figures_of_ranks,
    imbalance_of,
    loads_over_time,
    ranks_dict,
)
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.replay.routed_replay import RankReplay, RoutedReplay
from fdtrace.replayer.replay.routers import ROUTINGS, PrefixAffinity, router_of
from fdtrace.replayer.replay.workload_replay import Replay
from fdtrace.replayer.workload.closed_loop import AS_RECORDED, ArrivalMode
from fdtrace.replayer.workload.under_settings import UNCHANGED
from fdtrace.replayer.workload.workload import WorkRequest
from tests.replayer.timed_recordings import timed_by_gpu

Timed = tuple[Recording, BatchRowColumns]
BEGIN = 10**18
LATER_NS = 700_000_000
"""How many nanoseconds after the first rank the second one makes its first call."""


def with_names(recording: Recording, prefix: str) -> Recording:
    names = [f"{prefix}{name}" for name in recording.requests["request_id"].tolist()]
    return replace(recording, requests={**recording.requests, "request_id": np.array(names, dtype=object)})


@pytest.fixture(scope="module")
def two() -> list[Timed]:
    """Two ranks: one with many requests and few blocks, one with fewer requests that came later."""
    from tests.replayer.conftest import make_recording, read_case, read_golden  # noqa: PLC0415

    found = []
    for rank, case in enumerate(("tight_blocks", "speculative")):
        plain = make_recording(read_case(case), read_golden(case, "original"), "original")
        recording, rows = timed_by_gpu(plain, BEGIN + rank * LATER_NS)
        engine = replace(recording.engine, engine_id=rank, dp_rank=rank)
        found.append((with_names(replace(recording, engine=engine), f"d{rank}-"), rows))
    return found


@pytest.fixture(scope="module")
def deployment(two: list[Timed]) -> RankExperiment:
    recordings = [recording for recording, _ in two]
    readers = [lambda _, rows=rows: rows for _, rows in two]
    return RankExperiment(recordings, [None, None], readers, parse_slo("ttft=500ms"))


@pytest.fixture(scope="module")
def routed(deployment: RankExperiment) -> Callable[[str], RankRun]:
    joined = deployment.workloads(UNCHANGED, AS_RECORDED)
    found: dict[str, RankRun] = {}

    def run(routing: str) -> RankRun:
        if routing not in found:
            found[routing] = deployment.routed(routing, routing, joined, [BUILTIN["original"]] * 2)
        return found[routing]

    return run


def test_the_recorded_routing_is_a_replay_of_each_rank_by_itself(
    deployment: RankExperiment, routed: Callable[[str], RankRun]
) -> None:
    joined = deployment.workloads(UNCHANGED, AS_RECORDED)
    run = routed("recorded")
    for rank, found in enumerate(run.ranks):
        own = [request for request in joined.requests if joined.rank_of[request.request_id] == rank]
        alone = Replay(replace(joined.ranks[rank], requests=tuple(own)), BUILTIN["original"])
        alone._clock = joined.begins[rank]
        alone.run()
        columns = alone.log.columns()
        assert found.num_requests == len(own)
        assert set(columns) <= set(found.history.columns)
        for name, values in columns.items():
            assert np.array_equal(values, found.history.columns[name]), name
        assert alone.timed is not None
        assert np.array_equal(alone.timed.starts_us, found.starts_us)
        step = int(columns["step"][len(columns["step"]) // 2])
        assert found.history.rows(step) == alone.log.reader()(step)
    assert run.ranks[1].starts_us[0] >= LATER_NS / 1000


@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_request_runs_once_whatever_the_routing(
    routing: str, deployment: RankExperiment, routed: Callable[[str], RankRun]
) -> None:
    joined, run = deployment.workloads(UNCHANGED, AS_RECORDED), routed(routing)
    ids = [name for rank in run.ranks for name in _ids(rank.history)]
    assert sorted(ids) == sorted(request.request_id for request in joined.requests)
    assert sum(rank.num_requests for rank in run.ranks) == len(joined.requests)
    assert not any(rank.history.outcome.num_unfinished for rank in run.ranks)
    assert run.latency is not None
    assert run.latency.num_requests == len(joined.requests)


def _ids(history: Any) -> set[str]:
    lives = history.lives()
    return {lives.request_ids[entry] for entry in np.unique(lives.rows.request).tolist()}


def test_the_figures_of_ranks_add_up(deployment: RankExperiment, routed: Callable[[str], RankRun]) -> None:
    for run in (deployment.recorded(), routed("least_tokens")):
        figures = figures_of_ranks(run)
        assert [rank.rank for rank in figures] == ["rank 0", "rank 1"]
        assert sum(rank.share_of_tokens for rank in figures) == pytest.approx(1)
        for rank, one in zip(run.ranks, figures, strict=True):
            assert one.num_prefill_tokens == rank.history.columns["num_prefill_tokens"].sum()
            spans = rank.ends_us - rank.starts_us
            assert one.busy_share == pytest.approx(
                spans.sum() / (max(r.ends_us[-1] for r in run.ranks) - run.ranks[0].starts_us[0]), rel=1e-6
            )
            there = rank.history.columns["num_running"] + rank.history.columns["num_waiting"]
            duration = imbalance_of(run).duration_s * 1e6
            assert one.mean_running + one.mean_waiting == pytest.approx((there * spans).sum() / duration)
        parts = np.array(loads_over_time(run, 7))
        assert parts.mean(axis=1) == pytest.approx([one.mean_running + one.mean_waiting for one in figures])
    (found,) = ranks_dict([routed("least_tokens")])
    assert found["latency"]["goodput_per_s"] is not None
    assert len(found["ranks"]) == 2


def test_the_recorded_ranks_are_replayed_as_they_were(
    deployment: RankExperiment, routed: Callable[[str], RankRun]
) -> None:
    real, told = deployment.recorded().latency, routed("recorded").latency
    assert real is not None
    assert told is not None
    assert told.ttft_us.p50 == pytest.approx(real.ttft_us.p50, rel=0.05)
    assert told.output_tokens_per_s == pytest.approx(real.output_tokens_per_s, rel=0.03)


def test_faster_arrivals_bring_the_second_rank_earlier(deployment: RankExperiment) -> None:
    plain = deployment.workloads(UNCHANGED, AS_RECORDED)
    fast = deployment.workloads(UNCHANGED, ArrivalMode(rate=2.0, closed=False))
    assert fast.begins[1] == pytest.approx(plain.begins[1] / 2)
    assert fast.requests[-1].arrival == pytest.approx(plain.requests[-1].arrival / 2, abs=2)


def test_a_rank_without_steps_takes_requests_too_and_they_wait_less(two: list[Timed]) -> None:
    recording, rows = two[0]
    empty = replace(
        recording,
        engine=replace(recording.engine, engine_id=1, dp_rank=1),
        steps={name: values[:0] for name, values in recording.steps.items()},
        requests={name: values[:0] for name, values in recording.requests.items()},
    )
    deployment = RankExperiment([recording, empty], [None, None], [lambda _: rows, lambda _: None])
    assert [rank.num_requests for rank in deployment.recorded().ranks] == [80, 0]
    joined = deployment.workloads(UNCHANGED, AS_RECORDED)
    before, after = (
        deployment.routed(name, name, joined, [BUILTIN["original"]] * 2)
        for name in ("recorded", "round_robin")
    )
    assert [rank.num_requests for rank in before.ranks] == [80, 0]
    assert [rank.num_requests for rank in after.ranks] == [40, 40]
    uneven, even = imbalance_of(before), imbalance_of(after)
    assert (uneven.most_to_mean_tokens, uneven.share_beside_room) == (2.0, 1.0)
    assert even.most_to_mean_tokens < 1.2
    assert even.waited_s < uneven.waited_s / 2
    assert even.share_beside_room < 0.5


def test_ids_that_two_ranks_have_stay_two_requests(two: list[Timed]) -> None:
    (recording, rows), _ = two
    other = replace(recording, engine=replace(recording.engine, engine_id=1, dp_rank=1))
    deployment = RankExperiment([recording, other], [None, None], [lambda _: rows] * 2)
    joined = deployment.workloads(UNCHANGED, AS_RECORDED)
    assert len({request.request_id for request in joined.requests}) == 160
    run = deployment.routed("r", "recorded", joined, [BUILTIN["original"]] * 2)
    one, same = (rank.history.columns for rank in run.ranks)
    assert all(np.array_equal(one[name], same[name]) for name in one)


def test_ranks_that_cannot_take_each_others_requests_are_refused(two: list[Timed]) -> None:
    (recording, rows), _ = two
    with pytest.raises(UsageError, match="one engine"):
        RankExperiment([recording], [None], [lambda _: rows]).workloads(UNCHANGED, AS_RECORDED)
    decode = replace(recording, engine=replace(recording.engine, role="decode"))
    mixed = RankExperiment([recording, decode], [None, None], [lambda _: rows] * 2)
    with pytest.raises(UsageError, match="different roles"):
        mixed.workloads(UNCHANGED, AS_RECORDED)
    assert [rank.name for rank in mixed.recorded().ranks] == ["rank 0", "rank 0 (decode)"]
    with pytest.raises(UsageError, match="no routing 'random'"):
        router_of("random", {})


# Routers ------------------------------------------------------------------------------------------------------


@dataclass
class State:
    num_running: int = 0
    num_waiting: int = 0
    num_tokens: int = 0
    num_kv_blocks: int = 0
    num_blocks: int = 100
    block_size: int = 16


def request(prompt: int = 64, key: Callable[[int], Hashable] | None = None) -> WorkRequest:
    return WorkRequest("r", 0, prompt, 8, block_key=key)


@pytest.mark.parametrize(
    ("routing", "chosen"),
    [("least_requests", 1), ("least_tokens", 2), ("least_kv_blocks", 0), ("vllm", 2)],
)
def test_a_router_goes_by_its_load(routing: str, chosen: int) -> None:
    ranks = [State(9, 0, 900, 10), State(1, 3, 500, 90), State(4, 1, 100, 20)]
    assert router_of(routing, {}).choose(request(), ranks) == chosen


def test_equal_ranks_take_turns() -> None:
    for routing in ("round_robin", "least_requests", "least_tokens", "least_kv_blocks", "vllm"):
        router = router_of(routing, {})
        assert [router.choose(request(), [State(), State(), State()]) for _ in range(4)] == [0, 1, 2, 0]


def test_prefixes_stay_together_until_the_ranks_are_unbalanced() -> None:
    router, ranks = PrefixAffinity(), [State(), State()]

    def like(family: str, own: str) -> WorkRequest:
        return request(64, lambda block: (family, block) if block < 3 else (own, block))

    assert router.choose(like("a", "x"), ranks) == 0
    assert router.choose(like("b", "y"), ranks) == 1
    assert [router.choose(like(family, "z"), ranks) for family in "abab"] == [0, 1, 0, 1]
    ranks[0].num_running = 65
    assert router.choose(like("a", "z"), ranks) == 1, "65 more, and more than 1.5 times as many"
    ranks[0].num_running = 64
    assert router.choose(like("a", "w"), ranks) == 1, "it has the prefix by now too, and fewer requests"
    other = request(160, lambda block: ("a", block) if block < 2 else ("v", block))
    assert router.choose(other, ranks) == 1, "2 of 10 blocks: too short a prefix"


def test_a_router_sees_what_has_been_sent_and_not_run(deployment: RankExperiment) -> None:
    """A burst at one moment is spread, since what a rank was sent counts before its next call."""
    joined = deployment.workloads(UNCHANGED, AS_RECORDED)
    burst = [one._replace(arrival=10_000_000) for one in joined.requests[:20]]
    for routing in ("least_requests", "least_tokens", "least_kv_blocks", "vllm"):
        ranks = [RankReplay(workload, BUILTIN["original"]) for workload in joined.ranks]
        run = RoutedReplay(ranks, burst, router_of(routing, {}))
        while run.rank_of.keys() < {one.request_id for one in burst}:
            assert run.advance()
        counts = np.bincount(list(run.rank_of.values()), minlength=2)
        assert counts.min() >= 5, routing
        assert [rank.num_waiting for rank in ranks] == counts.tolist()
        run.run()
        assert [rank.num_tokens for rank in ranks] == [0, 0]
        assert [rank.num_kv_blocks for rank in ranks] == [0, 0]
