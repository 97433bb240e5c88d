"""The command line: its parser, and the one place that prints errors.

Progress and errors go to stderr, data to stdout. Exit codes: 0 done, 1 a check found something, 2 wrong use, 3 the
target or the trace cannot be used. `record` ends with the exit code of the command that it started.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from fdtrace import __version__
from fdtrace.recorder.errors import FdtraceError, StuckQueryError
from fdtrace.recorder.printable import printable
from fdtrace.trace_argument import fetched_traces

COMMANDS = {
    "demo": "the sandbox engine, recorded live, then replayed: the whole tool in a minute",
    "sandbox": "an engine of our own on Paddle, to attach to (no GPU needed)",
    "record": "start a server with the agent inside, whatever Python environment it uses",
    "attach": "record a running server",
    "status": "what is armed or recorded on this machine",
    "keep": "keep what a flight recorder holds as a trace",
    "detach": "end the recording of a process",
    "recover": "make a trace of what a cut-off recording left",
    "info": "what is in a trace",
    "sql": "query a trace, a live one too",
    "replay": "replay a trace under other budget formulas",
    "simulate": "schedule a workload with no trace",
    "export": "write a recording for others: Perfetto, Chrome, Mooncake, Azure, FPM, OTLP, Parquet, CSV",
    "push": "put finished traces into a lake: many servers, one store",
    "list": "the traces of a lake",
    "pull": "fetch a trace of a lake",
    "lake": "look after a lake: remove old traces, merge small files",
    "workload": "make a case of a request trace: Mooncake, Azure, BurstGPT, ShareGPT, …",
    "import": "make a trace of steps from ForwardPassMetrics of Dynamo, SGLang, vLLM",
    "falsify": "search for a workload that breaks a formula",
    "shrink": "the smallest workload that shows a fault of a trace or a case",
    "sweep": "many settings on one trace or case, and the best that are allowed",
    "check": "for CI: does a formula exceed the limit, or hang?",
    "knobs": "the settings of a recorded engine that a replay can change",
    "formulas": "the budget formulas, what each computes and where it comes from",
}

ELSEWHERE = {
    "sandbox": "fdtrace.sandbox.command",
    "export": "fdtrace.commands.export_command",
    "import": "fdtrace.commands.import_command",
    "list": "fdtrace.commands.list_command",
    "lake": "fdtrace.commands.lake_command",
    "workload": "fdtrace.commands.workload_command",
}
"""Commands whose module is not called as they are: another module has that name."""

INTERRUPTED = 130


def build_parser(only: str) -> argparse.ArgumentParser:
    """The parser of the command line, with the options of the command `only` alone: imports take time. The help of the
    whole needs no options.
    """
    parser = argparse.ArgumentParser(
        prog="fdtrace",
        description="Record what an LLM server's scheduler really ran; replay it under other budgets.",
    )
    parser.add_argument("--version", action="version", version=f"fdtrace {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if name != only:
            commands.add_parser(name, help=text)
            continue
        module = _module(name)
        command = commands.add_parser(name, help=text, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(ELSEWHERE.get(name, f"fdtrace.commands.{name}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. No error reaches the user as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack a character
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        args = build_parser(words[0] if words else "").parse_args(words)
        with fetched_traces(args):
            code: int = args.run(args)
    except StuckQueryError as error:
        _end_now(_complain(str(error), error.exit_code))
    except FdtraceError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output has closed the pipe
        return 0
    except Exception as error:
        return _of_duckdb(error) or _unexpected(error)
    return code


def _end_now(code: int) -> NoReturn:
    """End without waiting for threads: one of them runs a query that cannot be interrupted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _of_duckdb(error: Exception) -> int:
    """Print an error of DuckDB's, which means a damaged file, and return the exit code. 0: it is another error."""
    if type(error).__module__ not in ("duckdb", "_duckdb"):
        return 0
    why = printable(str(error).split("\n", maxsplit=1)[0])
    return _complain(
        f"the trace cannot be read\n  why: {why}\n  next: copy it again, or `fdtrace recover` it where it was recorded",
        3,
    )


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"fdtrace: {text}\n")
    return code


def _unexpected(error: Exception) -> int:
    """Print an unexpected error. Its traceback goes into a file, so that it can be reported."""
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="fdtrace-error-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    text = printable(f"{type(error).__name__}: {error}")
    return _complain(
        f"unexpected error: {text}\n  why: a fault in fdtrace\n  next: report it with {file.name}", 3
    )
