"""What the inspector shows of one pane at one step: gathered off the screen's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.recording import Recording
from fdtrace.replayer.analysis.explain_step import Explained, Explainer
from fdtrace.replayer.analysis.fidelity import recorded_formula, recorded_policy
from fdtrace.replayer.analysis.step_account import Account, Accountant
from fdtrace.replayer.formulas import BUILTIN, Formula
from fdtrace.replayer.history.history import History
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.replay.run import ReplayCancelled
from fdtrace.replayer.workload.from_recording import workload_from_recording
from fdtrace.tui.jobs import Cancelled, Replay
from fdtrace.tui.series import Series
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
    replay: Replay
    series: Series | None
    absent: str
    explainer: Explainer | None = field(default=None)


class Inspector:
    """Makes inspections; everything but the constructor runs in the worker's thread."""

    def __init__(self, recording: Recording, sources: Sources) -> None:
        self.recording, self.sources = recording, sources
        self._accountant: Accountant | None = None
        self._explainers: dict[int, tuple[Replay, Explainer]] = {}
        self._workload = lru_cache(maxsize=2)(lambda clock: workload_from_recording(self.recording, clock))

    def renew(self, recording: Recording) -> None:
        """Work on what the recording has become."""
        self.recording, self._accountant = recording, None
        self._explainers.clear()
        self._workload.cache_clear()

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
            found = self._first(subject, step)
            deliver(found)
            if found.share is not None:
                later.append((subject, found))
        for subject, found in later:
            self._explain(subject, found, deliver, cancelled)

    def formula(self, replay: Replay) -> Formula | None:
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
        accountant = self._accountant = self._accountant or Accountant(self.recording)
        account = accountant.account(series.history, self.formula(replay), step)
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

        try:
            explained = self._explainer(subject.at, subject.replay, history).explain(
                step, progressed, cancelled
            )
        except ReplayCancelled:
            return
        except FdtraceError as error:
            deliver(replace(found, error=str(error), share=None))
            return
        accountant = self._accountant = self._accountant or Accountant(self.recording)
        if found.account is None:
            account: Account | None = accountant.hung(history, formula, explained)
        else:
            account = accountant.account(history, formula, step, explained)
        deliver(replace(found, account=account, explained=explained, share=None))

    def _explainer(self, at: int, replay: Replay, history: History) -> Explainer:
        known = self._explainers.get(at)
        if known is None or known[0] is not replay:
            assert replay.formula is not None
            policy = replay.policy or recorded_policy(self.recording)
            clock = history.outcome.clock
            workload = partial(self._workload, "steps" if clock is None else clock.kind)
            known = self._explainers[at] = (replay, Explainer(workload, replay.formula, policy))
        return known[1]
