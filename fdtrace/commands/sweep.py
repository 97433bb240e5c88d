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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.recorder.errors import UsageError
from fdtrace.trace_argument import trace_argument

if TYPE_CHECKING:
    from fdtrace.replayer.search.sweep_grid import SweepCondition, SweepGoal, SweepRow, VariedSetting
    from fdtrace.searching.sweep_on_ray import RayCluster
    from fdtrace.searching.sweep_places import Combination, ManyProcesses, OneProcess, SweepPlace
    from fdtrace.searching.sweep_runner import SweepRunner
    from fdtrace.searching.sweep_state import SweepState
    from fdtrace.searching.sweeping import SweepSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace sweep`."""
    import sys

    parser.add_argument(
        "source", nargs="+", type=trace_argument, metavar="TRACE|CASE.json|LAKE",
        help="traces or cases, of which each variant is run on all; or the traces of a lake",
    )  # fmt: skip
    parser.add_argument("--deployment", metavar="NAME", help="of a lake, the traces of this one alone")
    parser.add_argument("--newest", type=int, metavar="N", help="of a lake, so many traces at most")
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
    parser.add_argument(
        "--runs", type=int, metavar="N",
        help="run N variants that a search chooses (default: all; 300 of a grid of more than 1,000)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of that search; the same seed chooses the same"
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="keep each result there, and go on with what is there already",
    )
    parser.add_argument(
        "--on",
        metavar="ray[://HOST:PORT]",
        help="run on a Ray cluster: RAY_ADDRESS's, this machine's, or a given one",
    )
    parser.add_argument("--engine", type=int, metavar="N", help="which engine of a trace of several")
    parser.add_argument("--json", action="store_true", help="every result as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Sweep; 1 if nothing is allowed."""
    from fdtrace.replayer.search.sweep_grid import parse_conditions, parse_goals, parse_varied
    from fdtrace.searching.many_sources import runner_of

    goals, conditions = parse_goals(args.goal or "min steps"), parse_conditions(args.subject_to)
    varied = [parse_varied(text) for text in args.vary]
    _check(args)
    begin = time.monotonic()
    sources = _sources(args)
    worker = runner_of(sources)
    try:
        rows = _rows(args, sources, worker, varied, goals, conditions)
        return _report(args, worker, rows, varied, goals, conditions, time.monotonic() - begin)
    finally:
        worker.close()


def _check(args: argparse.Namespace) -> None:
    for name, value in (("--jobs", args.jobs), ("--runs", args.runs)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", hint="1 or more")
    if not args.from_lake and (args.deployment or args.newest):
        raise UsageError("--deployment and --newest choose traces of a lake", hint="name the lake itself")
    if args.on is not None and args.jobs is not None:
        raise UsageError("--jobs is of this machine, --on of a cluster", hint="one of them")
    if args.output is not None and args.output.exists():
        raise UsageError(
            f"{args.output} is there already", why="a sweep writes a new file", hint="another name"
        )


def _rows(
    args: argparse.Namespace,
    sources: Sequence[SweepSource],
    worker: SweepRunner,
    varied: Sequence[VariedSetting],
    goals: Sequence[SweepGoal],
    conditions: Sequence[SweepCondition],
) -> list[SweepRow]:
    """The results: of the whole grid in its order, or of the variants that a search chose."""
    from fdtrace.replayer.search.sweep_grid import combination_count, grid_of
    from fdtrace.searching.guided_sweep import GUIDED_RUNS, WHOLE_GRID, GuidedSweep
    from fdtrace.searching.sweep_state import SweepState

    count = combination_count(varied)
    runs = args.runs or (count if count <= WHOLE_GRID else GUIDED_RUNS)
    state = SweepState(args.state, sources)
    with _place(args, sources, worker, min(count, runs)) as place:
        if runs >= count:
            return _computed(place, state, grid_of(varied), 0, count)
        guided = GuidedSweep(varied, goals, conditions, runs=runs, seed=args.seed)
        rows: list[SweepRow] = []
        while chosen := guided.ask():
            found = _computed(place, state, chosen, len(rows), runs)
            guided.tell(found)
            rows += found
        return rows


def _computed(
    place: SweepPlace, state: SweepState, combinations: Sequence[Combination], done: int, expected: int
) -> list[SweepRow]:
    """The results of combinations, in their order; those of the state are not computed again."""
    from fdtrace.progress import Progress

    progress, begin = Progress(), time.monotonic()
    rows = [state.known(settings) for settings in combinations]
    missing = [i for i, row in enumerate(rows) if row is None]
    if missing:
        for index, row in place.rows([combinations[i] for i in missing]):
            rows[missing[index]] = row
            state.keep(combinations[missing[index]], row)
            done += 1
            if progress.terminal:
                progress.update(f"{done:,} of {expected:,} variants, {time.monotonic() - begin:.0f} s")
    progress.clear()
    return [row for row in rows if row is not None]


def _place(
    args: argparse.Namespace, sources: Sequence[SweepSource], worker: SweepRunner, most: int
) -> OneProcess | ManyProcesses | RayCluster:
    from fdtrace.searching.sweep_places import ManyProcesses, OneProcess
    from fdtrace.worker_processes import num_processors

    if args.on is not None:
        from fdtrace.searching.sweep_on_ray import RayCluster, ray_address

        return RayCluster(worker, ray_address(args.on))
    jobs = min(args.jobs if args.jobs is not None else num_processors(), most)
    return OneProcess(worker) if jobs == 1 else ManyProcesses(sources, jobs)


def _sources(args: argparse.Namespace) -> list[SweepSource]:
    from fdtrace.searching.sweeping import SweepSource

    given = {"formula": args.formula, "scheduler": args.scheduler, "arrivals": args.arrivals}
    assigned = {key: value for key, value in given.items() if value is not None}
    return [
        SweepSource(path, args.engine, assigned, args.policy, args.slo, args.scheduler_python)
        for path in args.source
    ]


def _report(
    args: argparse.Namespace,
    worker: SweepRunner,
    rows: Sequence[SweepRow],
    varied: Sequence[VariedSetting],
    goals: Sequence[SweepGoal],
    conditions: Sequence[SweepCondition],
    seconds: float,
) -> int:
    """Save and print the results, and what they recommend; 1 if nothing is allowed."""
    from fdtrace.replayer.search.sweep_grid import pareto_front
    from fdtrace.searching.sweep_advice import advice_of
    from fdtrace.searching.sweep_file import save_sweep
    from fdtrace.searching.sweep_report import print_advice, print_results, print_summary

    allowed = [row for row in rows if row["refused"] is None and all(c.holds(row) for c in conditions)]
    front = [allowed[i] for i in pareto_front(allowed, goals)]
    if args.output is not None:
        save_sweep(args.output, rows, allowed, front)
    advice = advice_of(worker, varied, rows, allowed, front[0], goals, conditions) if front else None
    if args.json:
        recommend = None if advice is None else advice.as_dict()
        print(json.dumps({"rows": rows, "num_allowed": len(allowed), "best": front, "recommend": recommend}))
        return int(not front)
    print_summary(rows, allowed, seconds, len(args.source))
    if advice is None:
        print("no variant is allowed" if not allowed else f"{goals[0].figure} is known of no variant")
        return 1
    print_results(allowed, front, advice.names, goals, conditions, args.output)
    print_advice(advice, goals)
    return 0
