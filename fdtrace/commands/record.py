"""Start a server with the agent in it and in all its children, from their first line on, with any Python.

It ends with CMD, and with CMD's exit code. --duration and --steps end the recording earlier; CMD keeps running.
With --push, the trace is pushed when CMD has ended, whatever its exit code is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
from types import FrameType
from typing import TYPE_CHECKING

from fdtrace.flights.flight_options import COLLECTOR, add_flight_arguments, flight_plan, recording_session
from fdtrace.push_options import add_push_after, check_push, push_recorded
from fdtrace.recorder.errors import FdtraceError, TargetError, UsageError
from fdtrace.watch import (
    CollectorWatch,
    add_recording_arguments,
    check_arguments,
    conclude,
    discard,
    serving_metrics,
)

if TYPE_CHECKING:
    from fdtrace.metrics.server import MetricsServer
    from fdtrace.recorder.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace record`."""
    add_recording_arguments(parser)
    add_flight_arguments(parser)
    add_push_after(parser)
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="-- CMD", help="the server's command line")


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns its exit code, or 3 if it succeeded but no step of an engine was seen, or the trace was
    not pushed.
    """
    check_arguments(args)
    check_push(args)
    command = args.cmd[1:] if args.cmd[:1] == ["--"] else args.cmd
    if not command:
        raise UsageError("no command to record", hint="fdtrace record -o T.duckdb -- python -m my_server")
    with serving_metrics(args) as metrics:
        code = _run(args, command, metrics)
    if args.output.exists():
        _push(args, code)
    return code


def _push(args: argparse.Namespace, code: int) -> None:
    """Push the trace where --push says. If that fails, the command's own failure goes first: then it is only said."""
    try:
        push_recorded(args)
    except FdtraceError as error:
        if not code:
            raise
        from fdtrace.progress import Progress

        Progress().note(f"{error.what}: {error.why}; {error.hint}")


def _run(args: argparse.Namespace, command: list[str], metrics: MetricsServer | None) -> int:
    from fdtrace.recorder.supervise import Supervisor

    plan = flight_plan(args)
    session = recording_session(args, plan, command=command)
    supervisor = None
    try:
        supervisor = Supervisor(session, COLLECTOR) if plan else Supervisor(session)
        process = _start(command, session)
    except BaseException:
        discard(session, supervisor)
        raise
    watch = CollectorWatch(session, supervisor, args.duration, metrics)
    code = _watch(process, watch)
    done = supervisor.finished
    assert done is not None
    if done["steps"] or done["calls"]:
        conclude(watch, done)
    else:
        discard(session, None)
        watch.progress.note("nothing was recorded: there is no trace")
        if code == 0:
            raise TargetError(
                "no step of an engine was seen",
                why="no process of the command imported a scheduler that fdtrace knows, or none scheduled",
                hint="a Python started with -S, -E or -I, or with its environment cleared, is not reached: arm it with "
                "FDTRACE=1 and fdtrace installed, or use `fdtrace attach PID`",
            )
    return code


def environment(session: Session) -> dict[str, str]:
    """The environment that arms CMD and its children: our `sitecustomize` first on PYTHONPATH."""
    from fdtrace.recorder.agent_delivery import AGENT

    paths = [str(AGENT / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return dict(
        os.environ,
        FDTRACE="1",
        FDTRACE_SESSION=json.dumps(session.for_agent()),
        PYTHONPATH=os.pathsep.join(paths),
    )


def _start(command: list[str], session: Session) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, env=environment(session))
    except OSError as error:
        raise UsageError(f"cannot start {command[0]}", why=error.strerror or str(error)) from None


def _watch(process: subprocess.Popen[bytes], watch: CollectorWatch) -> int:
    """Record until the command or a limit ends it. Returns the command's exit code as a shell does."""

    def forward(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # a Ctrl-C reaches the command by itself: it is in our process group
            process.send_signal(number)

    old = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        failure = _record(process, watch)
        code = process.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if failure is not None:
        raise failure
    return code if code >= 0 else 128 - code


def _record(process: subprocess.Popen[bytes], watch: CollectorWatch) -> FdtraceError | None:
    """Record until the command or a limit ends it. If the recording fails, the command continues, and the error is
    returned.
    """
    try:
        reason = watch.until(lambda: _ending(process.poll()))
        if reason:
            watch.stop(reason)
        watch.finish()
    except FdtraceError as error:
        watch.fail()
        watch.progress.note(f"{error.what}: {error.why}")
        return error
    return None


def _ending(code: int | None) -> str | None:
    if code is None:
        return None
    return f"exit {code}" if code >= 0 else f"signal {-code}"
