"""What opens over the screen: the help, and the line that asks."""

from __future__ import annotations

from typing import ClassVar, Literal

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from fdtrace.tui.keys import COMMANDS, KEYS, MOUSE


class HelpScreen(ModalScreen[None]):
    """All keys, from the table that binds them."""

    DEFAULT_CSS = """
    HelpScreen { align: center middle; } HelpScreen VerticalScroll { width: 76; max-width: 100%; height: auto;
    max-height: 100%; border: round $primary;
                                padding: 0 1; background: $surface; }
    HelpScreen.-ascii VerticalScroll { border: ascii ansi_white; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1,enter", "close", "close", show=False)
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(help_text(), markup=False)

    def action_close(self) -> None:
        """Close the help."""
        self.dismiss()


def help_text() -> Text:
    """The help's words."""
    text = Text()
    group = ""
    for key in KEYS:
        if key.group != group:
            text.append(("\n" if group else "") + key.group + "\n", style="bold")
            group = key.group
        text.append(f"  {key.shown:<15} {key.help}\n")
    text.append("\nCommands\n", style="bold")
    for what, does in COMMANDS:
        text.append(f"  {what:<22} {does}\n")
    text.append("\nMouse\n", style="bold")
    for what, does in MOUSE:
        text.append(f"  {what:<24} {does}\n")
    text.append("\nReading a chart\n", style="bold")
    text.append("  The line is the limit. Above it, and on a break in it, a step exceeds it;\n")
    text.append("  the marks below stand under every such step. Below the line the area is\n")
    text.append("  bright up to the mean of a column's steps, dim up to the highest.\n")
    text.append("  p: preempted, s: stalled, b: both. A crossed area: the replay hangs.\n")
    text.append("  A diamond (D) on the axis: from there on another history than recorded,\n")
    text.append("  in other colours, with a line where it departs and a row of dashes below.\n")
    text.append("\nEsc closes this.", style="dim")
    return text


Ask = Literal["goto", "filter", "sql", "watch", "break", "add", "edit", "request"]

ASKS: dict[Ask, tuple[str, str]] = {
    "goto": (":", "step: 123, +50, -50, 25%, $ for the last; or f, b, w, r, sql"),
    "filter": ("/", "requests: a part of their id, or prefill, decode; empty: all"),
    "sql": ("sql>", "FROM exceeded"),
    "watch": ("watch>", "an expression over a step's columns: num_tokens - token_budget"),
    "break": ("break>", "a step, an event's kind, or num_free_blocks < 8 and num_waiting > 0"),
    "add": ("formula>", "pr7623, or mine: max_num_batched_tokens - num_running_decodes * 5"),
    "edit": ("formula>", "mine: max_num_batched_tokens - num_running_decodes * 5"),
    "request": ("request>", "a request's id"),
}
"""What the bottom line asks for: its label, and an example."""


class Prompt(Input):
    """The bottom line, where it asks for something. It stays open where the answer makes no sense."""

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
        """Whether it takes the keys."""
        return self.screen.focused is self  # `has_focus` follows only at a later turn of the event loop

    def open(self, kind: Ask, text: str = "") -> None:
        """Take the keys until Enter or Escape."""
        self.kind, self.placeholder = kind, ASKS[kind][1]
        self.value = text
        self.cursor_position = len(text)
        self._at = len(self._answers.get(kind, []))
        self.can_focus = True
        # At once, and not by `focus()` at a later turn of the event loop: the digits may be typed already.
        self.screen.set_focus(self)

    def shut(self) -> None:
        """Take no more keys."""
        self.can_focus = False
        self.screen.set_focus(None)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        known = self._answers.setdefault(self.kind, [])
        if event.value and (not known or known[-1] != event.value):
            known.append(event.value)
        self.post_message(self.Answered(self.kind, event.value))

    def action_recall(self, direction: int) -> None:
        """An answer that was given before."""
        known = self._answers.get(self.kind, [])
        if known:
            self._at = max(0, min(len(known), self._at + direction))
            self.value = known[self._at] if self._at < len(known) else ""
            self.cursor_position = len(self.value)

    def action_close(self) -> None:
        """Close without an answer."""
        self.post_message(self.Closed())


def parse_step(text: str, cursor: int, low: int, high: int) -> int | None:
    """The step that `text` names, cut to `low` … `high`; None: it names none."""
    text = text.strip().lstrip(":").strip()
    digits = text.lstrip("+-").rstrip("%")
    if text in ("$", "end"):
        return high
    if not digits.isascii() or not digits.isdigit() or text.count("+") + text.count("-") > 1:
        return None
    number = int(digits)
    if text.endswith("%"):
        step = low + (high - low) * number // 100
    elif text[0] in "+-":
        step = cursor + (number if text[0] == "+" else -number)
    else:
        step = number
    return max(low, min(high, step))
