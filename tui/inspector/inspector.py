"""What the inspector shows of one pane at one step: gathered off the screen's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_step import Explained, Explainer
from fdtrace.replayer.analysis.fidelity import recorded_formula, recorded_policy
from fdtrace.replayer.analysis.step_account import Account, Accountant
from fdtrace.replayer.formulas import BUILTIN, Formula
from fdtrace.replayer.history.history import History
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.step_durations import ClockKind
from fdtrace.replayer.replay.run import Cancelled, ReplayCancelled
from fdtrace.replayer.workload.from_recording import workload_from_recording
from fdtrace.replayer.workload.workload import Workload
from fdtrace.tui.background import sentence
from fdtrace.tui.panes.jobs import PaneReplay
from fdtrace.tui.panes.series import Series
from fdtrace.tui.sources import Sources, StepEvent


@dataclass(frozen=True)
class Inspection:
    """One pane's step. `account` None: the history has no such step, `absent` says why.

    `explained` None: nothing was decided by a replay here, or it is still being replayed (`share` of it is).
    """

    at: int
    step: int
    account: Account | None = None
    rows: Sequence[StepRow] = ()
    events: Sequence[StepEvent] = ()
    explained: Explained | None = None
    absent: str = ""
    error: str = ""
    share: float | None = None


@dataclass
class Subject:
    """A pane to inspect: its place, its replay, its history, and why it may lack the step."""

    at: int
    replay: PaneReplay
    series: Series | None
    absent: str
    explainer: Explainer | None = field(default=None)


class Inspector:
    """Makes inspections; everything but the constructor runs in the worker's thread."""

    def __init__(self, recording: Recording, sources: Sources) -> None:
        self.recording, self.sources = recording, sources
        self._accountant: Accountant | None = None
        self._explainers: dict[int, tuple[PaneReplay, Recording, Explainer]] = {}
        self._workloads: dict[ClockKind, tuple[Recording, Workload]] = {}

    def renew(self, recording: Recording) -> None:
        """Work on what the recording has become."""
        self.recording, self._accountant = recording, None

    def recording_now(self) -> Recording:
        """The recording as far as it has come: one in progress is read anew."""
        if self.sources.recording is not None:
            self.renew(self.sources.recording())
        return self.recording

    def inspect(
        self,
        subjects: Sequence[Subject],
        step: int,
        deliver: Callable[[Inspection], None],
        cancelled: Cancelled,
    ) -> None:
        """Deliver each pane's account, then again with what its replay decided."""
        later = []
        for subject in subjects:
            if cancelled():
                return
            try:
                found = self._first(subject, step)
            except BaseException as error:
                # Shown in its column: the panes beside it are inspected all the same.
                found = Inspection(subject.at, step, absent=subject.absent, error=sentence(error))
            deliver(found)
            if found.share is not None:
                later.append((subject, found))
        for subject, found in later:
            try:
                self._explain(subject, found, deliver, cancelled)
            except ReplayCancelled:
                return
            except BaseException as error:
                deliver(replace(found, error=sentence(error), share=None))

    def formula(self, replay: PaneReplay) -> Formula | None:
        """A pane's formula; of the recording, the built-in one that it was made under."""
        if replay.how == "recorded":
            return BUILTIN.get(recorded_formula(self.recording) or "")
        return replay.formula

    def _first(self, subject: Subject, step: int) -> Inspection:
        series, replay = subject.series, subject.replay
        found = Inspection(subject.at, step, absent=subject.absent)
        if series is None:
            return found
        hang = series.history.outcome.hang
        hangs_here = hang is not None and step >= hang.step
        explains = replay.how == "rescheduled" and replay.formula is not None
        if series.index(step) is None:
            return replace(found, share=0.0) if hangs_here and explains else found
        if replay.how != "rescheduled" and step > int(self.recording.steps["step"][-1]):
            self.recording_now()
        account = self._accountant_now.account(series.history, self.formula(replay), step)
        events: Sequence[StepEvent] = ()
        if replay.how == "recorded" and self.sources.events is not None:
            events = self.sources.events(step)
        rows = series.history.rows(step)
        return replace(found, account=account, rows=rows, events=events, share=0.0 if explains else None)

    def _explain(
        self,
        subject: Subject,
        found: Inspection,
        deliver: Callable[[Inspection], None],
        cancelled: Cancelled,
    ) -> None:
        assert subject.series is not None
        history, formula = subject.series.history, subject.replay.formula
        assert formula is not None
        hang = history.outcome.hang
        step = found.step if found.account is not None or hang is None else hang.step

        def progressed(done: int, expected: int) -> None:
            deliver(replace(found, share=done / max(expected, 1)))

        explained = self._explainer(subject.at, subject.replay, history).explain(step, progressed, cancelled)
        accountant = self._accountant_now
        if found.account is None:
            account: Account | None = accountant.hung(history, formula, explained)
        else:
            account = accountant.account(history, formula, step, explained)
        deliver(replace(found, account=account, explained=explained, share=None))

    def _explainer(self, at: int, replay: PaneReplay, history: History) -> Explainer:
        known, recording = self._explainers.get(at), replay.recording() or self.recording
        if known is None or known[0] is not replay or known[1] is not recording:
            assert replay.formula is not None
            policy = replay.policy or recorded_policy(recording)
            clock = history.outcome.clock
            workload = partial(self._workload, recording, "steps" if clock is None else clock.kind)
            known = self._explainers[at] = (replay, recording, Explainer(workload, replay.formula, policy))
        return known[2]

    def _workload(self, recording: Recording, clock: ClockKind) -> Workload:
        known = self._workloads.get(clock)
        if known is None or known[0] is not recording:
            known = self._workloads[clock] = recording, workload_from_recording(recording, clock)
        return known[1]

    @property
    def _accountant_now(self) -> Accountant:
        self._accountant = self._accountant or Accountant(self.recording)
        return self._accountant
