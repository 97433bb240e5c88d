"""The prompt: the input at the bottom of the screen."""

from __future__ import annotations

from typing import ClassVar, Literal

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input

Ask = Literal["goto", "filter", "sql", "watch", "break", "add", "edit", "request"]

ASKS: dict[Ask, tuple[str, str]] = {
    "goto": (":", "step: 123, +50, -50, 25%, $ for the last; or f, b, w, r, sql"),
    "filter": ("/", "requests: a part of their id, or prefill, decode; empty: all"),
    "sql": ("sql>", "FROM exceeded"),
    "watch": ("watch>", "an expression over a step's columns: num_tokens - token_budget"),
    "break": ("break>", "a step, an event's kind, or num_free_blocks < 8 and num_waiting > 0"),
    "add": ("replay>", "pr7623, mine: max_num_batched_tokens - 5, or few: max_num_seqs=8, formula=pr7499"),
    "edit": ("replay>", "mine: max_num_batched_tokens - num_running_decodes * 5, or few: max_num_seqs=8"),
    "request": ("request>", "a request's id"),
}
"""What the bottom line asks for: its label, and an example."""


class Prompt(Input):
    """The bottom line as an input. It stays open if the answer is wrong."""

    DEFAULT_CSS = """
    Prompt { height: 1; width: 1fr; border: none; padding: 0; background: $surface; }
    Prompt:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "close", show=False),
        Binding("up", "recall(-1)", "the answer before", show=False),
        Binding("down", "recall(1)", "the answer after", show=False),
    ]

    class Answered(Message):
        """Enter was pressed."""

        def __init__(self, kind: Ask, text: str) -> None:
            super().__init__()
            self.kind, self.text = kind, text

    class Closed(Message):
        """Escape was pressed."""

    def __init__(self) -> None:
        super().__init__(id="prompt", compact=True, select_on_focus=False)
        self.can_focus = False
        self.kind: Ask = "goto"
        self._answers: dict[Ask, list[str]] = {}
        self._at = 0

    @property
    def opened(self) -> bool:
        """Whether it is open and takes the keys."""
        return self.screen.focused is self  # `has_focus` follows only at a later turn of the event loop

    def open(self, kind: Ask, text: str = "") -> None:
        """Take the keys until Enter or Escape."""
        self.kind, self.placeholder = kind, ASKS[kind][1]
        self.value = text
        self.cursor_position = len(text)
        self._at = len(self._answers.get(kind, []))
        self.can_focus = True
        # At once, not by `focus()` in a later turn of the event loop: digits may have been typed already.
        self.screen.set_focus(self)

    def shut(self) -> None:
        """Take no more keys."""
        self.can_focus = False
        self.screen.set_focus(None)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        previous = self._answers.setdefault(self.kind, [])
        if event.value and (not previous or previous[-1] != event.value):
            previous.append(event.value)
        self.post_message(self.Answered(self.kind, event.value))

    def action_recall(self, direction: int) -> None:
        """Show an earlier answer."""
        previous = self._answers.get(self.kind, [])
        if previous:
            self._at = max(0, min(len(previous), self._at + direction))
            self.value = previous[self._at] if self._at < len(previous) else ""
            self.cursor_position = len(self.value)

    def action_close(self) -> None:
        """Close without an answer."""
        self.post_message(self.Closed())
