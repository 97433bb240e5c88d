"""Runs many variants of one trace or case, on all processors. Each process reads the source once."""

from __future__ import annotations

import multiprocessing.util
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.drivers.children import Children
from fdtrace.recorder.errors import FdtraceError, TargetError, UsageError
from fdtrace.replayer.search.sweep_grid import SweepRow, SweepValue

if TYPE_CHECKING:
    from fdtrace.library.engine_recording import EngineRecording
    from fdtrace.replayer.history.history import History
    from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
    from fdtrace.replayer.workload.swept_recording import SweptRecording
    from fdtrace.replayer.workload.workload import Workload
    from fdtrace.variants import Variant

US_A_MS = 1000.0


@dataclass(frozen=True)
class SweepSource:
    """What every variant of a sweep has in common; it is sent to each process."""

    path: Path
    engine: int | None
    assigned: Mapping[str, Any]
    """Keys and values of every variant: the formula, or what else `-w` gives."""
    policy: str | None
    slo: str | None
    python: str


class SweepWorker:
    """Computes the figures of variants. The source is read once; an engine's real scheduler is started once."""

    def __init__(self, source: SweepSource) -> None:
        from fdtrace.search_options import is_case

        self.source = source
        self.workload: Workload | None = None
        self.recording: EngineRecording | None = None
        self.swept: SweptRecording | None = None
        self.timing: RecordedTiming | None = None
        self.children = Children()
        if is_case(source.path):
            from fdtrace.replayer.workload.from_case import workload_from_case
            from fdtrace.workload_file import read_case

            self.workload = workload_from_case(read_case(source.path))
        else:
            from fdtrace.library.trace_handle import open_library_trace
            from fdtrace.replayer.workload.swept_recording import SweptRecording

            with open_library_trace(source.path) as trace:
                self.recording = trace.recording(source.engine)
            self.swept = SweptRecording(self.recording.value)

    def row(self, settings: Mapping[str, SweepValue]) -> SweepRow:
        """The figures of one variant; `refused` says why a server would not start so, or nothing can be replayed."""
        from fdtrace.variants import variant_of

        try:
            variant = variant_of("swept", {**self.source.assigned, **settings}, self.source.python)
            figures = self._simulated(variant) if self.workload is not None else self._replayed(variant)
        except FdtraceError as error:
            return {**settings, "refused": f"{error.what}{f': {error.why}' if error.why else ''}"}
        return {**settings, **figures, "refused": None}

    def _simulated(self, variant: Variant) -> dict[str, Any]:
        from fdtrace.replayer.config import ORIGINAL, parse_policy
        from fdtrace.replayer.experiment import policy_with
        from fdtrace.replayer.replay.simulation import Simulation
        from fdtrace.replayer.workload.startup_checks import refusals
        from fdtrace.variants import workload_of

        assert self.workload is not None
        if variant.formula is None:
            raise UsageError("a case is swept under a formula", hint="-f pr7499")
        given = parse_policy(self.source.policy) if self.source.policy else None
        policy = variant.policy or given or policy_with(variant.formula) or ORIGINAL
        workload = workload_of(self.workload, variant)
        refused = refusals(workload.config, variant.formula.name, policy, workload.requests)
        if refused:
            raise UsageError("FastDeploy would not start with these settings", why=refused[0].text)
        simulation = Simulation(workload, variant.formula, policy, with_rows=False)
        limit = workload.config.max_num_batched_tokens
        tokens, preempted, stalls = [], 0, 0
        for step in simulation:
            tokens.append(step.forward.num_tokens)
            preempted += len(step.decision.preempted)
            stalls += len(step.forward.stalled)
        over = [number - limit for number in tokens if number > limit]
        return {
            "exceeded": len(over), "max_excess": max(over, default=0), "peak_tokens": max(tokens, default=0),
            "steps": len(tokens), "preempted": preempted, "stalls": stalls,
            "unfinished": len(workload.requests) - simulation.num_finished,
            "hangs": int(simulation.hang is not None or simulation.cut is not None), "rejected": 0,
            "budget_use": sum(tokens) / limit / max(len(tokens), 1),
        }  # fmt: skip

    def _replayed(self, variant: Variant) -> dict[str, Any]:
        from fdtrace.library.replay_variants import VariantReplayer
        from fdtrace.replayer.config import parse_policy
        from fdtrace.variants import resolved_variant

        assert self.recording is not None
        recording = self.recording.value
        variant = resolved_variant(variant, recording, self.source.python)
        policy = parse_policy(self.source.policy) if self.source.policy else None
        replayer = VariantReplayer(recording, [variant], None, None, self.source.slo)
        replayer.children, replayer.swept = self.children, self.swept
        self.timing = replayer.timing = self.timing or replayer.timing
        return figures_of(replayer.reschedule(variant, policy))

    def close(self) -> None:
        """End the processes of an engine's real scheduler."""
        self.children.close()


def figures_of(history: History) -> dict[str, Any]:
    """The figures of a history by their names in a sweep; those of times only where it has them."""
    outcome, latency = history.outcome, history.outcome.latency
    figures: dict[str, Any] = {
        "exceeded": outcome.num_exceeded, "max_excess": outcome.max_excess, "peak_tokens": outcome.peak_tokens,
        "steps": outcome.num_steps, "preempted": outcome.num_preemptions, "stalls": outcome.num_stalls,
        "unfinished": outcome.num_unfinished, "hangs": int(bool(outcome.why_not_done)),
        "rejected": outcome.num_rejected, "budget_use": outcome.budget_use,
    }  # fmt: skip
    if latency is None:
        return figures
    for name, values in (("ttft", latency.ttft_us), ("itl", latency.itl_us), ("latency", latency.latency_us)):
        for part in ("p50", "p95", "p99"):
            value = getattr(values, part)
            figures[f"{name}_{part}"] = None if value is None else value / US_A_MS
    figures["output_tokens_per_s"] = latency.output_tokens_per_s
    figures["requests_per_s"], figures["goodput_per_s"] = latency.requests_per_s, latency.goodput_per_s
    return figures


_worker: SweepWorker | None = None
"""Of a process of the pool."""


def _begin(source: SweepSource) -> None:
    global _worker  # noqa: PLW0603 - the one state of a process of the pool
    _worker = SweepWorker(source)
    multiprocessing.util.Finalize(None, _worker.close, exitpriority=1)  # a process of a pool runs no `atexit`


def _row(settings: Mapping[str, SweepValue]) -> SweepRow:
    assert _worker is not None
    return _worker.row(settings)


def swept(source: SweepSource, grid: Sequence[Mapping[str, SweepValue]], jobs: int) -> Iterator[SweepRow]:
    """The figures of every variant, in the order of the grid, as they come.

    Args:
        source: what is swept.
        grid: the settings of each variant.
        jobs: processes; 1: this one alone.

    Raises:
        FdtraceError: the source cannot be read.
    """
    if jobs == 1:
        worker = SweepWorker(source)
        try:
            yield from map(worker.row, grid)
        finally:
            worker.close()
        return
    SweepWorker(source).close()  # an error of the source is said here, not by a broken pool
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(grid)), context, _begin, (source,)) as pool:
        try:
            yield from pool.map(_row, grid)
        except BrokenProcessPool:
            raise TargetError(
                "a process of this sweep was killed",
                why="the machine may be short of memory",
                hint="--jobs 1",
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
