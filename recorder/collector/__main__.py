"""`python -m fdtrace.recorder.collector SESSION`: started by `fdtrace attach`, `record` and `recover`, not by hand.

It reports its progress as JSON lines on stdout. One of them (`ended`) says that nothing more can come from the
processes seen so far. It obeys `{"end": REASON}` on stdin. It may outlive the process that started it: after stdin is
closed, it goes on until the recorded processes have ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import attach_server
from fdtrace.recorder.collector import failures
from fdtrace.recorder.collector.finish import remove_half
from fdtrace.recorder.collector.nvml import PERIOD
from fdtrace.recorder.collector.process import PUBLISH, Collector, make_files_private
from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.session import Session

POLL = 0.25
"""Seconds between two reads of the rings. An engine takes much longer to fill a ring; and each read has a cost of its
own, which is most of what a collector takes while little happens."""

MUCH, SOON = 1 / 16, 0.05
"""If a read found so much of a ring written, the next one follows after so many seconds: the ring fills quickly."""

IDLE_POLL = 0.5
"""Seconds between two reads while the engines do nothing."""

AGAIN = 0.2
"""Seconds between two tries to write to a full disk."""

NICE = 10
"""The server goes first: what it writes in the meantime waits in the rings. Beside a server that uses all processors,
this leaves a tenth of a processor to the collector. That is about twice what 200 steps a second need."""


def say(**message: Any) -> None:
    """Write one line to the process that started this one, if that process still runs."""
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class StdinOrders:
    """Reads the orders on stdin, one line each, as they come."""

    def __init__(self) -> None:
        self.open, self.text = True, b""

    def next(self, timeout: float) -> dict[str, Any] | None:
        """The next order; None after `timeout` seconds without one."""
        if not self.open:
            time.sleep(timeout)
            return None
        if b"\n" not in self.text and select.select([0], [], [], timeout)[0]:
            more = os.read(0, 4096)
            self.open = bool(more)
            self.text += more
        line, newline, remaining = self.text.partition(b"\n")
        if not newline:
            return None
        self.text = remaining
        order: dict[str, Any] = json.loads(line)
        return order


def run(collector: Collector, orders: StdinOrders) -> str:
    """Record until the end. Returns why the recording ended."""
    reported, reported_end = (-1, -1), ""
    while True:
        collector.discover()
        collector.nvml.sample()
        ended = collector.ended
        frames = 0 if collector.unwritten else collector.read()
        due = collector.published + PUBLISH - time.monotonic()
        if due <= 0 and collector.is_idle:
            collector.rest()
        elif collector.unwritten or collector.behind or due <= 0:
            if not published(collector):
                frames = 1  # more may wait
            elif (collector.num_steps, collector.num_calls) != reported:
                reported = collector.num_steps, collector.num_calls
                say(steps=reported[0], calls=reported[1], notes=collector.notes)
        if ended and not frames:
            reason = collector.why_ended
            if not orders.open:
                return reason
            if reason != reported_end:
                reported_end = reason
                say(ended=reason)
        if not orders.open and not collector.tails:
            return "exit"  # the process that started this one has ended, and no engine has begun to record
        order = orders.next(until_next_read(collector))
        if order is not None and "end" in order:
            return str(order["end"])
        if order is not None:
            collector.obey(order)


def until_next_read(collector: Collector) -> float:
    """Seconds until the next read."""
    if collector.is_idle:
        return IDLE_POLL
    due = collector.published + PUBLISH - time.monotonic()
    if (
        collector.rings.share_read >= MUCH or collector.unwritten or due <= 0
    ):  # a full disk may have room soon
        return SOON
    return min(due, PERIOD if collector.nvml.handles else POLL)


def published(collector: Collector, until: float | None = None) -> bool:
    """Publish. False if the disk is full and the caller may try again: until the rings are full, or until `until`."""
    try:
        collector.publish()
        return True
    except (OSError, duckdb.Error) as error:
        collector.store.reset()
        waits = not collector.rings_are_full if until is None else time.monotonic() < until
        if not (failures.is_full(error) and waits):
            raise
        say(waiting=f"the disk of {collector.session.output} is full: waiting for room")
        return False


def finish(collector: Collector, reason: str) -> None:
    """`Collector.finish`. If the disk is full, wait a while for room."""
    until = time.monotonic() + failures.FINISH_WAIT
    collector.prepare_end(reason)
    while not published(collector, until):
        time.sleep(AGAIN)
    while True:
        try:
            collector.write_final()
            break
        except (OSError, duckdb.Error) as error:
            collector.store.reset()
            remove_half(collector.store)
            if not failures.is_full(error) or time.monotonic() > until:
                raise
        time.sleep(AGAIN)
    collector.clean_up()


def main(make: Callable[[Session], Collector] = Collector) -> int:
    """Run the collector of the session that the command line names.

    Args:
        make: makes it. A kind of collector that is not of this package has a program of its own.
    """
    # Ctrl-C is for the process that started this one: it then orders the end. SIGIO comes if somebody opens a file
    # while `retire` holds a lease on it.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGIO):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    make_files_private()
    collector: Collector | None = None
    orders = StdinOrders()
    try:
        collector = make(Session.load(Path(sys.argv[1])))
        if collector.is_final:
            collector.clean_up()
            say(done=True, steps=collector.num_steps, calls=collector.num_calls, notes=[])
            return 0
        collector.publish()
        say(ready=True, notes=collector.notes)
        reason = run(collector, orders)
        say(finishing=reason)
        finish(collector, reason)
        say(done=True, steps=collector.num_steps, calls=collector.num_calls, notes=collector.notes)
    except Exception as error:
        return _failed(collector, orders, error)
    return 0


def _failed(collector: Collector | None, orders: StdinOrders, error: Exception) -> int:
    """Report why the recording cannot go on. If the process that started this one has ended, detach the agents here."""
    if not isinstance(error, FdtraceError):
        with contextlib.suppress(OSError):
            traceback.print_exc()  # into collector.log, among the parts
    reported = (
        error if isinstance(error, FdtraceError) else FdtraceError("the collector failed", why=repr(error))
    )
    if collector is not None:
        reported = failures.cannot_go_on(collector.session, collector.safe_steps, error)
        if not orders.open:
            attach_server.detach(collector.session.id, "error")
    say(error=[reported.what, reported.why, reported.hint])
    return reported.exit_code


if __name__ == "__main__":
    sys.exit(main())
