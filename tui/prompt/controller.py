"""The prompt on the bottom line: it asks for steps, for commands, and for what other keys need."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.printable import printable_lines
from fdtrace.tui.navigation.counts import CountPrefix
from fdtrace.tui.prompt.completion import SettingNames
from fdtrace.tui.prompt.prompt import ASKS, Ask, Prompt
from fdtrace.tui.prompt.step_numbers import parse_step
from fdtrace.tui.screen_protocol import ReplayScreen
from fdtrace.tui.status_lines import StatusLines, one_line

COMMANDS: dict[str, Ask] = {
    "f": "add", "formula": "add", "b": "break", "break": "break", "w": "watch", "watch": "watch",
    "r": "request", "request": "request", "sql": "sql", "find": "filter",
}  # fmt: skip
"""The first words of a command at `:`, and what each asks for."""

VARIANTS: tuple[Ask, ...] = ("add", "edit")
"""The questions that may be answered by a variant, whose settings are completed."""

Answers = Mapping[Ask, Callable[[str], None]]
"""The function that takes the answer, for each question. It raises FdtraceError if the answer is wrong."""


class PromptLine:
    """Asks on the bottom line. A wrong answer stays there, and the error is shown above it."""

    def __init__(self, screen: ReplayScreen, status: StatusLines, count: CountPrefix) -> None:
        self.screen, self.status, self.count = screen, status, count
        self.answers: Answers = {}
        self.line = Prompt()
        self._label = Static("", id="ask-label", markup=False)
        self._box = Horizontal(self._label, self.line, id="ask")
        self._trouble = Static("", id="trouble", markup=False)

    def compose(self) -> ComposeResult:
        """The line for errors, and the prompt."""
        yield self._trouble
        yield self._box

    @property
    def opened(self) -> bool:
        """Whether it is open and takes the keys."""
        return self.line.opened

    def ask(self, kind: Ask, text: str = "") -> None:
        """Ask for something on the bottom line, unless it asks for something already."""
        if self.line.app.screen.is_modal or self.opened:
            return
        self.count.clear()
        self.show_trouble("")
        self.status.line.display = False
        self._box.display = True
        self._label.update(ASKS[kind][0])
        self.line.suggester = SettingNames(self.screen.session.sources.settings) if kind in VARIANTS else None
        self.line.open(kind, text)

    def close(self) -> None:
        """Close the prompt."""
        self.line.shut()
        self.show_trouble("")
        self._box.display = False
        self.status.line.display = True

    def show_trouble(self, text: str) -> None:
        """Show above the line what is wrong; an empty text: nothing is wrong."""
        if text or self._trouble.display:  # each key calls this, and a change lays out the whole screen again
            self._trouble.display = bool(text)
            self._trouble.update(printable_lines(text))

    def fail(self, error: str) -> None:
        """Show what went wrong and why: on the bottom line, and above it if that line is too short."""
        self.status.show(one_line(error))
        if len(one_line(error)) > self.screen.size.width - 2 and not self.opened:
            self.show_trouble(error)

    def cancelled(self) -> None:
        """Escape: nothing was answered."""
        self.close()
        self.screen.say()

    def answered(self, kind: Ask, text: str) -> None:
        """Do what was asked for. If the answer is wrong, show the error and keep asking."""
        text = text.strip()
        if not text and kind != "filter":
            self.cancelled()
            return
        self.screen.say()
        try:
            self._answer(kind, text)
        except FdtraceError as error:
            self.show_trouble(str(error))
            self.line.focus()
            return
        self.close()

    def _answer(self, kind: Ask, text: str) -> None:
        if kind != "goto":
            self.answers[kind](text)
            return
        word, _, rest = text.lstrip(":").partition(" ")
        if word in COMMANDS:
            self._answer(COMMANDS[word], rest.strip())
        else:
            self._go_to(text)

    def _go_to(self, text: str) -> None:
        session = self.screen.session
        step = parse_step(text, session.cursor, session.window.low, session.window.high - 1)
        if step is None:
            self.screen.say(f"{text!r} is no step: 123, +50, -50, 25% or $ are")
        else:
            self.screen.go(step, jump=True)

    def goto(self) -> None:
        """Ask for a step, or a command."""
        self.ask("goto")
