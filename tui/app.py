"""The replay screen: panes side by side on one cursor and one zoom, and what keys and mouse do with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from textual.actions import ActionParseResult
from textual.app import SystemCommand
from textual.binding import BindingType
from textual.dom import DOMNode
from textual.screen import Screen

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.recording import Recording
from fdtrace.replayer.history import History
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
            self.every(1.0, self._leave_lost_terminal)

    def _leave_lost_terminal(self) -> None:
        if sys.__stdin__ is not None and is_lost(sys.__stdin__):
            self.exit()

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Run what a key, a click or the palette asks for. Where it cannot be done, the bottom line says why."""
        try:
            return await super().run_action(action, default_namespace, namespaces)
        except FdtraceError as error:
            self.stop_playing()
            self.show_failure(str(error))
            return True

    def action_help(self) -> None:
        """Show the help."""
        self.push_screen(HelpScreen(classes="-ascii" if self.ascii else ""))

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
    run_app(
        ReplayApp(
            recording, replays, rows=rows, recorded=recorded, terminal=terminal, step=step, sources=sources
        )
    )


def run_app(app: ReplayApp) -> None:
    """Show a screen until it is left; raises what ended it otherwise."""
    app.run()
    if app._exception is not None:
        raise app._exception
