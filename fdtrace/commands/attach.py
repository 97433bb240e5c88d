"""Record a running server: its process and all below it. Ends by Ctrl-C, --duration, --steps or `fdtrace detach`.

Three methods are tried in this order: the process is armed (it was started with FDTRACE=1 in an environment that has
fdtrace); `sys.remote_exec` (both Pythons are 3.14 or later, of the same minor version); our own injector (ptrace).
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from fdtrace.flights.flight_options import COLLECTOR, add_flight_arguments, flight_plan, recording_session
from fdtrace.push_options import add_push_after, check_push, push_recorded
from fdtrace.recorder.errors import UsageError
from fdtrace.watch import (
    CollectorWatch,
    StopSignals,
    add_recording_arguments,
    check_arguments,
    conclude,
    discard,
    serving_metrics,
)

if TYPE_CHECKING:
    from fdtrace.metrics.server import MetricsServer
    from fdtrace.recorder.attach_server import AttachedProcess


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace attach`."""
    parser.add_argument("pid", type=int, metavar="PID", help="the server, or any process above its engine")
    add_recording_arguments(parser)
    add_flight_arguments(parser)
    parser.add_argument(
        "--tui", action="store_true", help="watch it in the replay screen; leaving that ends the recording"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="also enter a process whose system calls a seccomp filter looks at: one that kills for a call kills it",
    )
    parser.add_argument(
        "-f", "--formula", action="append", metavar="FORMULA", help="with --tui, as for `fdtrace replay`"
    )
    add_push_after(parser)


def run(args: argparse.Namespace) -> int:
    """Attach, record, detach; 0 when the trace is written, and pushed where --push says."""
    check_arguments(args)
    check_push(args)
    if args.tui and not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError("--tui needs a terminal", hint="record without it, and replay the trace afterwards")
    with serving_metrics(args) as metrics:
        _run(args, metrics)
    push_recorded(args)
    return 0


def _run(args: argparse.Namespace, metrics: MetricsServer | None) -> None:
    from fdtrace.recorder import agent_delivery, attach_server
    from fdtrace.recorder.inject import check_process
    from fdtrace.recorder.supervise import Supervisor

    plan = flight_plan(args)
    check_process(args.pid)
    session = recording_session(args, plan, target=args.pid)
    supervisor = None
    with StopSignals() as signals:
        try:
            agent_delivery.prepare()
            begun = time.perf_counter()
            reached = attach_server.attach(args.pid, session, force=args.force)
            took = time.perf_counter() - begun
            session.save()
            supervisor = Supervisor(session, COLLECTOR) if plan else Supervisor(session)
        except BaseException:
            attach_server.detach(session.id)
            discard(session, supervisor)
            raise
        watch = CollectorWatch(session, supervisor, args.duration, metrics)
        _note_processes(watch, reached)
        watch.progress.note(
            f"attached in {took * 1000:.0f} ms; Ctrl-C or `fdtrace detach {args.pid}` ends it"
        )
        try:
            done = _record(args, watch, signals)
        except BaseException:
            watch.fail()
            raise
    conclude(watch, done)


def _note_processes(watch: CollectorWatch, reached: list[AttachedProcess]) -> None:
    for process in reached:
        held = f", a thread held {process.held_us / 1000:.1f} ms" if process.held_us else ""
        state = (
            "armed, waiting for its first step" if process.waiting else f"attached ({process.method}{held})"
        )
        watch.progress.note(f"process {process.pid}: {state}")


def _record(args: argparse.Namespace, watch: CollectorWatch, signals: StopSignals) -> dict[str, Any]:
    """Record until something ends it. Returns the collector's last message."""
    if args.tui:
        from fdtrace.open_replay_screen import screen_while_recording

        reason = screen_while_recording(args.output, args.formula, watch, signals)
    else:
        reason = watch.until(lambda: signals.reason or watch.supervisor.ended)
    if reason:
        watch.stop(reason)
    return watch.finish()
