"""The one table of keys: bindings, hints and help are all made from it, so that they cannot disagree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from textual.binding import Binding

FIRST = ("colon", "slash", "S", "W", "A", "e", "tab", "shift+tab")
"""Bindings that come before those of whatever has the focus."""


@dataclass(frozen=True)
class Key:
    """Keys of one meaning: `keys` are Textual's names, `shown` what a person reads, `hint` a word for it.

    `action` names the controller and the method that it calls: `navigation.step(1)` is `Navigation.step` in
    `tui/navigation/controller.py`. Those of `app` are the app's own.
    """

    keys: str
    action: str
    shown: str
    help: str
    group: str
    hint: str = ""


MOVE, VIEW, PANES = "Move the cursor", "Zoom and pan", "Panes and formulas"
WHY, DEBUG, OTHER = "Why", "Debug", "Other"

KEYS = (
    Key("l,right,f10", "navigation.step(1)", "l → F10", "one step on; 10l: ten", MOVE, "step"),
    Key("h,left,f22,shift+f10", "navigation.step(-1)", "h ← Shift+F10", "one step back; 10h: ten", MOVE),
    Key(
        "n",
        "navigation.exceeded(1)",
        "n",
        "next step over the limit in the active pane; 12n: 12th",
        MOVE,
        "exceeded",
    ),
    Key("N", "navigation.exceeded(-1)", "N", "the one before", MOVE),
    Key("g,home", "navigation.first", "g Home", "first step", MOVE),
    Key("G,end", "navigation.last", "G End", "last step of any pane; 500G: step 500", MOVE),
    Key("colon", "prompt.goto", ":", "go to a step (123, +50, -50, 25%, $), or a command", MOVE, "goto"),
    Key("space", "navigation.play", "Space", "play, or stop", MOVE, "play"),
    Key("plus,equals_sign", "navigation.speed(2)", "+", "play twice as fast", MOVE),
    Key("minus", "navigation.speed(0.5)", "-", "play half as fast", MOVE),
    Key("underscore", "navigation.reverse", "_", "play the other way", MOVE),
    Key("u,ctrl+o", "navigation.undo", "u Ctrl+O", "back to where the last jump left", MOVE),
    Key("U", "navigation.redo", "U", "forward again", MOVE),
    Key("F", "live.follow", "F", "follow a recording in progress", MOVE),
    Key("enter", "inspector.inspect", "Enter", "inspect the step: budget, charges, reasons", WHY, "why"),
    Key("r", "inspector.story", "r", "the story of the selected request, under each formula", WHY, "request"),
    Key("slash", "tables.find", "/", "find requests by a part of their id, or their kind", WHY, "find"),
    Key("S", "queries.ask", "S", "ask the trace in SQL", WHY, "sql"),
    Key("b", "debugger.break_here", "b", "breakpoint on this step, or none", DEBUG),
    Key("B", "debugger.break_list", "B", "the breakpoints: add, edit, disable, remove", DEBUG, "breaks"),
    Key("c", "debugger.to_breakpoint(1)", "c", "on to the next breakpoint", DEBUG, "continue"),
    Key("C", "debugger.to_breakpoint(-1)", "C", "back to the breakpoint before", DEBUG),
    Key("W", "debugger.ask_watch", "W", "watch an expression over a step's columns", DEBUG),
    Key("m", "navigation.mark", "m a", "mark this step with a letter", DEBUG),
    Key("apostrophe", "navigation.to_mark", "' a", "go to a mark", DEBUG),
    Key("w", "navigation.zoom(0.5)", "w", "zoom in at the cursor; 3w: three times", VIEW, "zoom"),
    Key("s", "navigation.zoom(2)", "s", "zoom out", VIEW),
    Key("a", "navigation.pan(-0.25)", "a", "pan left", VIEW),
    Key("d", "navigation.pan(0.25)", "d", "pan right", VIEW),
    Key("0", "navigation.fit", "0", "show everything", VIEW, "fit"),
    Key("f", "navigation.centre", "f", "bring the cursor into the middle", VIEW),
    Key("1,2,3,4,5", "", "1–5", "make a pane the active one", PANES, "pane"),
    Key("tab", "panes.pane(1)", "Tab", "the next pane", PANES),
    Key("shift+tab", "panes.pane(-1)", "Shift+Tab", "the pane before", PANES),
    Key(
        "right_square_bracket",
        "panes.page(1)",
        "]",
        "the next formulas, where there are more than fit",
        PANES,
    ),
    Key("left_square_bracket", "panes.page(-1)", "[", "the formulas before", PANES),
    Key("z", "panes.maximise", "z", "the active pane alone, and back", PANES, "maximise"),
    Key("A", "panes.ask_formula", "A", "add a formula, or a variant: NAME: KEY=VALUE", PANES, "add"),
    Key("e", "panes.edit_formula", "e", "edit the active pane's formula or variant", PANES),
    Key("D", "panes.remove_formula", "D", "remove the active pane", PANES),
    Key("x", "panes.cancel", "x", "stop a replay that is being computed; again: start it anew", PANES),
    Key("j,down", "tables.scroll(1)", "j ↓", "the next request, or row; scrolls the inspector", OTHER),
    Key("k,up", "tables.scroll(-1)", "k ↑", "the one before", OTHER),
    Key("pagedown", "tables.scroll_page(1)", "PgDn", "a page down", OTHER),
    Key("pageup", "tables.scroll_page(-1)", "PgUp", "a page up", OTHER),
    Key("escape", "app.escape", "Esc", "close what is open: inspector, rows, filter", OTHER),
    Key("question_mark,f1", "app.help", "?", "this help", OTHER, "help"),
    Key("q,ctrl+c", "app.quit", "q", "quit", OTHER, "quit"),
)

COMMANDS = (
    (":f NAME: EXPRESSION", "add a formula; a built-in name does as well"),
    (":b CONDITION", "break: a step, an event's kind, or as num_free_blocks < 8"),
    (":w EXPRESSION", "watch an expression; again: no longer"),
    (":r REQUEST", "the story of a request"),
    (":sql QUERY", "ask the trace"),
)
"""What the line at `:` takes beside a step."""

MOUSE = (
    ("click, drag", "move the cursor, and make that pane the active one"),
    ("double click on a chart", "inspect that step"),
    ("right click on a chart", "breakpoint on that step, or none"),
    ("wheel on a chart", "zoom at the pointer"),
    ("wheel on the rows", "scroll them"),
    ("click on a request", "select it; again: its story"),
    ("click on a hint below", "the same as its key"),
)

ESCAPE = ("inspector", "queries", "tables")
"""What Escape closes: the first of these controllers that has something open."""

HINTS = (
    ("h/l", "navigation.step(1)"), ("n/N", "navigation.exceeded(1)"), ("Enter", "inspector.inspect"),
    ("w/s", "navigation.zoom(0.5)"), ("0", "navigation.fit"), (":", "prompt.goto"), ("Space", "navigation.play"),
    ("r", "inspector.story"), ("c/C", "debugger.to_breakpoint(1)"), ("z", "panes.maximise"), ("A", "panes.ask_formula"),
    ("S", "queries.ask"), ("?", "app.help"), ("q", "app.quit"),
)  # fmt: skip


def do(action: str) -> str:
    """An action of the table as Textual runs it: `navigation.step(1)` is the app's `do('navigation.step', 1)`."""
    target, _, arguments = action.partition("(")
    if target.startswith("app."):
        return action
    given = arguments.rstrip(")")
    return f"app.do({target!r}{', ' if given else ''}{given})"


def bindings() -> Iterator[Binding]:
    """Textual's bindings of the table; digits are counts first, and handled apart.

    `:` comes before all else, as Tab does: Textual hands other keys round by its queues, and the digits
    behind it would be on their way to the charts before the line that asks for them has opened.
    """
    for key in KEYS:
        if key.action and not key.keys.isdigit():
            yield Binding(key.keys, do(key.action), key.help, show=False, priority=key.keys in FIRST)


def hints(width: int) -> list[tuple[str, str]]:
    """Hints that fit into `width` cells with three between two, the last two of the table always.

    Each with the action that a click on it runs.
    """
    words = {key.action: key.hint for key in KEYS}
    texts = [(f"{shown} {words[action]}", action) for shown, action in HINTS]
    while len(texts) > 2 and sum(len(text) for text, _ in texts) + 3 * (len(texts) - 1) > width:
        del texts[-3]
    return texts
