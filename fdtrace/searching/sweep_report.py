"""A sweep's results on a terminal: the table, the Pareto front as a chart, and what it recommends."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fdtrace.recorder.printable import printable
from fdtrace.replayer.search.sweep_grid import FIGURES, SweepCondition, SweepGoal, SweepRow
from fdtrace.searching.sweep_advice import SweepAdvice, SweepNeighbour, cell, flags_of

if TYPE_CHECKING:
    from pathlib import Path

MOST_SHOWN, MOST_AS_GOOD, MOST_REFUSALS = 20, 4, 3
CHART_HEIGHT = 16
WIDTH = 110


def print_summary(
    rows: Sequence[SweepRow], allowed: Sequence[SweepRow], seconds: float, num_sources: int = 1
) -> None:
    """Print how many variants were run, allowed and refused."""
    refused = [row for row in rows if row["refused"] is not None]
    each = f", each on {num_sources:,} sources: counts are added, of other figures it is the worst"
    print(
        f"{len(rows):,} variants in {seconds:.1f} s: {len(allowed):,} allowed, {len(refused):,} refused"
        f"{each if num_sources > 1 else ''}"
    )
    for text in sorted({str(row["refused"]) for row in refused})[:MOST_REFUSALS]:
        print(printable(f"  refused: {text}"))


def print_results(
    allowed: Sequence[SweepRow],
    front: Sequence[SweepRow],
    names: Sequence[str],
    goals: Sequence[SweepGoal],
    conditions: Sequence[SweepCondition],
    output: Path | None,
) -> None:
    """Print the table of the best results, and with two goals a chart of all that are allowed."""
    figures = [
        *dict.fromkeys([*(g.figure for g in goals), *(c.figure for c in conditions), "exceeded", "hangs"])
    ]
    best = sorted(allowed, key=lambda row: [goal.cost(row) for goal in goals])
    shown = [*front, *(row for row in best if not any(row is other for other in front))]
    _table(shown[:MOST_SHOWN], {id(row) for row in front}, [*names, *figures])
    if len(shown) > MOST_SHOWN:
        print(f"and {len(shown) - MOST_SHOWN:,} more{f' in {output}' if output else ': -o keeps them'}")
    if len(goals) > 1 and len(allowed) > 1:
        print(_chart(allowed, front, goals))


def print_advice(advice: SweepAdvice, goals: Sequence[SweepGoal]) -> None:
    """Print what a sweep recommends: flags, costs, how sure, what decided."""
    lines = [f"recommend (the best by {goals[0].figure}): {flags_of(advice.best, advice.names)}"]
    chosen = [f"{name}={advice.best[name]}" for name in advice.names if name in ("formula", "policy")]
    lines += [f"  with {', '.join(chosen)}"] if chosen else []
    for goal in goals:
        lines.append(f"  {_meaning(goal.figure)}: {_figure(advice, goal.figure)}")
    if advice.before is not None:
        lines.append(f"  recorded settings: {flags_of(advice.before, advice.names)}")
        worse = ", ".join(f"{name} {_figure(advice, name)}" for name in advice.costs)
        lines.append(f"  it costs: {worse or 'no figure becomes worse'}")
    lines += [f"  how sure: {text}" for text in _sureness(advice, goals)]
    if advice.neighbours:
        lines.append("  what decided:")
        lines += [
            f"    {text}" for neighbour in advice.neighbours for text in _beside(advice, neighbour, goals[0])
        ]
    for line in lines:
        print(printable(line, 2000))


def _figure(advice: SweepAdvice, name: str) -> str:
    value = cell(advice.best.get(name))
    if advice.before is None or advice.before.get(name) is None:
        return value
    return f"{value} (recorded settings: {cell(advice.before[name])})"


def _meaning(figure: str) -> str:
    meaning = FIGURES[figure] or FIGURES[f"{figure.partition('_')[0]}_p50"]
    return f"{figure}, {meaning}"


def _sureness(advice: SweepAdvice, goals: Sequence[SweepGoal]) -> list[str]:
    if advice.model is None:
        return [
            "the steps follow the scheduler's rules; how long a step takes is not known here, so steps are counted, "
            "not timed"
        ]
    beyond, steps = advice.best.get("beyond"), advice.best.get("steps")
    found = [advice.model.text]
    if isinstance(beyond, (int, float)) and isinstance(steps, int) and beyond:
        found.append(
            f"{beyond:,} of its {steps:,} steps have more of something than any recorded step: they are extrapolated"
        )
    else:
        found.append("no step of it is larger than the recorded ones: the model is within its range")
    if advice.as_good:
        others = "; ".join(_settings(row, advice.names) for row in advice.as_good[:MOST_AS_GOOD])
        more = len(advice.as_good) - MOST_AS_GOOD
        found.append(
            f"{len(advice.as_good):,} other results are as good, within the error of {advice.error:.0%}: "
            f"{others}{f' and {more:,} more' if more > 0 else ''}"
        )
    elif any(goal.figure in advice.best for goal in goals):
        found.append(f"no other result is within the error of {advice.error:.0%}")
    return found


def _settings(row: SweepRow, names: Sequence[str]) -> str:
    return ", ".join(f"{name}={row[name]}" for name in names)


def _beside(advice: SweepAdvice, neighbour: SweepNeighbour, goal: SweepGoal) -> list[str]:
    name, row = f"{neighbour.name}={neighbour.value}", neighbour.row
    if row["refused"] is not None:
        return [f"{name}: refused, {row['refused']}"]
    head = f"{name}: {goal.figure} {cell(row.get(goal.figure))}"
    if neighbour.not_kept:
        head += f", not allowed with {neighbour.not_kept}"
    parting = neighbour.parting
    if parting is None:
        return [f"{head}; it decides the same in every step"]
    if parting.ends_one:
        return [f"{head}; they decide the same up to step {parting.step}, before which one of them is done"]
    values = ", ".join(f"{column} {mine} and {other}" for column, mine, other in parting.differing)
    lines = [f"{head}; they part at step {parting.step}", f"  {values}"]
    own = f"{neighbour.name}={advice.best[neighbour.name]}"
    sides: tuple[tuple[Literal[0, 1], str], ...] = ((0, own), (1, name))
    for which, who in sides:
        why = parting.why(which)
        texts = [neighbour.reasons[which], f"no more is admitted: {why}" if why else ""]
        lines += [f"  {who}: {'; '.join(filter(None, texts))}"] if any(texts) else []
    return lines


def _table(rows: Sequence[SweepRow], best: set[int], columns: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ASCII if not sys.stdout.isatty() else box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("best")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        cells = ["*" if id(row) in best else "", *(cell(row.get(name)) for name in columns)]
        table.add_row(*map(Text, cells))
    Console().print(table)


def _chart(allowed: Sequence[SweepRow], front: Sequence[SweepRow], goals: Sequence[SweepGoal]) -> str:
    """The results in the plane of the first two goals; the best as stars."""
    import plotext

    width = min(WIDTH, shutil.get_terminal_size((100, 30)).columns)
    plotext.terminal.limit(False, False)
    figure: Any = plotext.figure
    figure.clear()
    figure.plot_size(width, CHART_HEIGHT)
    figure.theme("colorless")
    figure.canvas("default")
    for rows, glyph in ((allowed, "."), (front, "*")):
        points = [(row.get(goals[0].figure), row.get(goals[1].figure)) for row in rows]
        known = [
            (float(x), float(y))
            for x, y in points
            if isinstance(x, (int, float)) and isinstance(y, (int, float))
        ]
        if known:
            x, y = zip(*known, strict=True)
            figure.draw(figure.signal(list(x), list(y), marker=plotext.marker(glyph)))
    text = re.sub(r"\x1b\[[0-9;]*m", "", figure.build().string())
    return f"{text.rstrip()}\n{goals[0].figure} to the right, {goals[1].figure} upwards; * is beaten by none"
