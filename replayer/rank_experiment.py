"""The ranks of a deployment (engines of one trace) together: as recorded, and with other routings of their requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import EngineInfo, Recording
from fdtrace.replayer.analysis.fidelity import recorded_policy
from fdtrace.replayer.analysis.token_times import (
    ServedSteps,
    joined_steps,
    latencies,
    recorded_steps,
    replayed_latencies,
    replayed_steps,
)
from fdtrace.replayer.config import Policy, SchedulerConfig, is_modelled
from fdtrace.replayer.experiment import Experiment, policy_with
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.as_recorded import RowsOfStep
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.latency import Latencies
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.recorded.recorded_timing import RankTiming, shared_time_model
from fdtrace.replayer.recorded.step_durations import Clock, call_times
from fdtrace.replayer.recorded.time_model import TimeModel
from fdtrace.replayer.replay.any_scheduler import AnyScheduler
from fdtrace.replayer.replay.replay_history import history_of
from fdtrace.replayer.replay.routed_replay import RankReplay, RoutedReplay
from fdtrace.replayer.replay.routers import RECORDED, router_of
from fdtrace.replayer.replay.workload_replay import Cancelled, Progressed
from fdtrace.replayer.workload.closed_loop import ArrivalMode
from fdtrace.replayer.workload.rank_workloads import RankWorkloads, joined_workloads, with_keys_of_rank
from fdtrace.replayer.workload.under_settings import ChangedSettings
from fdtrace.replayer.workload.workload import Workload

BatchReader = Callable[[Recording], BatchRowColumns | None]
"""Gives the requests of every step of a recording; None: there are too many for memory."""


@dataclass(frozen=True)
class RankHistory:
    """One rank of a deployment: its steps, and when they began and ended, microseconds on the clock of all ranks."""

    engine: EngineInfo
    history: History
    num_requests: int
    """Requests that it had."""
    starts_us: NDArray[np.float64]
    ends_us: NDArray[np.float64]

    @property
    def name(self) -> str:
        """`rank 1` by the engine's data-parallel rank; `engine 1` if the trace does not know that."""
        return rank_name(self.engine)


@dataclass(frozen=True)
class RankRun:
    """All ranks of a deployment under one routing."""

    name: str
    routing: str
    """The routing's name; empty: it is the recording itself."""
    ranks: tuple[RankHistory, ...]
    latency: Latencies | None
    """What the clients of all ranks waited; None: it is not known."""
    modelled: tuple[str, ...] = ()
    """What it rests on beside the recording and the scheduler's rules."""


def rank_name(engine: EngineInfo) -> str:
    """How a rank is called."""
    role = "" if engine.role == "mixed" else f" ({engine.role})"
    return f"engine {engine.engine_id}{role}" if engine.dp_rank is None else f"rank {engine.dp_rank}{role}"


class RankExperiment:
    """The recordings of all ranks, and what their replays share: one clock and one time model."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        rows: Sequence[RowsOfStep | None],
        read: Sequence[BatchReader],
        slo: Mapping[str, float] | None = None,
    ) -> None:
        """A recording, a reader of its steps, and one of all its rows for each rank; `slo`: microseconds by name."""
        self.recordings, self.rows, self.slo = tuple(recordings), tuple(rows), slo or {}
        self.timings = [
            RankTiming(recording, _reading(reader, recording), self._shared_model)
            for recording, reader in zip(recordings, read, strict=True)
        ]

    @cached_property
    def _model(self) -> TimeModel:
        return shared_time_model([timing for timing in self.timings if timing.recording.num_steps])

    def _shared_model(self) -> TimeModel:
        return self._model

    @cached_property
    def begins_us(self) -> tuple[float, ...]:
        """When each rank made its first call. A rank without steps begins with the first. UsageError without times."""
        first = [
            int(call_times(recording)[0]) if recording.num_steps else None for recording in self.recordings
        ]
        known = [at for at in first if at is not None]
        return tuple(0.0 if at is None else (at - min(known)) / 1000.0 for at in first)

    def recorded(self) -> RankRun:
        """The recording. UsageError if it has no times."""
        ranks, parts = [], []
        for recording, rows, timing, begin in zip(
            self.recordings, self.rows, self.timings, self.begins_us, strict=True
        ):
            history = Experiment(recording, rows, timing=timing, slo=self.slo).recorded()
            part = _recorded_part(timing, begin)
            parts.append(part)
            starts, ends = _plain_times(timing, begin) if part is None else (part.starts, part.ends)
            ranks.append(RankHistory(recording.engine, history, _num_requests(recording), starts, ends))
        known = [part for part in parts if part is not None]
        is_known = len(known) == sum(recording.num_steps > 0 for recording in self.recordings)
        latency = latencies(joined_steps(known), self.slo) if known and is_known else None
        return RankRun(RECORDED, "", tuple(ranks), latency)

    def routed(
        self,
        name: str,
        routing: str,
        joined: RankWorkloads,
        schedulers: Sequence[Formula | AnyScheduler],
        policy: Policy | None = None,
        progressed: Progressed | None = None,
        cancelled: Cancelled | None = None,
    ) -> RankRun:
        """The requests of all ranks, each sent to a rank at its arrival.

        Args:
            name: of the run.
            routing: `recorded`, or a name of `routers.ROUTINGS`.
            joined: from `workloads`.
            schedulers: what schedules, one for each rank: a formula, or a scheduler of its own.
            policy: scheduler version of the model; by default that of the formula, or else the recorded one.
            progressed, cancelled: as for `replay_recording`.

        Raises:
            UsageError: there is no such routing.
        """
        router = router_of(routing, joined.rank_of)
        ranks = [
            RankReplay(workload, by, self._policy(recording, by, policy), begin)
            for workload, by, recording, begin in zip(
                joined.ranks, schedulers, self.recordings, joined.begins, strict=True
            )
        ]
        RoutedReplay(ranks, joined.requests, router).run(progressed, cancelled)
        histories = tuple(
            self._history(recording, rank) for recording, rank in zip(self.recordings, ranks, strict=True)
        )
        parts = [_replayed_part(rank) for rank in ranks if rank.log.num_steps]
        latency = latencies(joined_steps(parts), self.slo) if parts else None
        notes = dict.fromkeys(note for workload in joined.ranks for note in workload.notes)
        return RankRun(name, routing, histories, latency, (*notes, *self._limits()))

    def workloads(self, changed: ChangedSettings, coming: ArrivalMode) -> RankWorkloads:
        """The requests of all ranks on one clock.

        Args:
            changed: settings that differ from the recorded ones, on all ranks.
            coming: how many times as fast as recorded requests arrive.

        Raises:
            UsageError: these ranks cannot take each other's requests, or the recording does not show how long steps
                take.
        """
        refuse_unroutable([recording.engine for recording in self.recordings])
        self._shared_model()  # raises if the steps do not show how long they take
        experiments = [
            _RankWorkload(recording, rows, timing, changed, coming, entry)
            for entry, (recording, rows, timing) in enumerate(
                zip(self.recordings, self.rows, self.timings, strict=True)
            )
        ]
        begins = [begin / coming.rate for begin in self.begins_us]
        return joined_workloads([experiment.workload for experiment in experiments], begins)

    @staticmethod
    def _policy(recording: Recording, by: Formula | AnyScheduler, policy: Policy | None) -> Policy:
        own = policy_with(by) if isinstance(by, Formula) else None
        return policy or own or recorded_policy(recording)

    def _history(self, recording: Recording, rank: RankReplay) -> RankHistory:
        history = history_of(rank)
        timed = rank.timed
        assert timed is not None  # `workloads` has raised otherwise
        latency = replayed_latencies(rank, self.slo)
        outcome = replace(history.outcome, latency=latency)
        return RankHistory(
            recording.engine,
            replace(history, outcome=outcome),
            len(rank.workload.requests),
            timed.starts_us,
            timed.ends_us,
        )

    def _limits(self) -> list[str]:
        """What a replay of these ranks does not know."""
        notes = []
        if len(self.recordings) > 1 and self._have_no_common_block():
            notes.append(
                "no prompt block is known to be equal on two ranks: either the prompts have no common beginnings, or "
                "the ranks computed their hashes from different seeds (as vLLM may without PYTHONHASHSEED); then a "
                "request that moved finds nothing in the other rank's cache"
            )
        if any(_waits_for_others(recording.engine) for recording in self.recordings):
            notes.append(
                "expert parallelism: ranks wait for each other in each forward, which the recorded durations hold and "
                "another routing would change"
            )
        if any(recording.details.order is not None for recording in self.recordings if recording.num_steps):
            notes.append("each rank is replayed in lockstep: a forward follows each call")
        return notes

    def _have_no_common_block(self) -> bool:
        """Whether the prefix caches of the ranks have blocks, and no block of one rank is a block of another."""
        seen: list[set[int]] = []
        for recording in self.recordings:
            hashes = recording.details.block_hashes if recording.num_steps else None
            if hashes is not None:
                seen.append({int(value) for one in hashes if one is not None for value in one})
        seen = [blocks for blocks in seen if blocks]
        every = sum(len(blocks) for blocks in seen)
        return len(seen) > 1 and len(set().union(*seen)) == every


class _RankWorkload(Experiment):
    """The workload of one rank, with keys for the content of blocks that hold on all ranks."""

    def __init__(
        self,
        recording: Recording,
        rows: RowsOfStep | None,
        timing: RankTiming,
        changed: ChangedSettings,
        coming: ArrivalMode,
        entry: int,
    ) -> None:
        self.entry = entry
        super().__init__(recording, rows, "time", None, changed, timing, None, coming)

    def recorded_workload(self) -> Workload:
        """The recorded requests; a rank that made no step had none."""
        if not self.recording.num_steps:
            return Workload(SchedulerConfig.from_engine(self.recording.engine), (), clock=Clock("time"))
        return with_keys_of_rank(super().recorded_workload(), self.entry)


def refuse_unroutable(engines: Sequence[EngineInfo]) -> None:
    """UsageError if requests of one of these engines could not go to another."""
    if len(engines) < 2:
        raise UsageError(
            "this trace has one engine, so there is nothing to route",
            hint="attach to the process that started all data-parallel ranks",
        )
    for what, values in (
        ("engines", {engine.name for engine in engines}),
        ("roles", {engine.role for engine in engines}),
        ("block sizes", {str(engine.block_size) for engine in engines}),
    ):
        if len(values) > 1:
            raise UsageError(
                f"requests cannot be routed among these engines: they have different {what}",
                why=", ".join(sorted(values)),
                hint="--ranks shows them side by side as recorded",
            )
    if engines[0].role != "mixed":
        raise UsageError(
            f"requests cannot be routed among engines of the role {engines[0].role}",
            why="when the other instance sends or takes a request's KV cache is recorded for its own rank alone",
            hint="--ranks shows them side by side as recorded",
        )


def _reading(reader: BatchReader, recording: Recording) -> Callable[[], BatchRowColumns | None]:
    return lambda: reader(recording)


def _recorded_part(timing: RankTiming, begin: float) -> ServedSteps | None:
    """The steps of a recorded rank; None: it has none, or it is not known when they ended."""
    if not timing.recording.num_steps:
        return None
    try:
        return recorded_steps(timing).later(begin)
    except UsageError:
        return None


def _plain_times(timing: RankTiming, begin: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """When the steps of a recording began; each ends when the next begins, the last one at once."""
    if not timing.recording.num_steps:
        return np.zeros(0), np.zeros(0)
    starts = (timing.calls - timing.calls[0]) / 1000.0 + begin
    return starts, np.append(starts[1:], starts[-1])


def _replayed_part(rank: RankReplay) -> ServedSteps:
    return replayed_steps(rank)


def _num_requests(recording: Recording) -> int:
    return len(recording.requests["request"]) if "request" in recording.requests else 0


def _waits_for_others(engine: EngineInfo) -> bool:
    parallel = engine.config.get("parallel_config")
    expert = isinstance(parallel, Mapping) and parallel.get("enable_expert_parallel")
    return bool(expert) and not is_modelled(engine)
