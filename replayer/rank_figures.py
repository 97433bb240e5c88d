"""The ranks of a deployment in figures: what each ran and when, and how unevenly the work was spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fdtrace.recorder.trace.column_values import Floats
from fdtrace.replayer.history.latency import Latencies
from fdtrace.replayer.rank_experiment import RankHistory, RankRun


@dataclass(frozen=True)
class RankFigures:
    """One rank under one routing; tokens, requests, steps, and shares from 0 to 1."""

    engine_id: int
    rank: str
    """Its name: `rank 1`."""
    role: str
    num_requests: int
    num_steps: int
    num_prefill_tokens: int
    num_decode_tokens: int
    share_of_tokens: float
    """Of the tokens of all ranks."""
    mean_running: float
    """Over the time from the first step of any rank to the last."""
    mean_waiting: float
    max_waiting: int
    busy_share: float
    """Share of that time in which a step ran."""
    num_exceeded: int
    num_preemptions: int
    latency: Latencies | None
    why_not_done: str
    """Why it did not come to its end; empty: it did."""


@dataclass(frozen=True)
class Imbalance:
    """How unevenly the work was spread over the ranks."""

    most_to_mean_tokens: float
    """The tokens of the rank with the most, divided by the mean: 1 if all have as many. Ranks that wait for each other
    take as long as this one.
    """
    waited_s: float
    """Seconds that requests waited in the queues of all ranks, together."""
    waited_beside_room_s: float
    """Of these, the seconds in which another rank had a free slot and an empty queue."""
    duration_s: float

    @property
    def share_beside_room(self) -> float:
        """The share of all waiting that another rank had room for."""
        return self.waited_beside_room_s / self.waited_s if self.waited_s else 0.0


@dataclass(frozen=True, eq=False)
class _Load:
    """What a rank had between two moments: one entry a moment."""

    running: Floats
    waiting: Floats
    busy: Floats


def figures_of_ranks(run: RankRun) -> list[RankFigures]:
    """The figures of each rank, in the order of the ranks."""
    moments, spans = _clock_of(run)
    tokens = [_sum(rank, "num_tokens") for rank in run.ranks]
    return [
        _figures(rank, _load_of(rank, moments), spans, own / sum(tokens) if sum(tokens) else 0.0)
        for rank, own in zip(run.ranks, tokens, strict=True)
    ]


def _figures(rank: RankHistory, load: _Load, spans: Floats, share: float) -> RankFigures:
    history, duration = rank.history, float(spans.sum()) or 1.0
    waiting = history.columns["num_waiting"]
    return RankFigures(
        engine_id=rank.engine.engine_id,
        rank=rank.name,
        role=rank.engine.role,
        num_requests=rank.num_requests,
        num_steps=history.outcome.num_steps,
        num_prefill_tokens=_sum(rank, "num_prefill_tokens"),
        num_decode_tokens=_sum(rank, "num_decode_tokens"),
        share_of_tokens=share,
        mean_running=float((load.running * spans).sum()) / duration,
        mean_waiting=float((load.waiting * spans).sum()) / duration,
        max_waiting=int(waiting.max(initial=0)),
        busy_share=float((load.busy * spans).sum()) / duration,
        num_exceeded=history.outcome.num_exceeded,
        num_preemptions=history.outcome.num_preemptions,
        latency=history.outcome.latency,
        why_not_done=history.outcome.why_not_done,
    )


def imbalance_of(run: RankRun) -> Imbalance:
    """How unevenly the work of a run was spread."""
    moments, spans = _clock_of(run)
    loads = [_load_of(rank, moments) for rank in run.ranks]
    tokens = np.array([_sum(rank, "num_tokens") for rank in run.ranks], np.float64)
    has_room = [
        (load.waiting == 0) & (load.running < rank.engine.max_num_seqs)
        for rank, load in zip(run.ranks, loads, strict=True)
    ]
    rooms = np.sum(has_room, axis=0) if has_room else np.zeros(0)
    waiting = np.sum([load.waiting for load in loads], axis=0) if loads else np.zeros(0)
    return Imbalance(
        most_to_mean_tokens=float(tokens.max() / tokens.mean()) if tokens.any() else 1.0,
        waited_s=float((waiting * spans).sum()) / 1e6,
        waited_beside_room_s=float((waiting * (rooms > 0) * spans).sum()) / 1e6,
        duration_s=float(spans.sum()) / 1e6,
    )


def loads_over_time(run: RankRun, num_parts: int) -> list[Floats]:
    """Of each rank: the mean number of its requests, running and waiting, in equal parts of the time."""
    moments, spans = _clock_of(run)
    if not len(spans) or not spans.sum():
        return [np.zeros(num_parts) for _ in run.ranks]
    edges = np.linspace(moments[0], moments[-1], num_parts + 1)
    found = []
    for rank in run.ranks:
        load = _load_of(rank, moments)
        so_far = np.concatenate([[0.0], np.cumsum((load.running + load.waiting) * spans)])
        found.append(np.diff(np.interp(edges, moments, so_far)) / np.diff(edges))
    return found


def ranks_dict(runs: Sequence[RankRun]) -> list[dict[str, Any]]:
    """The runs in values that JSON has: figures of each rank, of all together, and how uneven they are."""
    found = []
    for run in runs:
        imbalance = imbalance_of(run)
        found.append(
            {
                "name": run.name,
                "routing": run.routing or None,
                "ranks": [
                    {**asdict(figures), "why_not_done": figures.why_not_done or None}
                    for figures in figures_of_ranks(run)
                ],
                "latency": None if run.latency is None else asdict(run.latency),
                "imbalance": {**asdict(imbalance), "share_beside_room": imbalance.share_beside_room},
                "modelled": list(run.modelled),
            }
        )
    return found


def _clock_of(run: RankRun) -> tuple[Floats, Floats]:
    """The moments at which a step of any rank begins or ends, ascending, and the time from each to the next."""
    times = [part for rank in run.ranks for part in (rank.starts_us, rank.ends_us)]
    moments = np.unique(np.concatenate(times)) if times else np.zeros(0)
    return moments, np.diff(moments)


def _load_of(rank: RankHistory, moments: Floats) -> _Load:
    """What a rank had from each moment to the next. Between the end of a step and the next step it had nothing."""
    if not len(rank.starts_us) or len(moments) < 2:
        nothing = np.zeros(max(0, len(moments) - 1))
        return _Load(nothing, nothing, nothing)
    begins = moments[:-1]
    step = np.searchsorted(rank.starts_us, begins, side="right") - 1
    in_step = (step >= 0) & (begins < rank.ends_us[step])
    columns = rank.history.columns
    running, waiting = (
        np.where(in_step, np.maximum(columns[name][step], 0), 0).astype(np.float64)
        for name in ("num_running", "num_waiting")
    )
    return _Load(running, waiting, in_step.astype(np.float64))


def _sum(rank: RankHistory, column: str) -> int:
    return int(np.maximum(rank.history.columns[column], 0).sum())
