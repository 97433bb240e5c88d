"""Make a case of a request trace: Mooncake, Bailian, Azure, BurstGPT, ShareGPT, vLLM, AIPerf, GuideLLM.

    fdtrace workload mooncake.jsonl --like T -o CASE.json
    fdtrace workload azure.csv --step-ms 25 --accept 0.7 --drafts 3 --set max_num_seqs=64 -o CASE.json

The format is found by the file's content. Times become steps. What a trace does not say (the sizes of a scheduler, the
length of a step, acceptances) comes from a recording or from options; what was assumed is said, and kept in the case.
`fdtrace simulate`, `sweep`, `falsify` and `shrink` take such a file directly too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace workload`."""
    from fdtrace.workload_options import add_workload_arguments

    parser.add_argument("trace", type=Path, metavar="FILE", help="a request trace; it may be packed by gzip")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="CASE.json", help="the case; a new file"
    )
    parser.add_argument("--force", action="store_true", help="replace what is at CASE.json")
    add_workload_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the case; one request is in memory at a time."""
    from fdtrace.progress import Progress
    from fdtrace.request_traces.recognise import format_of
    from fdtrace.request_traces.trace_case import TraceCase, written_case
    from fdtrace.whole_file import check_target, whole_file
    from fdtrace.workload_options import case_options

    check_target(args.output, force=args.force, source=args.trace)
    trace = TraceCase(args.trace, format_of(args.trace, args.format), case_options(args))
    progress = Progress()
    with whole_file(args.output, force=args.force) as half, open(half, "w", encoding="utf-8") as file:
        for piece in written_case(trace):
            file.write(piece)
            if progress.terminal and trace.count % 10_000 == 0:
                progress.update(f"{trace.count:,} requests")
    progress.clear()
    sizes = trace.sizes()
    for note in sizes["notes"]:
        sys.stderr.write(f"fdtrace: {note}\n")
    sys.stderr.write(f"fdtrace: {trace.count:,} requests of {trace.format.name} in {args.output}\n")
    return 0
