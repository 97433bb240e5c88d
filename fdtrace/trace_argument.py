"""A trace on the command line: a file, or one of a lake, which is fetched into a file before the command begins."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.recorder.lake.lake_name import LakeTraceName, is_lake, parse_lake_trace

if TYPE_CHECKING:
    from fdtrace.recorder.lake.lake_name import LakeName

NAMES = ("trace", "source")
"""The arguments that may name a trace of a lake."""


def trace_argument(text: str) -> Path | LakeTraceName:
    """What a command reads: a file's path, or a trace of a lake. UsageError if a lake's name makes no sense."""
    return parse_lake_trace(text) if is_lake(text) else Path(text)


def lake_argument(text: str) -> LakeName:
    """The lake that an argument names. UsageError if it names none."""
    from fdtrace.recorder.lake.lake_name import parse_lake

    return parse_lake(text)


@contextmanager
def fetched_traces(args: argparse.Namespace) -> Iterator[None]:
    """Within the `with` block, each trace of a lake that the arguments name is a local file.

    `args.from_lake` says whether there is any. A command that asks about a whole lake sets the default `takes_lakes`.
    One that takes several sources gets a whole lake's traces: those that `--deployment` and `--newest` choose.

    Raises:
        UsageError: an argument names a whole lake, and the command takes one trace; or nothing is chosen.
    """
    lakes = [name for name in NAMES if any(isinstance(value, LakeTraceName) for value in _values(args, name))]
    args.from_lake = bool(lakes)
    if not lakes:
        yield
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="fdtrace-") as directory:
        for name in lakes:
            if isinstance(getattr(args, name), list):
                setattr(
                    args,
                    name,
                    [path for value in _values(args, name) for path in _all(value, args, directory)],
                )
                continue
            trace = getattr(args, name)
            if trace.trace_id is not None:
                setattr(args, name, _fetched(trace, Path(directory)))
            elif not getattr(args, "takes_lakes", False):
                raise _whole_lake(args.command, trace)
        yield


def _values(args: argparse.Namespace, name: str) -> list[object]:
    value = getattr(args, name, None)
    return value if isinstance(value, list) else [value]


def _all(value: object, args: argparse.Namespace, directory: str) -> list[Path]:
    """The files of one of several sources: itself, a trace of a lake, or all that are chosen of a lake."""
    if not isinstance(value, LakeTraceName):
        return [Path(str(value))]
    if value.trace_id is not None:
        return [_fetched(value, Path(directory))]
    from fdtrace.recorder.errors import UsageError
    from fdtrace.recorder.lake.pull_trace import list_traces

    if args.newest is not None and args.newest < 1:
        raise UsageError(f"--newest is {args.newest}", hint="1 or more")
    rows = list_traces(value.lake, deployment=args.deployment, newest=args.newest)
    if not rows:
        raise UsageError(
            f"no trace of {value.lake} is chosen", hint=f"`fdtrace list '{value.lake}'` lists its traces"
        )
    return [_fetched(LakeTraceName(value.lake, str(row["trace_id"])), Path(directory)) for row in rows]


def _fetched(trace: LakeTraceName, directory: Path) -> Path:
    from fdtrace.progress import Progress
    from fdtrace.recorder.lake.pull_trace import pull_trace

    path = directory / f"{trace.trace_id}.duckdb"
    trace_id = pull_trace(trace, path)
    Progress().note(f"fetched {trace_id}, {path.stat().st_size / 2**20:.1f} MiB")
    return path


def _whole_lake(command: str, trace: LakeTraceName) -> Exception:
    from fdtrace.recorder.errors import UsageError

    return UsageError(
        f"{trace.lake} is a lake of many traces",
        why=f"`fdtrace {command}` takes one",
        hint=f"`fdtrace list '{trace.lake}'` has their ids: '{trace.lake}/ID'",
    )
