"""How far an engine scheduled behind its forwards. It is read from the trace off the screen's thread, as a track."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.recorded.step_view import StepView
from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.panes.series import LAG, Series
from fdtrace.tui.screen_protocol import ReplayScreen


class LagTrack:
    """Adds the lag of each step to the recording's pane when it has been read. Reading it goes through all calls.

    A recording in progress has it when it has ended.
    """

    def __init__(self, screen: ReplayScreen, panes: Panes) -> None:
        self.screen, self.panes = screen, panes
        self._reads = screen.background("lag", self._show_lags, screen.fail)

    def begin(self) -> None:
        """Read the lag, if the recording is complete and has it."""
        read = self.screen.session.sources.lags
        if read is None:
            return

        def work(deliver: Deliver[NDArray[np.int64] | None], _cancelled: Cancelled) -> None:
            deliver(read())

        self._reads.want(work)

    def _show_lags(self, lags: NDArray[np.int64] | None) -> None:
        session = self.screen.session
        history = session.recorded.history
        if lags is None or len(lags) != len(session.recorded) or (lags < 0).all():
            return
        columns = history.columns
        own = {LAG: lags}
        with_lag = replace(
            history, columns=columns.with_own(own) if isinstance(columns, StepView) else {**columns, **own}
        )
        session.recorded = Series(with_lag)
        self.panes.set_recorded(with_lag, session.recorded)
        self.panes.show_again()
