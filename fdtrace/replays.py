"""Builds replays of a trace for the screen, the report and the check."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.formula_texts import DEFAULT
from fdtrace.recorder.errors import UsageError
from fdtrace.schedulers import add_scheduler_arguments
from fdtrace.sizes import size_of

if TYPE_CHECKING:
    import duckdb

    from fdtrace.reading import TraceReader
    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.recorder.trace.trace import Trace
    from fdtrace.replayer.config import Policy
    from fdtrace.replayer.experiment import Experiment
    from fdtrace.replayer.formulas import Formula
    from fdtrace.replayer.history.as_recorded import RowsOfStep
    from fdtrace.replayer.history.history import History, How
    from fdtrace.replayer.model.events import StepRow
    from fdtrace.replayer.replay.run import Cancelled
    from fdtrace.schedulers import GivenScheduler
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
        "--as-recorded", action="store_true", help="keep each step's recorded state: exact, needs no model"
    )
    parser.add_argument(
        "--policy", metavar="P", help="scheduler version of the rescheduled replays (default: as recorded)"
    )
    parser.add_argument(
        "--clock",
        choices=("steps", "time"),
        default="steps",
        help="by what requests arrive in a rescheduled replay: the recorded step, or the recorded time with step "
        "durations fitted from the recording (default: steps)",
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


class RecordedRows:
    """Reads the requests of a recorded step of a trace that is complete; each thread has a cursor of its own."""

    def __init__(self, trace: Trace, engine_id: int) -> None:
        self.trace, self.engine_id = trace, engine_id
        self._local = threading.local()

    def __call__(self, step: int) -> list[StepRow]:
        """The rows of a step, prefills first."""
        from fdtrace.recorder.trace.loading import STEP_ROWS
        from fdtrace.recorder.trace.trace import reading
        from fdtrace.replayer.model.events import StepRow

        cursor: duckdb.DuckDBPyConnection | None = getattr(self._local, "cursor", None)
        if cursor is None:
            cursor = self._local.cursor = self.trace.db.cursor()
        with reading(self.trace.path):
            return [StepRow(*row) for row in cursor.execute(STEP_ROWS, [self.engine_id, step]).fetchall()]

    def check(self) -> None:
        """TraceError where what a replay reschedules from contradicts itself."""
        self.trace.check_step_requests(self.engine_id)


def policy_of(text: str | None) -> Policy | None:
    """The policy that `--policy` names."""
    from fdtrace.replayer.config import parse_policy

    return parse_policy(text) if text else None


class Replays:
    """What the command line asks for: a recording, and what is to be replayed beside it.

    With a `reader` of a recording in progress, a replay takes it as far as it has come.
    """

    def __init__(
        self,
        recording: Recording,
        args: argparse.Namespace,
        rows: RecordedRows | RowsOfStep,
        reader: TraceReader | None = None,
    ) -> None:
        from fdtrace.formula_texts import formulas
        from fdtrace.replayer.config import is_modelled
        from fdtrace.replayer.experiment import refuse_unmodelled
        from fdtrace.schedulers import given_schedulers

        self.recording, self.rows, self.args = recording, rows, args
        self.reader = reader if reader is not None and reader.live else None
        self._check: Callable[[], None] | None = None if reader is None else reader.check_step_requests
        if isinstance(rows, RecordedRows):
            self._check = rows.check
        self.policy = policy_of(args.policy)
        given = given_schedulers(args.scheduler, args.scheduler_python)
        modelled = is_modelled(recording.engine)
        asked = args.formula or given or args.policy or args.clock != "steps"
        self.how: How = "as recorded" if args.as_recorded or not (modelled or asked) else "rescheduled"
        chosen = formulas(args.formula) if args.formula or not given else []
        through = [one for one in given if one.engine == "transformers" == recording.engine.name]
        if through:  # its scheduler takes its budget as an argument: formulas replay through it
            budgeted = [through[0].under(formula) for formula in chosen]
            chosen = []
        else:
            budgeted = []
        self.subjects: list[Formula | GivenScheduler] = [*chosen, *budgeted, *given]
        self.texts = [*(args.formula or (DEFAULT if chosen or budgeted else ())), *("" for _ in given)]
        if given and args.as_recorded:
            raise UsageError("--as-recorded asks formulas alone", why="a real scheduler has no other state")
        if args.as_recorded and args.clock != "steps":
            raise UsageError("--as-recorded has no clock", why="each step keeps the requests that it had")
        self.device_bytes = size_of(args.device_memory, "--device-memory") if args.device_memory else None
        for one in given:
            one.refuse_others(recording)
        if self.how == "rescheduled":
            for formula in chosen:
                refuse_unmodelled(recording, formula.name)
            if self.policy is not None and not modelled:
                refuse_unmodelled(recording, f"--policy {self.policy.name}")

    @cached_property
    def _experiment(self) -> Experiment:
        return self._experiment_of(self.recording)

    def _experiment_of(self, recording: Recording) -> Experiment:
        from fdtrace.replayer.experiment import Experiment

        return Experiment(recording, self.rows, self.args.clock, self.device_bytes)

    def now(self) -> list[History]:
        """The recording and its replays, computed here with the progress on stderr."""
        from fdtrace.progress import Progress as Said

        said, histories = Said(), [self._experiment.recorded()]
        for i, one in enumerate(self.subjects):

            def progressed(share: float, name: str = one.name, i: int = i) -> None:
                if said.terminal:
                    said.update(f"replaying {name}, {i + 1} of {len(self.subjects)}: {share:.0%}")

            histories.append(self._compute(one, progressed, None))
        said.clear()
        return histories

    def later(self) -> list[PaneReplay]:
        """The replays as panes that fill while the screen is in use."""
        return [self._later(one, text) for one, text in zip(self.subjects, self.texts, strict=True)]

    def of(self, text: str) -> PaneReplay:
        """One more pane, for a formula given on the screen; UsageError where it is none."""
        from fdtrace.formula_texts import formula
        from fdtrace.replayer.experiment import refuse_unmodelled

        found = formula(text)
        if self.how == "rescheduled":
            refuse_unmodelled(self.recording, found.name)
        return self._later(found, text)

    def _later(self, one: Formula | GivenScheduler, text: str) -> PaneReplay:
        from fdtrace.replayer.experiment import policy_with
        from fdtrace.schedulers import GivenScheduler
        from fdtrace.tui.panes.jobs import PaneReplay

        computed_from: list[Recording] = []
        compute = partial(self._compute, one, computed_from=computed_from)

        def recording() -> Recording | None:
            return computed_from[0] if computed_from else None

        if isinstance(one, GivenScheduler):
            return PaneReplay(one.name, self.how, compute, text=text, recording=recording)
        policy = self.policy or policy_with(one)
        return PaneReplay(one.name, self.how, compute, one, policy, text, recording)

    def _compute(
        self,
        one: Formula | GivenScheduler,
        progress: ShareDone,
        cancelled: Cancelled | None,
        computed_from: list[Recording] | None = None,
    ) -> History:
        from fdtrace.schedulers import GivenScheduler

        if self.how == "rescheduled" and self._check is not None:
            self._check()
            self._check = self._check if self.reader is not None else None  # what is complete is checked once
        experiment = self._experiment if self.reader is None else self._experiment_of(self.reader.recording())
        if computed_from is not None:
            computed_from[:] = [experiment.recording]

        def progressed(done: int, expected: int) -> None:
            progress(min(1.0, done / max(expected, 1)))

        if isinstance(one, GivenScheduler):
            engine = self.recording.engine
            with one.open(experiment.workload.config, engine.env, engine.config) as driven:
                return experiment.reschedule(driven, None, progressed, cancelled)
        if self.how == "as recorded":
            return experiment.as_recorded(one)
        return experiment.reschedule(one, self.policy, progressed, cancelled)


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
        tail=reader.tail if reader.live else None,
        recording=reader.recording if reader.live else None,
    )
