"""Make a trace of the ForwardPassMetrics that Dynamo, SGLang or vLLM published: steps, without their requests.

    fdtrace import dynamo-fpm.4192.*.jsonl.gz --set max_num_batched_tokens=8192 -o T.duckdb
    fdtrace import fpm.jsonl --like RECORDING -o T.duckdb

`fdtrace info`, `sql` and `export --to perfetto` take it. What is not in such sums stays NULL: docs/export.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fdtrace.recorder.errors import UsageError

REQUIRED = "max_num_batched_tokens"
ASSUMED = {"max_num_seqs": 256, "block_size": 64, "num_blocks": 8192, "max_model_len": 32768}
"""What a trace needs, and sums do not say."""
LEAST = {"num_speculative_tokens": 0}
MOST = 1 << 20
KEYS = (REQUIRED, *ASSUMED, "max_profiled_tokens", "num_speculative_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace import`."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="JSON lines, in their order; may be packed by gzip",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="T.duckdb", help="the trace; a new file"
    )
    parser.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help=f"a size of the scheduler: {', '.join(KEYS)}; repeatable",
    )
    parser.add_argument("--like", type=Path, metavar="T", help="the sizes of this recording's engine")


def run(args: argparse.Namespace) -> int:
    """Write the trace."""
    from fdtrace.importing.imported_trace import write_imported
    from fdtrace.importing.read_step_metrics import read_step_metrics
    from fdtrace.recorder.write_trace import check_free

    check_free(args.output)
    given = _sizes_of(args.like) | dict(map(_assigned, args.set or ()))
    if REQUIRED not in given:
        raise UsageError(
            f"--set {REQUIRED}=… is missing",
            why="ForwardPassMetrics do not say what a step may run",
            hint=f"--set {REQUIRED}=8192, or --like a recording of this server",
        )
    read = read_step_metrics(args.files)
    if not read.workers:
        raise UsageError(
            f"there is no forward in {', '.join(map(str, args.files))}",
            why=f"all {read.num_idle} records are of an idle engine" if read.num_idle else "it is empty",
        )
    assumed = {name: value for name, value in ASSUMED.items() if name not in given}
    notes = write_imported(args.output, read, {**assumed, **given}, assumed)
    for note in notes:
        sys.stderr.write(f"fdtrace: {note}\n")
    count = sum(len(worker.columns["step"]) for worker in read.workers)
    sys.stderr.write(f"fdtrace: {count:,} steps of {_engines(len(read.workers))} in {args.output}\n")
    return 0


def _engines(count: int) -> str:
    return "one engine" if count == 1 else f"{count} engines"


def _sizes_of(like: Path | None) -> dict[str, int]:
    from fdtrace.recorder.trace.trace import open_trace

    if like is None:
        return {}
    with open_trace(like) as trace:
        row = trace.checked_engine()
    return {name: row[name] for name in KEYS if row[name] is not None}


def _assigned(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if (
        not equals
        or name not in KEYS
        or not value.isdecimal()
        or not LEAST.get(name, 1) <= int(value[:10]) < MOST
    ):
        raise UsageError(
            f"--set {text!r} assigns nothing that is read",
            why=f"keys: {', '.join(KEYS)}",
            hint=f"--set {REQUIRED}=8192",
        )
    return name, int(value)
