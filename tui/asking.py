"""The bottom line: steps to go to, commands, and what other keys ask for."""

from __future__ import annotations

from typing import Any

from textual import events
from textual.widgets import Static

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.printable import printable_lines
from fdtrace.tui.debugging import Debugging
from fdtrace.tui.dialogs import ASKS, Ask, Prompt, parse_step
from fdtrace.tui.keys import KEYS
from fdtrace.tui.requests import RequestTable
from fdtrace.tui.status import one_line

COMMANDS: dict[str, Ask] = {
    "f": "add", "formula": "add", "b": "break", "break": "break", "w": "watch", "watch": "watch",
    "r": "request", "request": "request", "sql": "sql", "find": "filter",
}  # fmt: skip
"""First words of the line at `:`, and what they ask for."""


OWN = {key.action.partition("(")[0] for key in KEYS} - {"quit"}
"""Actions of the key table."""


class Asking(Debugging):
    """Asks on the bottom line. An answer that makes no sense is shown there with what is wrong, and stays."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While the bottom line asks, and under a dialog, keys are theirs."""
        if not self._running or action not in OWN:
            return True
        return not (self.screen.is_modal or self.prompt.opened)

    async def on_event(self, event: events.Event) -> None:
        """The letter of a mark comes before all bindings; a key takes away what the last one failed with."""
        if isinstance(event, events.Key) and not self.prompt.opened:
            self._trouble("")
        if (
            isinstance(event, events.Key)
            and self._letter_for
            and not self.screen.is_modal
            and self.took_letter(event.character)
        ):
            return
        await super().on_event(event)

    def ask(self, kind: Ask, text: str = "") -> None:
        """Ask for something on the bottom line."""
        if self.screen.is_modal or self.prompt.opened:
            return
        self.count.clear()
        self._trouble("")
        self.query_one("#status").display = False
        self.query_one("#ask").display = True
        self.query_one("#ask-label", Static).update(ASKS[kind][0])
        self.prompt.open(kind, text)

    def _close_prompt(self) -> None:
        self.prompt.shut()
        self._trouble("")
        self.query_one("#ask").display = False
        self.query_one("#status").display = True

    def _trouble(self, text: str) -> None:
        widget = self.query_one("#trouble", Static)
        widget.display = bool(text)
        widget.update(printable_lines(text))

    def show_failure(self, error: str) -> None:
        """Say what went wrong, and why: on the bottom line, and over it where that is too short."""
        super().show_failure(error)
        if len(one_line(error)) > self.size.width - 2 and not self.prompt.opened:
            self._trouble(error)

    def on_prompt_closed(self) -> None:
        """Escape: nothing was answered."""
        self._close_prompt()
        self.show_status()

    def on_prompt_answered(self, message: Prompt.Answered) -> None:
        """Do what was asked for; where it makes no sense, say so and ask on."""
        text, kind = message.text.strip(), message.kind
        if not text and kind != "filter":
            self.on_prompt_closed()
            return
        try:
            done = self._answer(kind, text)
        except FdtraceError as error:
            self._trouble(str(error))
            self.prompt.focus()
            return
        self._close_prompt()
        self.show_status(done)

    def _answer(self, kind: Ask, text: str) -> str:
        """Do it; what the bottom line then says. FdtraceError: it makes no sense."""
        if kind == "goto":
            word, _, rest = text.lstrip(":").partition(" ")
            if word in COMMANDS:
                return self._answer(COMMANDS[word], rest.strip())
            return self._goto(text)
        answers: dict[str, Any] = {
            "filter": self.filter_requests, "sql": self.query_trace, "watch": self.toggle_watch,
            "break": self.add_break, "add": self.add_formula, "edit": self.change_formula,
            "request": self.tell_story,
        }  # fmt: skip
        self._said = ""
        answers[kind](text)
        return self._said

    def _goto(self, text: str) -> str:
        window = self.board.window
        step = parse_step(text, self.board.cursor, window.low, window.high - 1)
        if step is None:
            return f"{text!r} is no step: 123, +50, -50, 25% or $ are"
        self.go(step, jump=True)
        return ""

    def show_status(self, message: str = "") -> None:
        self._said = message
        super().show_status(message)

    # What keys ask for

    def action_goto(self) -> None:
        """Ask for a step, or a command."""
        self.ask("goto")

    def action_filter(self) -> None:
        """Ask for requests."""
        self.ask("filter", self.query_one(RequestTable).pattern)

    def action_watch(self) -> None:
        """Ask for an expression to watch."""
        self.ask("watch")

    def action_sql(self) -> None:
        """Ask for a query."""
        self.ask("sql")

    def action_add_formula(self) -> None:
        """Ask for a formula."""
        self.ask("add")

    def action_edit_formula(self) -> None:
        """Ask for the active pane's formula anew."""
        replay = self.active_pane.job.replay
        if replay.how == "recorded":
            self.show_status("the recording has no formula to edit: A adds one beside it")
            return
        self.ask("edit", replay.text or replay.name)

    def filter_requests(self, text: str) -> None:
        """Show the requests alone that hold a text."""
        self.query_one(RequestTable).filter(text)
        self.show_status()

    # What others do

    def query_trace(self, text: str) -> None:
        """Ask the trace."""
        raise NotImplementedError

    def add_formula(self, text: str) -> None:
        """Add a pane."""
        raise NotImplementedError

    def change_formula(self, text: str) -> None:
        """Replace the active pane's formula."""
        raise NotImplementedError

    def tell_story(self, text: str) -> None:
        """Show a request's story."""
        raise NotImplementedError
