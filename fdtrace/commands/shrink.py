"""Make the smallest workload that still shows a fault of a trace or a case: fewer requests, shorter, smaller sizes.

Every smaller workload is run again, and kept only if it shows the same fault with the same cause. The result is a case
that `fdtrace simulate` reads. With --scheduler, the engine's real code runs it at the end; without -f, it runs each.

Exit code 1: the fault is there, and the small case shows it. 0: the trace or the case shows no such fault.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from fdtrace.recorder.errors import UsageError
from fdtrace.searching.search_options import SearchPlan
from fdtrace.trace_argument import trace_argument

MOST_RUNS = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace shrink`."""
    from fdtrace.searching.search_options import add_search_arguments

    parser.add_argument("source", type=trace_argument, metavar="TRACE|CASE.json", help="a trace, or a case")
    add_search_arguments(parser)
    parser.add_argument(
        "--keep", action="append", metavar="FAULT",
        help="the fault to keep, as `fdtrace falsify --find` (default: the first that it shows)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="how long it may take (default: as long as it takes)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")


def run(args: argparse.Namespace) -> int:
    """Shrink; 1 if there is a fault."""
    from fdtrace.searching.search_options import by_real_scheduler, searched

    if args.seconds is not None and args.seconds <= 0:
        raise UsageError(f"--seconds is {args.seconds:g}", hint="more than 0")
    if args.output is not None and _is_same_file(args.output, args.source):
        raise UsageError(
            f"{args.output} is the source itself", why="-o would overwrite it", hint="another path"
        )
    asked = searched(args, args.keep)
    asked = replace(asked, target=replace(asked.target, max_steps=None))
    with by_real_scheduler(asked) as found:
        return _shrink(args, found)


def _shrink(args: argparse.Namespace, searched: SearchPlan) -> int:
    from fdtrace.progress import Progress
    from fdtrace.replayer.search.falsifier import FaultyCase
    from fdtrace.replayer.workload.from_case import workload_from_case
    from fdtrace.searching.search_options import base_case
    from fdtrace.searching.search_report import FaultReport, examine, print_fault, save_case, size_text
    from fdtrace.searching.shrinking import shrunk

    begin, progress = time.monotonic(), Progress()
    case, notes = base_case(args.source, args.engine)
    for note in notes:
        progress.note(note)
    env = {**(case.get("env") or {}), **searched.fixed.get("env", {})}
    case = {**case, **searched.fixed, "env": env}
    workload = workload_from_case(case)  # an error of the case is said as such
    refused = searched.target.refused(workload) if searched.by is None else []
    if refused and not searched.target.allow_refused:
        progress.note(f"FastDeploy would not let this start: {refused[0]}; smaller cases may be such, too")
        searched = replace(searched, target=replace(searched.target, allow_refused=True))
    if progress.terminal:
        progress.update(f"running {size_text(case)}")
    finding = searched.target.shows(case)
    progress.clear()
    if finding is None:
        kinds = ", ".join(searched.target.kinds)
        print(f"{searched.name}: {args.source} shows none of these: {kinds}")
        return 0
    case["requests"] = [{"id": f"r{i}", **request} for i, request in enumerate(case["requests"])]
    small = shrunk(FaultyCase(case, finding), searched, progress, most_runs=MOST_RUNS, seconds=args.seconds)
    stopped = ", stopped before it was as small as it goes" if small.is_stopped else ""
    how = (
        f"shrunk from {size_text(case)} to {size_text(small.best)} in {small.num_runs:,} runs, "
        f"{time.monotonic() - begin:.1f} s{stopped}"
    )
    fault = FaultReport(searched.name, small.finding, small.best, how)
    examine(fault, searched)
    if args.output is not None:
        save_case(args.output, small.best)
    if args.json:
        print(json.dumps(fault.figures()))
    else:
        print_fault(fault, searched.option, args.output)
    return 1


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False
