"""The replay screen: panes side by side on one cursor and one zoom, and what keys and mouse do with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

from textual.app import SystemCommand
from textual.binding import BindingType
from textual.screen import Screen

from fdtrace.recorder.recording import Recording
from fdtrace.replayer.history.history import History
from fdtrace.tui.dialogs import HelpScreen
from fdtrace.tui.jobs import Replay, Rows
from fdtrace.tui.keys import KEYS, bindings
from fdtrace.tui.pane import ChartPane
from fdtrace.tui.sources import Sources
from fdtrace.tui.tailing import Tailing
from fdtrace.tui.terminal import Terminal, is_lost


class ReplayApp(Tailing):
    """The replay screen. Its actions are named in the key table; they change the board."""

    BINDINGS: ClassVar[list[BindingType]] = list(bindings())

    def on_mount(self) -> None:
        """Look now and then whether there is still a terminal: a hang-up that is ignored (nohup) would go unnoticed."""
        if not self.is_headless:
            self.set_interval(1.0, self._leave_lost_terminal)

    def _leave_lost_terminal(self) -> None:
        if sys.__stdin__ is not None and is_lost(sys.__stdin__):
            self.exit()

    def action_help(self) -> None:
        """Show the help."""
        self.push_screen(HelpScreen(classes="-ascii" if self.ascii else ""))

    @property
    def busy(self) -> bool:
        """Whether a worker still fetches something for the screen."""
        latest = self._inspections, self._stories, self._answers
        return self._fetcher.busy or any(one.running for one in latest)

    # The mouse

    def on_chart_pane_picked(self, message: ChartPane.Picked) -> None:
        """A click or a drag: the cursor, and the active pane."""
        self.set_active(self.panes.index(message.pane))
        if message.step != self.board.cursor:
            self.go(message.step, jump=not message.dragged)

    def on_chart_pane_zoomed(self, message: ChartPane.Zoomed) -> None:
        """The wheel: zoom at the pointer."""
        self.look_at(self.board.window.zoom(message.factor, message.step))

    def on_chart_pane_stopped(self, message: ChartPane.Stopped) -> None:
        """A right click: a breakpoint on that step, or none."""
        self.toggle_break(message.step)

    def on_chart_pane_opened(self, message: ChartPane.Opened) -> None:
        """A double click: inspect that step."""
        if not self.inspecting:
            self.action_inspect()

    def _fatal_error(self) -> None:
        """Leave, and print nothing: Textual would print a traceback; `run_replay` raises the error instead."""
        self._close_messages_no_wait()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The key table in the command palette, beside Textual's own commands."""
        yield from super().get_system_commands(screen)
        for key in KEYS:
            if key.action:
                run: Callable[[], object] = partial(self.call_later, self.run_action, key.action)
                yield SystemCommand(f"{key.help} ({key.shown})", key.group, run)


def run_replay(
    recording: Recording,
    replays: Sequence[Replay] = (),
    *,
    rows: Rows | None = None,
    recorded: History | None = None,
    terminal: Terminal | None = None,
    step: int | None = None,
    sources: Sources | None = None,
) -> None:
    """Open the replay screen on a recording and return when it is left.

    `replays` are computed while the screen is in use, one after the other in a thread. `rows` gives the
    requests of a recorded step, from a thread of its own; `recorded` is the recording as a history where the
    caller has made it. `terminal` is what it shows them on, by default what the environment says; `step` is
    where the cursor starts, by default the first exceeded one. `sources` is where the rest comes from: SQL,
    events, new formulas.
    """
    terminal = terminal or Terminal.here()
    app = ReplayApp(
        recording, replays, rows=rows, recorded=recorded, terminal=terminal, step=step, sources=sources
    )
    app.run()
    if app._exception is not None:
        raise app._exception
