"""What the inspector shows for one pane at one step. It is gathered off the screen's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fdtrace.recorder.step_calls import StepCalls
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_step import Explainer, StepExplanation
from fdtrace.replayer.analysis.explainers import explainer_of
from fdtrace.replayer.analysis.fidelity import recorded_formula, recorded_policy
from fdtrace.replayer.analysis.step_account import StepAccount, StepAccounting
from fdtrace.replayer.formulas import BUILTIN, Formula
from fdtrace.replayer.history.history import History
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.step_durations import ClockKind
from fdtrace.replayer.replay.workload_replay import Cancelled, ReplayCancelled
from fdtrace.replayer.workload.from_recording import workload_from_recording
from fdtrace.replayer.workload.workload import Workload
from fdtrace.tui.background import sentence
from fdtrace.tui.panes.jobs import PaneReplay
from fdtrace.tui.panes.series import Series
from fdtrace.tui.sources import Sources, StepEvent


@dataclass(frozen=True)
class Inspection:
    """One step of one pane. `account` None: the history has no such step, and `absent` says why.

    `explained` None: no replay decided this step, or it is still being replayed (`share` of it is done).
    """

    at: int
    step: int
    account: StepAccount | None = None
    rows: Sequence[StepRow] = ()
    events: Sequence[StepEvent] = ()
    calls: StepCalls | None = None
    explained: StepExplanation | None = None
    absent: str = ""
    error: str = ""
    share: float | None = None


@dataclass
class InspectedPane:
    """A pane to inspect: its place, its replay, its history, and why it may lack the step."""

    at: int
    replay: PaneReplay
    series: Series | None
    absent: str
    explainer: Explainer | None = field(default=None)


class Inspector:
    """Makes inspections. Everything but the constructor runs in the background thread."""

    def __init__(self, recording: Recording, sources: Sources) -> None:
        self.recording, self.sources = recording, sources
        self._accountant: StepAccounting | None = None
        self._explainers: dict[int, tuple[PaneReplay, Recording, Explainer]] = {}
        self._workloads: dict[ClockKind, tuple[Recording, Workload]] = {}

    def renew(self, recording: Recording) -> None:
        """Use a newer state of the recording."""
        self.recording, self._accountant = recording, None

    def recording_now(self) -> Recording:
        """The recording so far: a recording in progress is read again."""
        if self.sources.recording is not None:
            self.renew(self.sources.recording())
        return self.recording

    def inspect(
        self,
        subjects: Sequence[InspectedPane],
        step: int,
        deliver: Callable[[Inspection], None],
        cancelled: Cancelled,
    ) -> None:
        """Deliver each pane's account; then deliver it again with the decisions of its replay."""
        to_explain = []
        for subject in subjects:
            if cancelled():
                return
            try:
                inspection = self._first(subject, step)
            except BaseException as error:
                # Shown in its column: the panes beside it are inspected all the same.
                inspection = Inspection(subject.at, step, absent=subject.absent, error=sentence(error))
            deliver(inspection)
            if inspection.share is not None:
                to_explain.append((subject, inspection))
        for subject, inspection in to_explain:
            try:
                self._explain(subject, inspection, deliver, cancelled)
            except ReplayCancelled:
                return
            except BaseException as error:
                deliver(replace(inspection, error=sentence(error), share=None))

    def formula(self, replay: PaneReplay) -> Formula | None:
        """A pane's formula; for the recording's pane, the built-in formula that it was recorded under."""
        if replay.how == "recorded":
            return BUILTIN.get(recorded_formula(self.recording) or "")
        return replay.formula

    def _first(self, subject: InspectedPane, step: int) -> Inspection:
        series, replay = subject.series, subject.replay
        inspection = Inspection(subject.at, step, absent=subject.absent)
        if series is None:
            return inspection
        hang = series.history.outcome.hang
        hangs_here = hang is not None and step >= hang.step
        explains = replay.how == "rescheduled" and replay.formula is not None
        if series.index(step) is None:
            return replace(inspection, share=0.0) if hangs_here and explains else inspection
        if replay.how != "rescheduled" and step > int(self.recording.steps["step"][-1]):
            self.recording_now()
        account = self._accountant_now.account(series.history, self.formula(replay), step)
        events: Sequence[StepEvent] = ()
        calls: StepCalls | None = None
        if replay.how == "recorded":
            events = self.sources.events(step) if self.sources.events is not None else ()
            calls = self.sources.calls(step) if self.sources.calls is not None else None
        rows = series.history.rows(step)
        share = 0.0 if explains else None
        return replace(inspection, account=account, rows=rows, events=events, calls=calls, share=share)

    def _explain(
        self,
        subject: InspectedPane,
        inspection: Inspection,
        deliver: Callable[[Inspection], None],
        cancelled: Cancelled,
    ) -> None:
        assert subject.series is not None
        history, formula = subject.series.history, subject.replay.formula
        assert formula is not None
        hang = history.outcome.hang
        step = inspection.step if inspection.account is not None or hang is None else hang.step

        def progressed(done: int, expected: int) -> None:
            deliver(replace(inspection, share=done / max(expected, 1)))

        explained = self._explainer(subject.at, subject.replay, history).explain(step, progressed, cancelled)
        accountant = self._accountant_now
        if inspection.account is None:
            account: StepAccount | None = accountant.hung(history, formula, explained)
        else:
            account = accountant.account(history, formula, step, explained)
        deliver(replace(inspection, account=account, explained=explained, share=None))

    def _explainer(self, at: int, replay: PaneReplay, history: History) -> Explainer:
        cached, recording = self._explainers.get(at), replay.recording() or self.recording
        if cached is None or cached[0] is not replay or cached[1] is not recording:
            assert replay.formula is not None
            policy = replay.policy or recorded_policy(recording)
            clock = history.outcome.clock
            workload = replay.workload or partial(
                self._workload, recording, "steps" if clock is None else clock.kind
            )
            explainer = explainer_of(history.outcome.order, recording, workload, replay.formula, policy)
            cached = self._explainers[at] = (replay, recording, explainer)
        return cached[2]

    def _workload(self, recording: Recording, clock: ClockKind) -> Workload:
        cached = self._workloads.get(clock)
        if cached is None or cached[0] is not recording:
            cached = self._workloads[clock] = recording, workload_from_recording(recording, clock)
        return cached[1]

    @property
    def _accountant_now(self) -> StepAccounting:
        self._accountant = self._accountant or StepAccounting(self.recording)
        return self._accountant
