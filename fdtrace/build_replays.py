"""Builds replays of a trace for the screen, the report and the check."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fdtrace.formula_texts import DEFAULT
from fdtrace.recorded_rows import RecordedRows
from fdtrace.recorder.errors import UsageError
from fdtrace.scheduler_option import add_scheduler_arguments, given_schedulers
from fdtrace.sizes import size_of
from fdtrace.variants import (
    OWN_KEYS,
    Variant,
    clock_of_variant,
    coming_of,
    coming_of_variant,
    is_variant,
    refuse_as_recorded,
    refuse_equal_names,
    variant,
    variants_of,
    with_what_recorded,
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
    parser.add_argument("trace", type=Path, metavar="TRACE")
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
        "and formula=, policy=, scheduler=, arrivals=, acceptances= where they are others; repeatable",
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
        help="when requests come in a rescheduled replay: steps, before the same step as recorded; recorded, at the "
        "recorded time, with step durations fitted from the recording; closed, when a client has got its answer; "
        "rate=1.5x, faster (default: steps; where settings change recorded, or closed where the recording shows it)",
    )
    parser.add_argument(
        "--clock", choices=("steps", "time"), help="an older name: time is --arrivals recorded"
    )
    parser.add_argument(
        "--slo",
        metavar="SLO",
        help="objectives of a request, as ttft=500ms,itl=50ms (also tpot, latency): tells how many requests a second "
        "keep them all, in the recording and in each replay by time",
    )
    parser.add_argument(
        "--device-memory",
        metavar="SIZE",
        help="tell the step at which a device of this size would have run out, as 80GiB",
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
    """What the command line asks for: a recording, and what is to be replayed beside it.

    With a `reader` of a recording in progress, a replay takes it as far as it has come. To be closed: it may hold
    processes in which engines' schedulers run.
    """

    def __init__(
        self,
        recording: Recording,
        args: argparse.Namespace,
        rows: RecordedRows | RowsOfStep,
        reader: TraceReader | None = None,
    ) -> None:
        from fdtrace.drivers.children import Children
        from fdtrace.formula_texts import formulas
        from fdtrace.replayer.analysis.token_times import parse_slo
        from fdtrace.replayer.config import is_modelled

        self.recording, self.rows, self.args = recording, rows, args
        self.reader = reader if reader is not None and reader.live else None
        self._check: Callable[[], None] | None = None if reader is None else reader.check_step_requests
        if isinstance(rows, RecordedRows):
            self._check = rows.check
        self.policy = policy_of(args.policy)
        given = given_schedulers(args.scheduler, args.scheduler_python)
        told = [variant(text, args.scheduler_python) for text in args.variant or ()]
        clock = arrivals_of(args)
        asked = args.formula or given or told or args.policy or clock not in (None, "steps")
        self.how: How = (
            "as recorded"
            if args.as_recorded or not (is_modelled(recording.engine) or asked)
            else "rescheduled"
        )
        chosen = formulas(args.formula) if args.formula or not (given or told) else []
        texts = args.formula or (DEFAULT if chosen else ())
        self.clock = clock
        if args.as_recorded:
            refuse_as_recorded(given, told, clock)
        through = [one for one in given if one.engine == "transformers" == recording.engine.name]
        if through:  # its scheduler takes its budget as an argument: formulas replay through it
            given = [*(through[0].under(formula) for formula in chosen), *given]
            chosen, texts = [], ()
        self.device_bytes = size_of(args.device_memory, "--device-memory") if args.device_memory else None
        self.variants = [*variants_of(chosen, given, texts), *map(self._resolved, told)]
        refuse_equal_names(self.variants)
        for one in self.variants:
            self._refuse(one)
        self.slo = parse_slo(args.slo)
        self.timed = any(clock_of_variant(one, clock) == "time" for one in self.variants)
        """Whether one of them goes by time."""
        source = rows if isinstance(rows, RecordedRows) else reader
        self.batch_source: Callable[[Recording], BatchRowColumns | None] | None = (
            None if source is None else source.batch_rows
        )
        self._timing: RecordedTiming | None = None
        self.children = Children()
        self._experiments: dict[object, Experiment] = {}

    def close(self) -> None:
        """End the processes of engines' schedulers."""
        self.children.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resolved(self, one: Variant) -> Variant:
        """The variant with what schedules it, where it does not say: what recorded."""
        if one.formula is not None or one.scheduler is not None:
            return one
        return with_what_recorded(one, self.recording, self.args.scheduler_python)

    def _refuse(self, one: Variant) -> None:
        """UsageError where this recording cannot be replayed so."""
        from fdtrace.replayer.config import is_modelled
        from fdtrace.replayer.experiment import refuse_unmodelled

        if one.scheduler is not None:
            one.scheduler.refuse_others(self.recording)
        if self.how == "rescheduled":
            if one.formula is not None:
                refuse_unmodelled(self.recording, one.formula.name)
            policy = one.policy or self.policy
            if policy is not None and not is_modelled(self.recording.engine):
                refuse_unmodelled(self.recording, f"--policy {policy.name}")
        elif one.settings:
            raise UsageError("--as-recorded changes no setting", why="each step keeps the state that it had")
        one.changed(self.recording.engine)

    def _experiment_of(self, recording: Recording, one: Variant) -> Experiment:
        from fdtrace.replayer.experiment import Experiment

        changed = one.changed(recording.engine)
        clock, coming = coming_of_variant(one, self.clock)
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
        """What a variant of this recording may assign, for those who type it."""
        from fdtrace.replayer.config import is_modelled
        from fdtrace.replayer.workload.engine_settings import knobs_of

        engine, names = self.recording.engine, [*knobs_of(self.recording.engine)]
        if not is_modelled(engine):
            names += [name for name in engine.config.get("scheduler_config") or {} if name not in names]
        return [*names, *OWN_KEYS]

    def _timing_of(self, recording: Recording) -> RecordedTiming | None:
        """How long steps take, one for all replays of a recording; None where none of them goes by time."""
        from fdtrace.replayer.recorded.recorded_timing import RecordedTiming

        if self.how != "rescheduled" or not (self.timed or self.slo):
            return None
        if self._timing is None or self._timing.recording is not recording:
            source = self.batch_source
            self._timing = RecordedTiming(recording, lambda: None if source is None else source(recording))
        return self._timing

    def now(self) -> list[History]:
        """The recording and its replays, computed here with the progress on stderr."""
        from fdtrace.progress import Progress as Said

        plain = Variant("recorded")
        said, histories = Said(), [self._experiment_of(self.recording, plain).recorded()]
        for i, one in enumerate(self.variants):

            def progressed(share: float, name: str = one.name, i: int = i) -> None:
                if said.terminal:
                    said.update(f"replaying {name}, {i + 1} of {len(self.variants)}: {share:.0%}")

            histories.append(self._compute(one, progressed, None))
        said.clear()
        return histories

    def later(self) -> list[PaneReplay]:
        """The replays as panes that fill while the screen is in use."""
        return [self._later(one) for one in self.variants]

    def of(self, text: str) -> PaneReplay:
        """One more pane, for a formula or a variant given on the screen; UsageError where it is neither."""
        from fdtrace.formula_texts import formula

        if is_variant(text):
            found = self._resolved(variant(text, self.args.scheduler_python))
        else:
            asked = formula(text)
            found = Variant(asked.name, text, formula=asked)
        self._refuse(found)
        if clock_of_variant(found, self.clock) == "time" and not self.timed:
            self.timed = True
            self._experiments.clear()
        return self._later(found)

    def _later(self, one: Variant) -> PaneReplay:
        from fdtrace.replayer.experiment import policy_with
        from fdtrace.tui.panes.jobs import PaneReplay

        computed_from: list[Recording] = []
        compute = partial(self._compute, one, computed_from=computed_from)

        def recording() -> Recording | None:
            return computed_from[0] if computed_from else None

        if one.formula is None:
            return PaneReplay(one.name, self.how, compute, text=one.text, recording=recording)
        policy = one.policy or self.policy or policy_with(one.formula)

        def workload() -> Workload:
            return self._experiment_of(recording() or self.recording, one).workload

        return PaneReplay(one.name, self.how, compute, one.formula, policy, one.text, recording, workload)

    def _compute(
        self,
        one: Variant,
        progress: ShareDone,
        cancelled: Cancelled | None,
        computed_from: list[Recording] | None = None,
    ) -> History:
        if self.how == "rescheduled" and self._check is not None:
            self._check()
            self._check = self._check if self.reader is not None else None  # what is complete is checked once
        experiment = self._experiment_of(
            self.recording if self.reader is None else self.reader.recording(), one
        )
        if computed_from is not None:
            computed_from[:] = [experiment.recording]

        def progressed(done: int, expected: int) -> None:
            progress(min(1.0, done / max(expected, 1)))

        policy = one.policy or self.policy
        if one.scheduler is not None:
            engine = self.recording.engine
            with one.scheduler.open(
                experiment.workload.config,
                engine.env,
                engine.config,
                changed=experiment.changed_settings.values,
                children=self.children,
            ) as driven:
                found = experiment.reschedule(driven, None, progressed, cancelled)
        else:
            assert one.formula is not None
            if self.how == "as recorded":
                found = experiment.as_recorded(one.formula)
            else:
                found = experiment.reschedule(one.formula, policy, progressed, cancelled)
        return replace(found, name=one.name)


def arrivals_of(args: argparse.Namespace) -> str | None:
    """How requests come, as the command line says; None: it does not. UsageError where that is not known."""
    if args.arrivals is None:
        return cast("str | None", args.clock)
    coming_of(args.arrivals)
    return cast("str", args.arrivals)


def sources_of(reader: TraceReader, replays: Replays) -> Sources:
    """What the screen may ask the trace for."""
    from fdtrace.tui.sources import Sources

    return Sources(
        rows=reader.rows,
        request_steps=reader.request_steps,
        events=reader.events,
        event_steps=reader.event_steps,
        sql=reader.sql,
        replay_of=replays.of,
        settings=replays.settings,
        tail=reader.tail if reader.live else None,
        recording=reader.recording if reader.live else None,
        calls=reader.calls,
        lags=reader.lags,
    )
