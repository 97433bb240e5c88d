"""The help, made from the key table."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

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
    """The text of the help."""
    text = Text()
    group = ""
    for key in KEYS:
        if key.group != group:
            text.append(("\n" if group else "") + key.group + "\n", style="bold")
            group = key.group
        text.append(f"  {key.shown:<15} {key.help}\n")
    text.append("\nCommands\n", style="bold")
    for command, effect in COMMANDS:
        text.append(f"  {command:<22} {effect}\n")
    text.append("\nMouse\n", style="bold")
    for command, effect in MOUSE:
        text.append(f"  {command:<24} {effect}\n")
    text.append("\nReading a chart\n", style="bold")
    text.append("  The line is the limit. Above it, and on a break in it, a step exceeds it;\n")
    text.append("  the marks below stand under every such step. Below the line the area is\n")
    text.append("  bright up to the mean of a column's steps, dim up to the highest.\n")
    text.append("  p: preempted, s: stalled, b: both. A crossed area: the replay hangs.\n")
    text.append("  A diamond (D) on the axis: from there on another history than recorded,\n")
    text.append("  in other colours, with a line where it departs and a row of dashes below.\n")
    text.append("\nEsc closes this.", style="dim")
    return text
