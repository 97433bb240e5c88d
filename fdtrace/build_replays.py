"""Builds replays of a trace for the screen, the report and the check."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from fdtrace.formula_texts import DEFAULT
from fdtrace.recorded_rows import RecordedRows
from fdtrace.recorder.errors import UsageError
from fdtrace.scheduler_option import TAKES_BUDGETS, add_scheduler_arguments, given_schedulers
from fdtrace.sizes import size_of
from fdtrace.trace_argument import trace_argument
from fdtrace.variants import (
    OWN_KEYS,
    Variant,
    clock_of_variant,
    coming_of,
    coming_of_variant,
    is_variant,
    only_arrivals_of,
    parse_variant,
    refuse_as_recorded,
    refuse_equal_names,
    resolved_variant,
    variants_of,
)

if TYPE_CHECKING:
    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.replayer.config import Policy
    from fdtrace.replayer.experiment import Experiment
    from fdtrace.replayer.history.as_recorded import RowsOfStep
    from fdtrace.replayer.history.history import History, How
    from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
    from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
    from fdtrace.replayer.replay.workload_replay import Cancelled
    from fdtrace.replayer.workload.workload import Workload
    from fdtrace.trace_reader import TraceReader
    from fdtrace.tui.panes.jobs import PaneReplay, ShareDone
    from fdtrace.tui.sources import Sources


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `replay` and `check` share."""
    parser.add_argument("trace", type=trace_argument, metavar="TRACE")
    parser.add_argument(
        "-f",
        "--formula",
        action="append",
        metavar="FORMULA",
        help="a built-in name, 'name: EXPRESSION', or FILE.py:CLASS; repeatable (default: "
        + ", ".join(DEFAULT)
        + ")",
    )
    parser.add_argument(
        "-w",
        "--variant",
        action="append",
        metavar="VARIANT",
        help="'NAME: KEY=VALUE, …': a replay with changed settings of the engine (`fdtrace knobs TRACE` lists them), "
        "and, if these differ too, formula=, policy=, scheduler=, arrivals=, acceptances=; repeatable",
    )
    parser.add_argument(
        "--as-recorded", action="store_true", help="keep each step's recorded state: exact, needs no model"
    )
    parser.add_argument(
        "--policy", metavar="P", help="scheduler version of the rescheduled replays (default: as recorded)"
    )
    parser.add_argument(
        "--arrivals",
        metavar="A",
        help="when requests arrive in a rescheduled replay: steps, before the same step as recorded; recorded, at the "
        "recorded time, with step durations fitted from the recording; closed, when a client has got its answer; "
        "rate=1.5x, faster (default: steps; if settings change: closed if the recording shows it, else recorded)",
    )
    parser.add_argument(
        "--clock", choices=("steps", "time"), help="an older name: time is --arrivals recorded"
    )
    parser.add_argument(
        "--slo",
        metavar="SLO",
        help="objectives of a request, as ttft=500ms,itl=50ms (also tpot, latency): tells how many requests a second "
        "meet them all, in the recording and in each replay by time",
    )
    parser.add_argument(
        "--device-memory",
        metavar="SIZE",
        help="tell the step at which a device of this size would have run out of memory, as 80GiB",
    )
    add_scheduler_arguments(parser)
    parser.add_argument(
        "--engine", type=int, metavar="N", help="which engine of a trace of several (default: the first)"
    )


def policy_of(text: str | None) -> Policy | None:
    """The policy that `--policy` names."""
    from fdtrace.replayer.config import parse_policy

    return parse_policy(text) if text else None


class Replays(AbstractContextManager["Replays"]):
    """The recording and the variants that the command line asks for. Close it: it may hold schedulers' processes.

    If `reader` reads a recording in progress, a replay takes all that is recorded so far.
    """

    def __init__(
        self,
        recording: Recording,
        args: argparse.Namespace,
        rows: RecordedRows | RowsOfStep,
        reader: TraceReader | None = None,
        *,
        checked: bool = False,
    ) -> None:
        """`checked`: another process checks the rows of this trace."""
        from fdtrace.drivers.children import DriverPool
        from fdtrace.formula_texts import formulas
        from fdtrace.replayer.analysis.token_times import parse_slo
        from fdtrace.replayer.config import is_modelled

        self.recording, self.rows, self.args = recording, rows, args
        self.reader = reader if reader is not None and reader.live else None
        self._check: Callable[[], None] | None = None if reader is None else reader.check_step_requests
        if isinstance(rows, RecordedRows) and not checked:
            self._check = rows.check
        self.policy = policy_of(args.policy)
        schedulers = given_schedulers(args.scheduler, args.scheduler_python)
        variants = [parse_variant(text, args.scheduler_python) for text in args.variant or ()]
        clock = arrivals_of(args) or only_arrivals_of(recording)
        reschedules = args.formula or schedulers or variants or args.policy or clock not in (None, "steps")
        self.how: How = (
            "as recorded"
            if args.as_recorded or not (is_modelled(recording.engine) or reschedules)
            else "rescheduled"
        )
        chosen = formulas(args.formula) if args.formula or not (schedulers or variants) else []
        texts = args.formula or (DEFAULT if chosen else ())
        self.clock = clock
        if args.as_recorded:
            refuse_as_recorded(schedulers, variants, clock)
        takes_budget = [
            s for s in schedulers if s.engine in TAKES_BUDGETS and s.engine == recording.engine.name
        ]
        if takes_budget:  # its scheduler reads its budgets at each call, so formulas run through it
            schedulers = [*(takes_budget[0].under(formula) for formula in chosen), *schedulers]
            chosen, texts = [], ()
        self.device_bytes = size_of(args.device_memory, "--device-memory") if args.device_memory else None
        self.variants = [*variants_of(chosen, schedulers, texts), *map(self._resolved, variants)]
        refuse_equal_names(self.variants)
        for variant in self.variants:
            self._refuse(variant)
        self.slo = parse_slo(args.slo)
        # Whether any variant replays by time, not by steps.
        self.timed = any(clock_of_variant(variant, clock) == "time" for variant in self.variants)
        source = rows if isinstance(rows, RecordedRows) else reader
        self.batch_source: Callable[[Recording], BatchRowColumns | None] | None = (
            None if source is None else source.batch_rows
        )
        self._timing: RecordedTiming | None = None
        self.children = DriverPool()
        self._experiments: dict[object, Experiment] = {}

    def close(self) -> None:
        """End the processes of engines' schedulers."""
        self.children.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resolved(self, variant: Variant) -> Variant:
        return resolved_variant(variant, self.recording, self.args.scheduler_python)

    def _refuse(self, variant: Variant) -> None:
        """UsageError if this recording cannot be replayed under the variant."""
        from fdtrace.replayer.config import is_modelled
        from fdtrace.replayer.experiment import refuse_unmodelled

        if variant.scheduler is not None:
            variant.scheduler.refuse_others(self.recording)
        if self.how == "rescheduled":
            if variant.formula is not None:
                refuse_unmodelled(self.recording, variant.formula.name)
            policy = variant.policy or self.policy
            if policy is not None and not is_modelled(self.recording.engine):
                refuse_unmodelled(self.recording, f"--policy {policy.name}")
        elif variant.settings:
            raise UsageError("--as-recorded changes no setting", why="each step keeps the state that it had")
        variant.changed(self.recording.engine)

    def _experiment_of(self, recording: Recording, variant: Variant) -> Experiment:
        from fdtrace.replayer.experiment import Experiment

        changed = variant.changed(recording.engine)
        clock, coming = coming_of_variant(variant, self.clock)
        timing = self._timing_of(recording)
        key = (id(recording), clock, coming, changed.acceptances, *sorted(changed.values.items()))
        if key not in self._experiments:
            if self.reader is not None:
                self._experiments.clear()  # the recording has grown
            self._experiments[key] = Experiment(
                recording, self.rows, clock, self.device_bytes, changed, timing, self.slo, coming
            )
        return self._experiments[key]

    @property
    def settings(self) -> list[str]:
        """The keys that a variant of this recording may assign, for completion while somebody types."""
        from fdtrace.replayer.config import is_modelled
        from fdtrace.replayer.workload.engine_settings import knobs_of

        engine, names = self.recording.engine, [*knobs_of(self.recording.engine)]
        if not is_modelled(engine):
            names += [name for name in engine.config.get("scheduler_config") or {} if name not in names]
        return [*names, *OWN_KEYS]

    def _timing_of(self, recording: Recording) -> RecordedTiming | None:
        """How long steps take: one model for all replays of a recording. None if no replay needs times."""
        from fdtrace.replayer.recorded.recorded_timing import RecordedTiming

        if self.how != "rescheduled" or not (self.timed or self.slo):
            return None
        if self._timing is None or self._timing.recording is not recording:
            source = self.batch_source
            self._timing = RecordedTiming(recording, lambda: None if source is None else source(recording))
        return self._timing

    def recorded(self) -> History:
        """The recording's own history."""
        return self._experiment_of(self.recording, Variant("recorded")).recorded()

    def check_rows(self) -> None:
        """TraceError if the rows that replays are made from contradict themselves. A complete trace is checked once."""
        if self.how == "rescheduled" and self._check is not None:
            self._check()
            self._check = self._check if self.reader is not None else None

    def experiment_of(self, variant: Variant) -> Experiment:
        """What a variant's replays of this recording share."""
        return self._experiment_of(self.recording, variant)

    def panes(self) -> list[PaneReplay]:
        """The replays as panes that fill while the screen is in use."""
        return [self._pane(variant) for variant in self.variants]

    def pane_of(self, text: str) -> PaneReplay:
        """A new pane for a formula or a variant that was typed on the screen. UsageError if the text is neither."""
        from fdtrace.formula_texts import formula

        if is_variant(text):
            variant = self._resolved(parse_variant(text, self.args.scheduler_python))
        else:
            parsed = formula(text)
            variant = Variant(parsed.name, text, formula=parsed)
        self._refuse(variant)
        if clock_of_variant(variant, self.clock) == "time" and not self.timed:
            self.timed = True
            self._experiments.clear()
        return self._pane(variant)

    def _pane(self, variant: Variant) -> PaneReplay:
        from fdtrace.replayer.experiment import policy_with
        from fdtrace.tui.panes.jobs import PaneReplay

        computed_from: list[Recording] = []
        job = partial(self.compute, variant, computed_from=computed_from)

        def source() -> Recording | None:
            return computed_from[0] if computed_from else None

        if variant.formula is None:
            return PaneReplay(variant.name, self.how, job, text=variant.text, recording=source)
        policy = variant.policy or self.policy or policy_with(variant.formula)

        def load() -> Workload:
            return self._experiment_of(source() or self.recording, variant).workload

        return PaneReplay(variant.name, self.how, job, variant.formula, policy, variant.text, source, load)

    def compute(
        self,
        variant: Variant,
        progress: ShareDone,
        cancelled: Cancelled | None,
        computed_from: list[Recording] | None = None,
    ) -> History:
        """The replay of a variant; `computed_from` is given the recording if that has grown."""
        self.check_rows()
        experiment = self._experiment_of(
            self.recording if self.reader is None else self.reader.recording(), variant
        )
        if computed_from is not None:
            computed_from[:] = [experiment.recording]

        def progressed(done: int, expected: int) -> None:
            progress(min(1.0, done / max(expected, 1)))

        policy = variant.policy or self.policy
        if variant.scheduler is not None:
            engine = self.recording.engine
            with variant.scheduler.open(
                experiment.workload.config,
                engine.env,
                engine.config,
                changed=experiment.changed_settings.values,
                children=self.children,
            ) as driven:
                history = experiment.reschedule(driven, None, progressed, cancelled)
        else:
            assert variant.formula is not None
            if self.how == "as recorded":
                history = experiment.as_recorded(variant.formula)
            else:
                history = experiment.reschedule(variant.formula, policy, progressed, cancelled)
        return replace(history, name=variant.name)


def arrivals_of(args: argparse.Namespace) -> str | None:
    """How requests arrive, as the command line says. None: it does not say. UsageError if the text is not known."""
    if args.arrivals is None:
        return cast("str | None", args.clock)
    coming_of(args.arrivals)
    return cast("str", args.arrivals)


def sources_of(reader: TraceReader, replays: Replays) -> Sources:
    """The functions by which the screen reads the trace."""
    from fdtrace.tui.sources import Sources

    return Sources(
        rows=reader.rows,
        request_steps=reader.request_steps,
        events=reader.events,
        event_steps=reader.event_steps,
        sql=reader.sql,
        replay_of=replays.pane_of,
        settings=replays.settings,
        tail=reader.tail if reader.live else None,
        recording=reader.recording if reader.live else None,
        calls=reader.calls,
        lags=reader.lags,
    )
