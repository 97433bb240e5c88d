"""The list of breakpoints and watches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from fdtrace.replayer.history.condition import Condition
from fdtrace.tui.debugger.breakpoints import Breakpoint, Breakpoints
from fdtrace.tui.debugger.watches import Watches

HELP = "Enter goes or edits · a adds · e edits · Space disables · d removes · Esc closes"


class BreakList(ModalScreen["tuple[str, str] | None"]):
    """Breakpoints, then watches.

    It closes with None, or with what to do next and a text: `go` (a step), `break` or `watch` (text to edit).
    """

    DEFAULT_CSS = """
    BreakList { align: center middle; }
    BreakList Vertical { width: 80; max-width: 100%; height: auto; max-height: 90%; border: round $primary;
                         background: $surface; padding: 0 1; }
    BreakList OptionList { height: auto; max-height: 16; border: none; background: $surface; }
    BreakList.-ascii Vertical { border: ascii ansi_white; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,B", "close", "close", show=False),
        Binding("space", "disable", "disable", show=False),
        Binding("d,delete", "remove", "remove", show=False),
        Binding("e", "edit", "edit", show=False),
        Binding("a", "add", "add", show=False),
        Binding("j", "down", "down", show=False),
        Binding("k", "up", "up", show=False),
    ]

    def __init__(
        self, breaks: Breakpoints, watches: Watches, counts: Mapping[int, int], classes: str = ""
    ) -> None:
        super().__init__(classes=classes)
        self.breaks, self.watches, self.counts = breaks, watches, counts

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static("Breakpoints and watches", markup=False)
            yield OptionList()
            yield Static(HELP.replace("·", "-") if self.has_class("-ascii") else HELP, markup=False)

    def on_mount(self) -> None:
        self._fill(0)

    @property
    def _items(self) -> list[Breakpoint | Condition]:
        return [*self.breaks.all, *self.watches.all]

    def _fill(self, at: int) -> None:
        options = self.query_one(OptionList)
        options.clear_options()
        for item in self._items:
            if isinstance(item, Breakpoint):
                on = "[x]" if item.enabled else "[ ]"
                count = self.counts.get(id(item), 0)
                text = f"{on} {item.kind:<9} {item.text}  ({count} stops in this pane)"
            else:
                text = f"    watch     {item.text}"
            options.add_option(Option(text.replace("[", "\\[")))
        if not self._items:
            options.add_option(Option("none yet: a adds one, b sets one on a step", disabled=True))
        elif options.option_count:
            options.highlighted = max(0, min(at, len(self._items) - 1))
        options.focus()

    @property
    def _chosen(self) -> Breakpoint | Condition | None:
        at = self.query_one(OptionList).highlighted
        return self._items[at] if at is not None and at < len(self._items) else None

    def action_close(self) -> None:
        """Close the list."""
        self.dismiss(None)

    def action_add(self) -> None:
        """Ask for a new breakpoint."""
        self.dismiss(("break", ""))

    def action_disable(self) -> None:
        """Disable a breakpoint, or enable it again."""
        chosen = self._chosen
        if isinstance(chosen, Breakpoint):
            chosen.enabled = not chosen.enabled
            self._fill(self.query_one(OptionList).highlighted or 0)

    def action_remove(self) -> None:
        """Remove a breakpoint or a watch."""
        chosen = self._chosen
        if isinstance(chosen, Breakpoint):
            self.breaks.all.remove(chosen)
        elif chosen is not None:
            self.watches.all.remove(chosen)
        self._fill(self.query_one(OptionList).highlighted or 0)

    def action_edit(self) -> None:
        """Take an entry off the list, and ask for a new one that begins with its text."""
        chosen = self._chosen
        if chosen is None:
            return
        if isinstance(chosen, Breakpoint):
            self.breaks.all.remove(chosen)
            self.dismiss(("break", chosen.text))
        else:
            self.watches.all.remove(chosen)
            self.dismiss(("watch", chosen.text))

    def action_down(self) -> None:
        """Select the next entry."""
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        """Select the previous entry."""
        self.query_one(OptionList).action_cursor_up()

    def on_option_list_option_selected(self) -> None:
        """Enter or a click: go to the step of a step breakpoint; edit any other entry."""
        chosen = self._chosen
        if isinstance(chosen, Breakpoint) and chosen.kind == "step":
            self.dismiss(("go", chosen.text))
        else:
            self.action_edit()
