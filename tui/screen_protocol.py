"""What a controller may ask of its screen, as Protocols. `tui.app` is the screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from textual.geometry import Size
from textual.screen import Screen
from textual.timer import Timer

from fdtrace.tui.background import Background, Deliver, Failed
from fdtrace.tui.panes.series import Window
from fdtrace.tui.prompt.prompt import Ask
from fdtrace.tui.replay_session import ReplaySession
from fdtrace.tui.theme import Look

T = TypeVar("T")


class Prompter(Protocol):
    """The bottom line as a prompt."""

    def ask(self, kind: Ask, text: str = "") -> None:
        """Ask the user for something; the line begins with `text`."""

    def show_trouble(self, text: str) -> None:
        """Show above the line what is wrong."""


class ReplayScreen(Protocol):
    """The screen as its controllers see it. They change the session, then ask the screen to show the change."""

    session: ReplaySession
    clock: Callable[[], float]

    @property
    def size(self) -> Size:
        """Columns and rows."""

    def look(self) -> Look:
        """The glyphs, and the colours of the theme."""

    def say(self, message: str = "") -> None:
        """Show the bottom line: a message; without one, the current step and window."""

    def fail(self, error: str) -> None:
        """Show what went wrong, why, and what to do next."""

    def go(self, step: int, message: str = "", *, jump: bool = False) -> None:
        """Move the cursor to a step. `jump`: it can be undone."""

    def moved(self, before: Window) -> None:
        """Show the session's cursor; `before` is the window that was shown until now."""

    def show_window(self) -> None:
        """Show the session's window."""

    def show_step(self) -> None:
        """Show the step at the cursor in the tables, the watches and the inspector."""

    def show_view(self) -> None:
        """Show the session's window, and the step at the cursor."""

    def show_all(self) -> None:
        """Draw everything again: the panes, their borders, their charts."""

    def open_dialog(self, dialog: Screen[T], leave: Callable[[T | None], None]) -> None:
        """Open a dialog; `leave` is called with its result."""

    def call_after_refresh(self, callback: Callable[..., Any], *args: Any) -> bool:
        """Call something once the changes are on the screen."""

    def background(self, name: str, deliver: Deliver[T], failed: Failed, **options: Any) -> Background[T]:
        """A thread for one kind of work; it is closed with the screen. `options` are those of `Background`."""

    def every(self, seconds: float, call: Callable[[], None], *, pause: bool = False) -> Timer:
        """Call something every `seconds`; if it fails, the error is shown. `pause`: the timer starts paused."""
