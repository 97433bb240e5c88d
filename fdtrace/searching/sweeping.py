"""The figures of one variant of a trace or a case: what a sweep computes many times."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fdtrace.drivers.children import DriverPool
from fdtrace.recorder.errors import FdtraceError, UsageError
from fdtrace.replayer.analysis.fidelity import recorded_policy
from fdtrace.replayer.config import ORIGINAL, parse_policy
from fdtrace.replayer.experiment import policy_with
from fdtrace.replayer.search.sweep_grid import SweepRow, SweepValue
from fdtrace.replayer.search.sweep_parting import PARTING_COLUMNS
from fdtrace.variants import resolved_variant, variant_of, workload_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fdtrace.library.engine_recording import EngineRecording
    from fdtrace.library.replay_variants import VariantReplayer
    from fdtrace.replayer.config import Policy
    from fdtrace.replayer.history.history import History
    from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
    from fdtrace.replayer.recorded.time_model import TimeModel
    from fdtrace.replayer.replay.simulation import Simulation
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


@dataclass(frozen=True)
class SweepInput:
    """What a sweep has read: all that a process of another machine needs, without the file."""

    identity: str
    """Another sweep has another one."""
    source: SweepSource
    case: Mapping[str, Any] | None
    recording: EngineRecording | None


class SweepWorker:
    """Computes the figures of variants. The source is read once; an engine's real scheduler is started once."""

    def __init__(self, source: SweepSource, given: SweepInput | None = None) -> None:
        """`given`: what another process has read of the source. FdtraceError: the source cannot be read."""
        given = given or read_input(source)
        self.source, self._input = source, given
        self.workload: Workload | None = None
        self.recording = given.recording
        self.swept: SweptRecording | None = None
        self.timing: RecordedTiming | None = None
        self.children = DriverPool()
        if given.case is not None:
            from fdtrace.replayer.workload.from_case import workload_from_case

            self.workload = workload_from_case(given.case)
        else:
            from fdtrace.replayer.workload.swept_recording import SweptRecording

            assert given.recording is not None
            self.swept = SweptRecording(given.recording.value)

    def inputs(self) -> tuple[SweepInput, ...]:
        """What it has read, to be sent to other processes."""
        return (self._input,)

    def row(self, settings: Mapping[str, SweepValue]) -> SweepRow:
        """The figures of one variant; `refused` says why a server would not start so, or nothing can be replayed."""
        try:
            variant = self._variant(settings)
            figures = self._simulated(variant) if self.workload is not None else self._replayed(variant)
        except FdtraceError as error:
            return {**settings, "refused": f"{error.what}{f': {error.why}' if error.why else ''}"}
        return {**settings, **figures, "refused": None}

    def recorded_settings(self, names: Sequence[str]) -> dict[str, SweepValue] | None:
        """The recorded values of these settings, or those of the case; None: one of them is not known.

        `formula` and `policy` stand for themselves only in a recording whose formula is known.
        """
        from fdtrace.replayer.analysis.fidelity import recorded_formula
        from fdtrace.replayer.workload.engine_settings import ALIASES, knobs_of, recorded_value
        from fdtrace.variants import engine_of

        known: dict[str, Any] = {}
        if self.workload is not None:
            engine = engine_of(self.workload, "fastdeploy")
        else:
            assert self.recording is not None
            recording = self.recording.value
            engine = recording.engine
            known = {"formula": recorded_formula(recording), "policy": recorded_policy(recording).name}
        knobs, found = knobs_of(engine), dict[str, SweepValue]()
        for name in names:
            knob = knobs.get(ALIASES.get(name, name))
            value = known.get(name) if knob is None else recorded_value(knob, engine)
            if value is None:
                return None
            found[name] = str(value).lower() if isinstance(value, bool) else value
        return found

    def time_model(self, settings: Mapping[str, SweepValue]) -> TimeModel | None:
        """How long a step takes, as a replay with these settings fits it; None: by steps, or it cannot be fitted."""
        if self.timing is None and self.workload is None:  # other processes ran the replays
            self._replayer(self._variant(settings))
        if self.timing is None:
            return None
        try:
            return self.timing.model
        except FdtraceError:
            return None

    def columns(self, settings: Mapping[str, SweepValue]) -> Mapping[str, NDArray[Any]]:
        """The steps of one variant: the columns that `variant_split_of` compares. UsageError as for a replay."""
        variant = self._variant(settings)
        if self.workload is None:
            return self._history(variant).columns
        steps = list(self._simulation(variant))
        rows = [
            (
                *(step.number, step.forward.num_prefill_tokens, step.forward.num_decode_tokens),
                *(step.decision.num_running, step.decision.num_waiting, len(step.decision.preempted)),
                len(step.forward.stalled),
            )
            for step in steps
        ]
        table = np.array(rows, np.int64).reshape(-1, 1 + len(PARTING_COLUMNS))
        columns = dict(zip(("step", *PARTING_COLUMNS), table.T, strict=True))
        return {
            **columns,
            "not_admitted": np.array([step.decision.not_admitted or "" for step in steps], object),
        }

    def reasons(self, settings: Mapping[str, SweepValue], index: int) -> list[str]:
        """What the model decided in a step, by its entry, a sentence each; empty: a real scheduler gives no reasons."""
        from fdtrace.replayer.analysis.explain_step import Explainer

        variant = self._variant(settings)
        if self.workload is not None:
            last = None
            for step in self._simulation(variant, explain=True):
                last = step
                if step.number >= index:
                    break
            return [] if last is None else [reason.text for reason in last.decision.reasons]
        assert self.recording is not None
        variant = resolved_variant(variant, self.recording.value, self.source.python)
        history = self._history(variant)
        if variant.formula is None or history.outcome.order != "lockstep":
            return []
        policy = self._policy_of(variant, recorded_policy(self.recording.value))
        workload = self._replayer(variant).experiment(variant).workload
        explained = Explainer(lambda: workload, variant.formula, policy).explain(workload.first_step + index)
        return [reason.text for decision in explained.decisions for reason in decision.reasons]

    def _variant(self, settings: Mapping[str, SweepValue]) -> Variant:
        return variant_of("swept", {**self.source.assigned, **settings}, self.source.python)

    def _policy_of(self, variant: Variant, otherwise: Policy) -> Policy:
        given = parse_policy(self.source.policy) if self.source.policy else None
        own = None if variant.formula is None else policy_with(variant.formula)
        return variant.policy or given or own or otherwise

    def _simulation(self, variant: Variant, *, explain: bool = False) -> Simulation:
        from fdtrace.replayer.replay.simulation import Simulation
        from fdtrace.replayer.workload.startup_checks import refusals

        assert self.workload is not None
        if variant.formula is None:
            raise UsageError("a case is swept under a formula", hint="-f pr7499")
        policy = self._policy_of(variant, ORIGINAL)
        workload = workload_of(self.workload, variant)
        refused = refusals(workload.config, variant.formula.name, policy, workload.requests)
        if refused:
            raise UsageError("FastDeploy would not start with these settings", why=refused[0].text)
        return Simulation(workload, variant.formula, policy, explain=explain, with_rows=False)

    def _simulated(self, variant: Variant) -> dict[str, Any]:
        simulation = self._simulation(variant)
        workload = simulation.workload
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

    def _replayer(self, variant: Variant) -> VariantReplayer:
        from fdtrace.library.replay_variants import VariantReplayer

        assert self.recording is not None
        replayer = VariantReplayer(self.recording.value, [variant], None, None, self.source.slo)
        replayer.children, replayer.swept = self.children, self.swept
        self.timing = replayer.timing = self.timing or replayer.timing
        return replayer

    def _history(self, variant: Variant) -> History:
        assert self.recording is not None
        variant = resolved_variant(variant, self.recording.value, self.source.python)
        policy = parse_policy(self.source.policy) if self.source.policy else None
        return self._replayer(variant).reschedule(variant, policy)

    def _replayed(self, variant: Variant) -> dict[str, Any]:
        return figures_of(self._history(variant))

    def close(self) -> None:
        """End the processes of an engine's real scheduler."""
        self.children.close()


def read_input(source: SweepSource) -> SweepInput:
    """Read a trace or a case. FdtraceError if it cannot be read."""
    from fdtrace.searching.search_options import is_case

    identity = uuid.uuid4().hex
    if is_case(source.path):
        from fdtrace.workload_file import read_case

        return SweepInput(identity, source, read_case(source.path), None)
    from fdtrace.library.trace_handle import open_library_trace

    with open_library_trace(source.path) as trace:
        return SweepInput(identity, source, None, trace.recording(source.engine))


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
    figures["beyond"] = latency.num_steps_beyond
    return figures
