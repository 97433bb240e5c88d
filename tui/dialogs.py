"""What opens over the screen: the help, and the line that asks for a step."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tui.keys import KEYS, MOUSE


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
    text.append("\nMouse\n", style="bold")
    for what, does in MOUSE:
        text.append(f"  {what:<22} {does}\n")
    text.append("\nReading a chart\n", style="bold")
    text.append("  The line is the limit. Above it, and on a break in it, a step exceeds it;\n")
    text.append("  the marks below stand under every such step. Below the line the area is\n")
    text.append("  bright up to the mean of a column's steps, dim up to the highest.\n")
    text.append("  p: preempted, s: stalled, b: both. A crossed area: the replay hangs.\n")
    text.append("  A diamond (D) on the axis: from there on another history than recorded.\n")
    text.append("\nEsc closes this.", style="dim")
    return text


class StepPrompt(Input):
    """Asks for a step on the bottom line: `123`, `+50`, `-50`, `25%`, `$`."""

    DEFAULT_CSS = """
    StepPrompt { height: 1; border: none; padding: 0 1; background: $surface; display: none; }
    StepPrompt:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "close", show=False)]

    class Closed(Message):
        """The prompt closed; `text` None: without an answer."""

        def __init__(self, text: str | None) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__(placeholder="step: 123, +50, -50, 25%, $ for the last", id="prompt", compact=True)
        self.can_focus = False

    def open(self) -> None:
        """Take the keys until Enter or Escape."""
        self.value = ""
        self.can_focus = True
        self.display = True
        # At once, and not by `focus()` at a later turn of the event loop: the digits may be typed already.
        self.screen.set_focus(self)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._end(event.value)

    def action_close(self) -> None:
        """Close without an answer."""
        self._end(None)

    def _end(self, text: str | None) -> None:
        self.display = False
        self.can_focus = False
        self.screen.set_focus(None)
        self.post_message(self.Closed(text))


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
