"""`fdtrace replay T --ranks --routing R,…`: the ranks of a deployment side by side, recorded and routed otherwise."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from fdtrace.recorder.errors import UsageError
from fdtrace.variants import Variant, coming_of, refuse_equal_names, with_recorded_scheduler

if TYPE_CHECKING:
    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.replayer.config import Policy
    from fdtrace.replayer.formulas.base import Formula
    from fdtrace.replayer.rank_experiment import RankExperiment, RankRun
    from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
    from fdtrace.replayer.replay.any_scheduler import AnyScheduler
    from fdtrace.replayer.replay.workload_replay import Cancelled
    from fdtrace.replayer.workload.closed_loop import ArrivalMode

SAME = "same routing"
"""The name of the replay with the recorded routing: the other routings are compared with it."""


def add_rank_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `replay` that are about several ranks."""
    parser.add_argument(
        "--ranks",
        action="store_true",
        help="all engines of the trace (data-parallel ranks, roles) side by side; with -f, -w or --scheduler all of "
        "them are replayed",
    )
    parser.add_argument(
        "--routing",
        action="append",
        metavar="R",
        help="what other routings of the same requests to these ranks would have given: round_robin, least_requests, "
        "least_tokens, least_kv_blocks, prefix_affinity, vllm, or several with commas; repeatable; needs no --ranks",
    )


def asks_for_ranks(args: argparse.Namespace) -> bool:
    """Whether the command line asks for all ranks."""
    return bool(args.ranks or args.routing)


def routings_of(texts: Sequence[str] | None) -> list[str]:
    """The names of `--routing`. UsageError if there is no such routing."""
    from fdtrace.replayer.replay.routers import RECORDED, router_of

    names = [name.strip() for text in texts or () for name in text.split(",") if name.strip()]
    for name in names:
        router_of(name, {})
    return [name for name in dict.fromkeys(names) if name != RECORDED]


def rank_variants(
    recording: Recording, variants: Sequence[Variant], routings: Sequence[str], python: str
) -> list[Variant]:
    """What is replayed: each variant under the recorded routing, and under each of `routings`; without variants, what
    was recorded.

    Args:
        recording: of one of the ranks.
        variants: formulas, schedulers and changed settings; one that names its routing has that one alone.
        routings: by name.
        python: runs the driver of a real scheduler.

    Raises:
        UsageError: two have the same name, or what scheduled the recording is not known.
    """
    from fdtrace.replayer.replay.routers import RECORDED

    chosen: list[Variant] = []
    if routings and not variants:
        variants = [Variant(SAME)]
    for variant in variants:
        whole = _scheduled(variant, recording, python)
        if whole.routing is not None:
            chosen.append(whole)
            continue
        chosen.append(replace(whole, routing=RECORDED))
        for routing in routings:
            name = routing if whole.name == SAME else f"{whole.name}, {routing}"
            chosen.append(replace(whole, name=name, routing=routing))
    refuse_equal_names(chosen)
    return chosen


def _scheduled(variant: Variant, recording: Recording, python: str) -> Variant:
    """The variant with what schedules it, if that fits the recording."""
    from fdtrace.replayer.config import is_modelled

    if variant.scheduler is None and (variant.formula is None or not is_modelled(recording.engine)):
        variant = with_recorded_scheduler(variant, recording, python)
    if variant.scheduler is not None:
        variant.scheduler.refuse_others(recording)
    return variant


class RankReplayer(AbstractContextManager["RankReplayer"]):
    """Replays all ranks of a trace under variants. Close it: it may hold schedulers' processes, one for each rank."""

    def __init__(
        self,
        experiment: RankExperiment,
        policy: Policy | None = None,
        coming: ArrivalMode | None = None,
    ) -> None:
        from fdtrace.drivers.children import DriverPool
        from fdtrace.replayer.workload.closed_loop import AS_RECORDED

        self.experiment, self.policy, self.coming = experiment, policy, coming or AS_RECORDED
        self.children = DriverPool()

    def __exit__(self, *_: object) -> None:
        self.children.close()

    def recorded(self) -> RankRun:
        """The recording."""
        return self.experiment.recorded()

    def run(
        self,
        variant: Variant,
        progressed: Callable[[int, int], None] | None = None,
        cancelled: Cancelled | None = None,
    ) -> RankRun:
        """All ranks under a variant. UsageError, TargetError as for the replay of one rank."""
        recordings = self.experiment.recordings
        changed = variant.changed(recordings[0].engine)
        coming = self.coming if variant.arrivals is None else coming_of_ranks(variant.arrivals)
        joined = self.experiment.workloads(changed, coming)
        with ExitStack() as stack:
            schedulers: list[Formula | AnyScheduler] = []
            for recording, workload in zip(recordings, joined.ranks, strict=True):
                if variant.scheduler is None:
                    assert variant.formula is not None
                    schedulers.append(variant.formula)
                    continue
                engine = recording.engine
                opened = variant.scheduler.open(
                    workload.config, engine.env, engine.config, changed=changed.values, children=self.children
                )
                schedulers.append(stack.enter_context(opened))
            return self.experiment.routed(
                variant.name,
                variant.routing or "recorded",
                joined,
                schedulers,
                variant.policy or self.policy,
                progressed,
                cancelled,
            )


def coming_of_ranks(arrivals: str | None) -> ArrivalMode:
    """How requests arrive at several ranks. UsageError: only by recorded time, at any rate."""
    from fdtrace.replayer.workload.closed_loop import AS_RECORDED

    if arrivals is None:
        return AS_RECORDED
    clock, coming = coming_of(arrivals)
    if clock == "steps":
        raise UsageError(
            "ranks are not replayed by steps",
            why="step 7 of one rank is at another time than step 7 of another",
        )
    if coming.closed:
        raise UsageError(
            "arrivals=closed is not known for several ranks",
            why="which client waited for which rank is not recorded",
            hint="arrivals=recorded, or rate=1.5x",
        )
    return coming


def ranks_from(recordings: Sequence[Recording], slo: str | None) -> RankExperiment:
    """Recordings of all engines, each in memory with the requests of its steps. TraceError if none has a step."""
    from fdtrace.recorder.errors import TraceError
    from fdtrace.replayer.analysis.token_times import parse_slo
    from fdtrace.replayer.rank_experiment import RankExperiment

    if not any(recording.num_steps for recording in recordings):
        raise TraceError("no engine of this trace made a step", hint="fdtrace info TRACE")
    count = len(recordings)
    return RankExperiment(recordings, [None] * count, [_batches] * count, parse_slo(slo))


def _batches(recording: Recording) -> BatchRowColumns | None:
    from fdtrace.library.engine_recording import RowsInMemory

    rows = recording.details.step_rows
    return rows.batches(recording) if isinstance(rows, RowsInMemory) else None


def compute_ranks(recordings: Sequence[Recording], args: argparse.Namespace) -> list[RankRun]:
    """The recording of all ranks and the replays that the command line asks for, with the progress on stderr.

    UsageError if these cannot be.
    """
    from fdtrace.build_replays import arrivals_of, policy_of
    from fdtrace.progress import Progress

    _refuse_for_ranks(args)
    experiment = ranks_from(recordings, args.slo)
    routings, coming = routings_of(args.routing), coming_of_ranks(arrivals_of(args))
    variants = rank_variants(recordings[0], _given(args), routings, args.scheduler_python)
    for variant in variants:
        for recording in recordings:
            variant.changed(recording.engine)
    progress = Progress()
    with RankReplayer(experiment, policy_of(args.policy), coming) as replayer:
        runs = [replayer.recorded()]
        for i, variant in enumerate(variants):

            def progressed(done: int, expected: int, name: str = variant.name, i: int = i) -> None:
                if progress.terminal:
                    share = min(1.0, done / max(expected, 1))
                    progress.update(f"replaying {name}, {i + 1} of {len(variants)}: {share:.0%}")

            runs.append(replayer.run(variant, progressed))
    progress.clear()
    return runs


def ranks_for_screen(
    read: Callable[[], Sequence[Recording]], args: argparse.Namespace
) -> Callable[[Cancelled], Iterator[RankRun]]:
    """What the screen computes: all ranks as recorded, then under each routing of the command line. UsageError if there
    is no such routing.
    """
    routings = routings_of(getattr(args, "routing", None))

    def compute(cancelled: Cancelled) -> Iterator[RankRun]:
        recordings = read()
        with RankReplayer(ranks_from(recordings, args.slo)) as replayer:
            yield replayer.recorded()
            for variant in rank_variants(recordings[0], [], routings, args.scheduler_python):
                yield replayer.run(variant, None, cancelled)

    return compute


def _given(args: argparse.Namespace) -> list[Variant]:
    """The variants of -f, --scheduler and -w."""
    from fdtrace.formula_texts import formulas
    from fdtrace.scheduler_option import given_schedulers
    from fdtrace.variants import parse_variant, variants_of

    schedulers = given_schedulers(args.scheduler, args.scheduler_python)
    chosen = formulas(args.formula) if args.formula else []
    typed = [parse_variant(text, args.scheduler_python) for text in args.variant or ()]
    return [*variants_of(chosen, schedulers, args.formula or ()), *typed]


def _refuse_for_ranks(args: argparse.Namespace) -> None:
    """UsageError for an option that several ranks do not have."""
    for option, given, hint in (
        ("--engine", args.engine is not None, "without it"),
        ("--as-recorded", args.as_recorded, "--engine N --as-recorded asks one rank"),
        ("--device-memory", args.device_memory is not None, "--engine N --device-memory asks one rank"),
        ("--waits", getattr(args, "waits", False), "--engine N --waits shows one rank"),
    ):
        if given:
            raise UsageError(f"{option} is not known for all ranks together", hint=hint)
