"""The replay screen: panes side by side with one cursor and one zoom. It makes its parts and passes events to them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

from textual import events
from textual.actions import ActionParseResult
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.dom import DOMNode
from textual.screen import Screen
from textual.timer import Timer

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.as_recorded import RowsOfStep
from fdtrace.replayer.history.history import History
from fdtrace.tui import _textual
from fdtrace.tui.background import Background, Deliver, Failed, guarded
from fdtrace.tui.debugger.controller import Debugger
from fdtrace.tui.inspector.controller import InspectorController
from fdtrace.tui.inspector.panel import InspectorPanel
from fdtrace.tui.keys import ESCAPE, KEYS, bindings, textual_action
from fdtrace.tui.lag import LagTrack
from fdtrace.tui.live import Live
from fdtrace.tui.navigation.controller import Navigation
from fdtrace.tui.navigation.counts import CountPrefix
from fdtrace.tui.navigation.playback import Player
from fdtrace.tui.panes.chart_pane import ChartPane
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.panes.jobs import Job, PaneReplay
from fdtrace.tui.panes.series import Window
from fdtrace.tui.prompt.controller import PromptLine
from fdtrace.tui.prompt.help_screen import HelpScreen
from fdtrace.tui.prompt.prompt import Prompt
from fdtrace.tui.replay_session import ReplaySession, recorded_job
from fdtrace.tui.sources import Sources
from fdtrace.tui.status_lines import StatusLines
from fdtrace.tui.tables.controller import Tables
from fdtrace.tui.tables.lower_area import LowerArea
from fdtrace.tui.tables.queries import Queries
from fdtrace.tui.tables.query_rows import AnswerTable
from fdtrace.tui.tables.requests import RequestTable
from fdtrace.tui.terminal import MODERN, Terminal, is_lost
from fdtrace.tui.theme import ANSI, ASCII, BLOCKS, DARK, LIGHT, Look

T = TypeVar("T")


class ReplayApp(App[None]):
    """Shows a recording at once, and each replay of it when it is computed. Its controllers do what its keys ask."""

    CSS = """
    Screen { layout: vertical; overflow: hidden; } #panes { height: 2fr; min-height: 8; }
    #head { height: 1; padding: 0 1; text-style: bold; background: $panel; }
    #watches { height: 1; padding: 0 1; display: none; color: $text-accent; }
    #trouble { height: auto; max-height: 10; padding: 0 1; display: none; background: $surface; color: $text-error; }
    #ask { height: 1; padding: 0 1; display: none; background: $surface; }
    #ask-label { width: auto; padding: 0 1 0 0; text-style: bold; }
    #status { height: 1; padding: 0 1; background: $panel; link-style: none; link-color: $foreground;
              link-background-hover: $primary; link-style-hover: bold; }
    """
    TITLE = "fdtrace replay"
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = list(bindings())

    def __init__(
        self,
        recording: Recording,
        replays: Sequence[PaneReplay] = (),
        *,
        rows: RowsOfStep | None = None,
        recorded: History | None = None,
        terminal: Terminal = MODERN,
        step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sources: Sources | None = None,
    ) -> None:
        """A screen that shows a recording and its replays.

        Args:
            recording: what was recorded.
            replays: shown beside it. They are computed one after the other while the screen is in use.
            rows: gives the requests of a recorded step; called in a background thread.
            recorded: the recording as a history, if the caller has it already.
            terminal: the terminal that it is shown on.
            step: where the cursor starts; by default at the first exceeded step.
            clock: gives the time for playing, in seconds.
            sources: gives everything else: SQL, events, new formulas.
        """
        super().__init__()
        self.clock, self._terminal = clock, terminal
        self._backgrounds: list[Background[Any]] = []
        sources = sources or Sources()
        sources = replace(sources, rows=rows or sources.rows)
        first = recorded_job(recording, recorded, sources)
        assert first.series is not None, first.error
        self.session = ReplaySession(recording, first.series, [first, *map(Job, replays)], sources, step)
        self._make_parts(chosen=step is not None)
        if terminal.ascii:
            self.theme = "ansi-light" if terminal.light else "ansi-dark"
        elif terminal.light:
            self.theme = "textual-light"

    def _make_parts(self, *, chosen: bool) -> None:
        count, player = CountPrefix(), Player()
        glyphs = self.look().glyphs
        self.status = StatusLines(
            self.TITLE, self.session, glyphs, self.clock, count, player, says_why=not chosen
        )
        self.lower = LowerArea(self.look().css_class)
        self.prompt = PromptLine(self, self.status, count)
        self.panes = Panes(self, self.status, self.prompt, count)
        self.debugger = Debugger(self, self.panes, self.prompt, count)
        self.navigation = Navigation(self, self.panes, self.debugger, count, player)
        self.tables = Tables(self, self.panes, self.lower, self.prompt, count)
        self.queries = Queries(self, self.lower, self.prompt)
        self.inspector = InspectorController(self, self.panes, self.lower, self.prompt)
        self.lag = LagTrack(self, self.panes)
        self.live = Live(self, self.panes, self.debugger, self.inspector, self.status, self.lag)
        self.prompt.answers = {
            "filter": self.tables.filter, "sql": self.queries.query, "watch": self.debugger.toggle_watch,
            "break": self.debugger.add_break, "add": self.panes.add_formula, "edit": self.panes.change_formula,
            "request": self.inspector.tell_story,
        }  # fmt: skip

    # From opening to leaving

    def compose(self) -> ComposeResult:
        yield self.status.head
        yield from self.panes.compose()
        yield from self.tables.compose()
        yield from self.debugger.compose()
        yield self.lower
        yield from self.prompt.compose()
        yield self.status.line

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, lambda _theme: self.panes.show_again())
        if not self.is_headless:
            self.every(1.0, self._leave_lost_terminal)
        self.panes.begin()
        self.navigation.begin()
        self.status.show_head()
        self.show_all()
        self.live.begin()
        self.inspector.begin()

    def on_unmount(self) -> None:
        self.panes.close()
        for background in self._backgrounds:
            background.close()

    def on_resize(self, _event: events.Resize) -> None:
        self.call_after_refresh(self.panes.show_again)

    def _leave_lost_terminal(self) -> None:
        """Leave when the terminal is closed. Under nohup the hang-up signal is ignored, so the terminal is polled."""
        if sys.__stdin__ is not None and is_lost(sys.__stdin__):
            self.exit()

    # What controllers may ask (`tui.screen_protocol.ReplayScreen`)

    def look(self) -> Look:
        theme = self.current_theme
        glyphs = ASCII if self._terminal.ascii else BLOCKS
        return Look(glyphs, ANSI if theme.ansi else DARK if theme.dark else LIGHT)

    def say(self, message: str = "") -> None:
        self.status.show(message)

    def fail(self, error: str) -> None:
        self.prompt.fail(error)

    def go(self, step: int, message: str = "", *, jump: bool = False) -> None:
        self.navigation.go(step, message, jump=jump)

    def moved(self, before: Window) -> None:
        if self.session.window != before:
            self.show_view()
        else:
            self.panes.move_cursor()
            self.show_step()

    def show_all(self) -> None:
        if len(self.panes):
            self.panes.show()
            self.show_view()

    def show_view(self) -> None:
        self.show_window()
        self.show_step()

    def show_window(self) -> None:
        self.panes.show_window()

    def show_step(self) -> None:
        self.tables.show_step()
        self.say()
        self.debugger.show_watches()
        self.inspector.show_step()

    def open_dialog(self, dialog: Screen[T], leave: Callable[[T | None], None]) -> None:
        self.push_screen(dialog, leave)

    def background(self, name: str, deliver: Deliver[T], failed: Failed, **options: Any) -> Background[T]:
        background = Background(name, deliver, failed, **options)
        self._backgrounds.append(background)
        return background

    def every(self, seconds: float, call: Callable[[], None], *, pause: bool = False) -> Timer:
        return self.set_interval(seconds, partial(guarded, call, self.fail), pause=pause)

    @property
    def busy(self) -> bool:
        """Whether something is still being read for the screen."""
        return any(background.busy for background in self._backgrounds if background.name != "replays")

    # Keys

    def action_do(self, target: str, *arguments: Any) -> None:
        """Call the controller's method that an entry of the key table names."""
        controller, _, method = target.partition(".")
        getattr(getattr(self, controller), method)(*arguments)

    def action_escape(self) -> None:
        """Close what is open."""
        self.navigation.take_count()
        for name in ESCAPE:
            if getattr(self, name).close():
                return

    def action_help(self) -> None:
        """Show the help."""
        self.push_screen(HelpScreen(classes=self.look().css_class))

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Run the action of a key, a click or the palette. If it cannot be done, the screen says why."""
        try:
            return await super().run_action(action, default_namespace, namespaces)
        except FdtraceError as error:
            self.navigation.stop()
            self.fail(str(error))
            return True

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While the bottom line asks or a dialog is open, the keys belong to them."""
        if action not in ("do", "escape", "help") or not _textual.is_running(self):
            return True
        return not (self.screen.is_modal or self.prompt.opened)

    async def on_event(self, event: events.Event) -> None:
        """A key removes the error of the key before. The letter of a mark is taken before all bindings."""
        if isinstance(event, events.Key) and not self.prompt.opened and not self.screen.is_modal:
            self.prompt.show_trouble("")
            if self.navigation.took_letter(event.character):
                return
        await super().on_event(event)

    def on_key(self, event: events.Key) -> None:
        """Take digits: for a count, or for the pane with that number."""
        digit = event.character or ""
        if self.screen.is_modal or self.prompt.opened or not (digit.isascii() and digit.isdigit()):
            return
        event.stop()
        self.navigation.digit(digit)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The key table in the command palette, beside Textual's own commands."""
        yield from super().get_system_commands(screen)
        for key in KEYS:
            if key.action:
                action = textual_action(key.action)
                run: Callable[[], object] = partial(self.call_later, self.run_action, action)
                yield SystemCommand(f"{key.help} ({key.shown})", key.group, run)

    # What widgets say

    def on_prompt_answered(self, message: Prompt.Answered) -> None:
        self.prompt.answered(message.kind, message.text)

    def on_prompt_closed(self) -> None:
        self.prompt.cancelled()

    def on_chart_pane_picked(self, message: ChartPane.Picked) -> None:
        """A click or a drag moves the cursor and chooses the active pane."""
        self.panes.activate(self.panes.index(message.pane))
        if message.step != self.session.cursor:
            self.go(message.step, jump=not message.dragged)

    def on_chart_pane_zoomed(self, message: ChartPane.Zoomed) -> None:
        """The mouse wheel zooms at the pointer."""
        self.navigation.look_at(self.session.window.zoom(message.factor, message.step))

    def on_chart_pane_stopped(self, message: ChartPane.Stopped) -> None:
        """A right click sets or removes a breakpoint on that step."""
        self.debugger.toggle_break(message.step)

    def on_chart_pane_opened(self, _message: ChartPane.Opened) -> None:
        """A double click inspects that step."""
        self.inspector.open()

    def on_inspector_panel_closed(self, _message: InspectorPanel.Closed) -> None:
        """A double click on the inspector closes it."""
        self.inspector.close()

    def on_request_table_chosen(self, message: RequestTable.Chosen) -> None:
        """A click on the selected request opens its story."""
        self.inspector.tell_story(message.request_id)

    def on_answer_table_moved(self, message: AnswerTable.Moved) -> None:
        """Another row of a query was selected."""
        self.queries.moved_to(message.step)

    def _fatal_error(self) -> None:
        """Leave and print nothing. Textual would print a traceback here; `run_app` raises the error instead."""
        _textual.leave(self)


def run_replay(
    recording: Recording,
    replays: Sequence[PaneReplay] = (),
    *,
    terminal: Terminal | None = None,
    **options: Any,
) -> None:
    """Open the replay screen and return when the user leaves it. `options` are further arguments of `ReplayApp`.

    `terminal` is the terminal to show it on; by default the one that the environment describes.
    """
    run_app(ReplayApp(recording, replays, terminal=terminal or Terminal.here(), **options))


def run_app(app: ReplayApp) -> None:
    """Show a screen until the user leaves it. If an exception ended the screen, it is raised here."""
    app.run()
    error = _textual.error_of(app)
    if error is not None:
        raise error
