"""Replay a trace, or simulate a case, under many combinations of settings, and say which are the best that are allowed.

    fdtrace sweep T --vary max_num_seqs=32:256:x2 --vary max_num_batched_tokens=2048,4096 -f pr7499
        --goal 'min ttft_p95' --subject-to 'exceeded = 0 and preempted < 10'

It runs on all processors. Every result is a row of the table `sweep` in the DuckDB file of -o.
With two goals, the best are those that no other one beats in both.

Exit code 1: no combination is allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.replayer.search.sweep_grid import SweepCondition, SweepGoal, SweepRow
    from fdtrace.sweeping import SweepSource

MOST_SHOWN = 20
CHART_HEIGHT = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace sweep`."""
    import sys

    parser.add_argument("source", type=Path, metavar="TRACE|CASE.json", help="a trace, or a case")
    parser.add_argument(
        "--vary", action="append", required=True, metavar="SETTING=VALUES",
        help="NAME=1,2,4 or NAME=FIRST:LAST:xFACTOR or NAME=FIRST:LAST:+STEP; `formula` and `policy` too; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "-f", "--formula", metavar="FORMULA", help="as for `fdtrace replay` (default: as recorded)"
    )
    parser.add_argument(
        "--policy", metavar="P", help="scheduler version (default: that of the formula's time)"
    )
    parser.add_argument(
        "--scheduler", metavar="ENGINE[=DIR]", help="an engine's real scheduler in place of the model"
    )
    parser.add_argument(
        "--scheduler-python", default=sys.executable, metavar="PATH", help="as for `fdtrace replay`"
    )
    parser.add_argument("--arrivals", metavar="A", help="as for `fdtrace replay`")
    parser.add_argument(
        "--slo", metavar="SLO", help="objectives, as ttft=500ms,itl=50ms: for the figure goodput_per_s"
    )
    parser.add_argument(
        "--goal",
        metavar="GOAL",
        help="'min FIGURE' or 'max FIGURE'; two of them with a comma (default: min steps)",
    )
    parser.add_argument("--subject-to", metavar="CONDITIONS", help="as 'exceeded = 0 and preempted < 10'")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT.duckdb", help="write all results there; a new file"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one a processor)")
    parser.add_argument("--engine", type=int, metavar="N", help="which engine of a trace of several")
    parser.add_argument("--json", action="store_true", help="every result as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Sweep; 1 if nothing is allowed."""
    from fdtrace.progress import Progress
    from fdtrace.replayer.search.sweep_grid import (
        front_of,
        grid_of,
        parse_conditions,
        parse_goals,
        parse_varied,
    )
    from fdtrace.sweeping import swept

    goals, conditions = parse_goals(args.goal or "min steps"), parse_conditions(args.subject_to)
    varied = [parse_varied(text) for text in args.vary]
    grid = grid_of(varied)
    jobs = args.jobs if args.jobs is not None else os.cpu_count() or 1
    if jobs < 1:
        raise UsageError(f"--jobs is {args.jobs}", hint="1 or more")
    if args.output is not None and args.output.exists():
        raise UsageError(
            f"{args.output} is there already", why="a sweep writes a new file", hint="another name"
        )
    begin, progress, rows = time.monotonic(), Progress(), list[Any]()
    for row in swept(_source(args), grid, jobs):
        rows.append(row)
        if progress.terminal:
            progress.update(f"{len(rows):,} of {len(grid):,} variants, {time.monotonic() - begin:.0f} s")
    progress.clear()
    allowed = [row for row in rows if row["refused"] is None and all(c.holds(row) for c in conditions)]
    front = [allowed[i] for i in front_of(allowed, goals)]
    names = [setting.name for setting in varied]
    if args.output is not None:
        _save(args.output, rows, allowed, front)
    if args.json:
        print(json.dumps({"rows": rows, "num_allowed": len(allowed), "best": front}))
    else:
        _print(args, rows, allowed, front, names, goals, conditions, time.monotonic() - begin)
    return int(not front)


def _source(args: argparse.Namespace) -> SweepSource:
    from fdtrace.sweeping import SweepSource

    given = {"formula": args.formula, "scheduler": args.scheduler, "arrivals": args.arrivals}
    assigned = {key: value for key, value in given.items() if value is not None}
    return SweepSource(args.source, args.engine, assigned, args.policy, args.slo, args.scheduler_python)


def _print(
    args: argparse.Namespace,
    rows: Sequence[SweepRow],
    allowed: Sequence[SweepRow],
    front: Sequence[SweepRow],
    names: Sequence[str],
    goals: Sequence[SweepGoal],
    conditions: Sequence[SweepCondition],
    seconds: float,
) -> None:
    from fdtrace.recorder.printable import printable

    refused = [row for row in rows if row["refused"] is not None]
    print(f"{len(rows):,} variants in {seconds:.1f} s: {len(allowed):,} allowed, {len(refused):,} refused")
    for text in sorted({str(row["refused"]) for row in refused})[:3]:
        print(printable(f"  refused: {text}"))
    if not front:
        print("no variant is allowed" if not allowed else f"{goals[0].figure} is known of no variant")
        return
    figures = [
        *dict.fromkeys([*(g.figure for g in goals), *(c.figure for c in conditions), "exceeded", "hangs"])
    ]
    best = sorted(allowed, key=lambda row: [goal.cost(row) for goal in goals])
    shown = [*front, *(row for row in best if not any(row is other for other in front))]
    _table(shown[:MOST_SHOWN], {id(row) for row in front}, [*names, *figures])
    if len(shown) > MOST_SHOWN:
        print(
            f"and {len(shown) - MOST_SHOWN:,} more{f' in {args.output}' if args.output else ': -o keeps them'}"
        )
    if len(goals) > 1 and len(allowed) > 1:
        print(_chart(allowed, front, goals))
    print(printable(f"the best by {goals[0].figure}: {flags_of(front[0], names)}"))


def flags_of(row: SweepRow, names: Sequence[str]) -> str:
    """The settings of a result as a server takes them: options, and environment variables before them."""
    from fdtrace.replayer.workload.engine_settings import ALIASES

    variables, options = [], []
    for name in names:
        setting, value = ALIASES.get(name, name), row[name]
        if setting.startswith("FD_"):
            variables.append(f"{setting}={value}")
        elif setting in ("formula", "policy", "arrivals"):
            continue
        elif setting == "num_speculative_tokens":
            options.append(f"--speculative-config {shlex.quote(json.dumps({setting: value}))}")
        else:
            options.append(f"--{setting.replace('_', '-')} {value}")
    return " ".join([*variables, *options]) or "as it is"


def _table(rows: Sequence[SweepRow], best: set[int], columns: Sequence[str]) -> None:
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ASCII if not sys.stdout.isatty() else box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("best")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        cells = ["*" if id(row) in best else "", *(_cell(row.get(name)) for name in columns)]
        table.add_row(*map(Text, cells))
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if isinstance(value, float) and not value.is_integer() else f"{value}"


def _chart(allowed: Sequence[SweepRow], front: Sequence[SweepRow], goals: Sequence[SweepGoal]) -> str:
    """The results in the plane of the first two goals; the best as stars."""
    import shutil

    import plotext

    width = min(110, shutil.get_terminal_size((100, 30)).columns)
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


def _save(
    path: Path, rows: Sequence[SweepRow], allowed: Sequence[SweepRow], front: Sequence[SweepRow]
) -> None:
    """Write the table `sweep`. UsageError if the file cannot be written."""
    import duckdb

    allowed_ids, front_ids = {id(row) for row in allowed}, {id(row) for row in front}
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = [_kind([row.get(name) for row in rows]) for name in names]
    columns = ", ".join(f'"{name}" {kind}' for name, kind in zip(names, kinds, strict=True))
    values = [
        [*(row.get(name) for name in names), id(row) in allowed_ids, id(row) in front_ids] for row in rows
    ]
    try:
        with duckdb.connect(str(path)) as db:
            db.execute(f"CREATE TABLE sweep ({columns}, allowed BOOLEAN, best BOOLEAN)")
            db.executemany(f"INSERT INTO sweep VALUES ({', '.join('?' * (len(names) + 2))})", values)
    except duckdb.IOException as error:
        raise UsageError(f"{path} cannot be written", why=str(error).split("\n", maxsplit=1)[0]) from None


def _kind(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int) for value in known):
        return "BIGINT"
    return "DOUBLE" if known and all(isinstance(value, (int, float)) for value in known) else "VARCHAR"
