"""The table of all keys. Bindings, hints and help are made from it, so they cannot disagree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from textual.binding import Binding

FIRST = ("colon", "slash", "S", "W", "A", "e", "tab", "shift+tab")
"""Keys whose bindings come before those of the widget that has the focus."""


@dataclass(frozen=True)
class Key:
    """Keys with one meaning. `keys` are Textual's names, `shown` is what the user reads, `hint` is one word for it.

    `action` names the controller and the method to call: `navigation.step(1)` is `Navigation.step` in
    `tui/navigation/controller.py`. Actions of `app` are methods of the app itself.
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
    Key("N", "navigation.exceeded(-1)", "N", "the previous one", MOVE),
    Key("g,home", "navigation.first", "g Home", "first step", MOVE),
    Key("G,end", "navigation.last", "G End", "last step of any pane; 500G: step 500", MOVE),
    Key("colon", "prompt.goto", ":", "go to a step (123, +50, -50, 25%, $), or a command", MOVE, "goto"),
    Key("space", "navigation.play", "Space", "play, or stop", MOVE, "play"),
    Key("plus,equals_sign", "navigation.speed(2)", "+", "play twice as fast", MOVE),
    Key("minus", "navigation.speed(0.5)", "-", "play half as fast", MOVE),
    Key("underscore", "navigation.reverse", "_", "play in the other direction", MOVE),
    Key("u,ctrl+o", "navigation.undo", "u Ctrl+O", "undo the last jump", MOVE),
    Key("U", "navigation.redo", "U", "make an undone jump again", MOVE),
    Key("F", "live.follow", "F", "follow a recording in progress", MOVE),
    Key("enter", "inspector.inspect", "Enter", "inspect the step: budget, charges, reasons", WHY, "why"),
    Key("r", "inspector.story", "r", "the story of the selected request, under each formula", WHY, "request"),
    Key("t", "inspector.waits", "t", "who waited, how long, behind whom, in the active pane", WHY, "waits"),
    Key("R", "inspector.ranks", "R", "all ranks of the trace over time, and under --routing", WHY, "ranks"),
    Key("slash", "tables.find", "/", "find requests by a part of their id, or their kind", WHY, "find"),
    Key("S", "queries.ask", "S", "ask the trace in SQL", WHY, "sql"),
    Key("b", "debugger.break_here", "b", "set or remove a breakpoint on this step", DEBUG),
    Key("B", "debugger.break_list", "B", "the breakpoints: add, edit, disable, remove", DEBUG, "breaks"),
    Key("c", "debugger.to_breakpoint(1)", "c", "go to the next breakpoint", DEBUG, "continue"),
    Key("C", "debugger.to_breakpoint(-1)", "C", "go back to the previous breakpoint", DEBUG),
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
    Key("shift+tab", "panes.pane(-1)", "Shift+Tab", "the previous pane", PANES),
    Key(
        "right_square_bracket",
        "panes.page(1)",
        "]",
        "the next formulas, where there are more than fit",
        PANES,
    ),
    Key("left_square_bracket", "panes.page(-1)", "[", "the previous formulas", PANES),
    Key("z", "panes.maximise", "z", "the active pane alone, and back", PANES, "maximise"),
    Key("A", "panes.ask_formula", "A", "add a formula, or a variant: NAME: KEY=VALUE", PANES, "add"),
    Key("e", "panes.edit_formula", "e", "edit the active pane's formula or variant", PANES),
    Key("D", "panes.remove_formula", "D", "remove the active pane", PANES),
    Key("x", "panes.cancel", "x", "stop a replay being computed; again: restart it", PANES),
    Key("j,down", "tables.scroll(1)", "j ↓", "the next request, or row; scrolls the inspector", OTHER),
    Key("k,up", "tables.scroll(-1)", "k ↑", "the previous one", OTHER),
    Key("pagedown", "tables.scroll_page(1)", "PgDn", "a page down", OTHER),
    Key("pageup", "tables.scroll_page(-1)", "PgUp", "a page up", OTHER),
    Key("escape", "app.escape", "Esc", "close what is open: inspector, rows, filter", OTHER),
    Key("question_mark,f1", "app.help", "?", "this help", OTHER, "help"),
    Key("q,ctrl+c", "app.quit", "q", "quit", OTHER, "quit"),
)

COMMANDS = (
    (":f NAME: EXPRESSION", "add a formula; or the name of a built-in one"),
    (":b CONDITION", "break at a step, an event, or num_free_blocks < 8"),
    (":w EXPRESSION", "watch an expression; again: stop watching it"),
    (":r REQUEST", "the story of a request"),
    (":sql QUERY", "ask the trace"),
)
"""Commands that the line at `:` takes, besides a step."""

MOUSE = (
    ("click, drag", "move the cursor, and make that pane the active one"),
    ("double click on a chart", "inspect that step"),
    ("right click on a chart", "set or remove a breakpoint on that step"),
    ("wheel on a chart", "zoom at the pointer"),
    ("wheel on the rows", "scroll them"),
    ("click on a request", "select it; again: its story"),
    ("click on a hint below", "the same as its key"),
)

ESCAPE = ("inspector", "queries", "tables")
"""Escape asks these controllers in order; the first one that has something open closes it."""

HINTS = (
    ("h/l", "navigation.step(1)"), ("n/N", "navigation.exceeded(1)"), ("Enter", "inspector.inspect"),
    ("w/s", "navigation.zoom(0.5)"), ("0", "navigation.fit"), (":", "prompt.goto"), ("Space", "navigation.play"),
    ("r", "inspector.story"), ("c/C", "debugger.to_breakpoint(1)"), ("z", "panes.maximise"), ("A", "panes.ask_formula"),
    ("S", "queries.ask"), ("?", "app.help"), ("q", "app.quit"),
)  # fmt: skip


def textual_action(action: str) -> str:
    """An action of the table in Textual's form: `navigation.step(1)` becomes `app.do('navigation.step', 1)`."""
    target, _, arguments = action.partition("(")
    if target.startswith("app."):
        return action
    arguments = arguments.rstrip(")")
    return f"app.do({target!r}{', ' if arguments else ''}{arguments})"


def bindings() -> Iterator[Binding]:
    """Textual's bindings for the table. Digits have none: `ReplayApp.on_key` handles them, since they may be counts.

    `:` is a priority binding, as Tab is. Textual passes other keys on through its queues: digits typed after `:` would
    reach the charts before the line that asks for them is open.
    """
    for key in KEYS:
        if key.action and not key.keys.isdigit():
            yield Binding(
                key.keys, textual_action(key.action), key.help, show=False, priority=key.keys in FIRST
            )


def hints(width: int) -> list[tuple[str, str]]:
    """Hints that fit into `width` cells, with three cells between two hints. The last two of `HINTS` always stay.

    Returns:
        (hint, the action that a click on it runs) of each.
    """
    words = {key.action: key.hint for key in KEYS}
    texts = [(f"{shown} {words[action]}", action) for shown, action in HINTS]
    while len(texts) > 2 and sum(len(text) for text, _ in texts) + 3 * (len(texts) - 1) > width:
        del texts[-3]
    return texts
