"""`python -m fdtrace.recorder.collector SESSION`: started by `fdtrace attach`, `record` and `recover`, not by hand.

It says its progress as JSON lines on stdout, also when nothing more can come from the processes seen so far (`ended`);
it obeys `{"end": REASON}` on stdin. It outlives whoever started it: once stdin is closed it ends when they have.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fdtrace.recorder.collector.process import PUBLISH, Collector, make_files_private
from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.session import Session

POLL = 0.05
"""Seconds between two looks at the rings: well within the time in which an engine fills one, and seldom enough for a
server that has no idle processor."""

NICE = 10
"""The server comes first: what it writes meanwhile waits in the rings. Beside one that takes all it can get, a tenth of
a processor is left, about twice what recording 200 steps a second needs."""


def say(**message: Any) -> None:
    """One line to whoever started this process, if it is still there."""
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class Orders:
    """The lines on stdin, read as they come."""

    def __init__(self) -> None:
        self.open, self.text = True, b""

    def next(self, timeout: float) -> dict[str, Any] | None:
        """An order, or None after `timeout` seconds without one."""
        if not self.open:
            time.sleep(timeout)
            return None
        if b"\n" not in self.text and select.select([0], [], [], timeout)[0]:
            more = os.read(0, 4096)
            self.open = bool(more)
            self.text += more
        line, newline, rest = self.text.partition(b"\n")
        if not newline:
            return None
        self.text = rest
        order: dict[str, Any] = json.loads(line)
        return order


def run(collector: Collector) -> str:
    """Record until the end; the reason of it."""
    orders = Orders()
    reported, told = -1, ""
    while True:
        collector.discover()
        collector.nvml.sample()
        ended = collector.ended
        frames = collector.read()
        if collector.behind or time.monotonic() - collector.published >= PUBLISH:
            collector.publish()
            if collector.num_steps != reported:
                reported = collector.num_steps
                say(steps=reported, notes=collector.notes)
        if ended and not frames:
            reason = collector.why_ended
            if not orders.open:
                return reason
            if reason != told:
                told = reason
                say(ended=reason)
        order = orders.next(POLL)
        if order is not None and "end" in order:
            return str(order["end"])


def main() -> int:
    """Run the collector of the session that the command line names."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C is for whoever started this: it says when to end
    os.nice(NICE)
    make_files_private()
    try:
        collector = Collector(Session.load(Path(sys.argv[1])))
        if collector.is_final:
            collector.clean_up()
            say(done=True, steps=collector.num_steps, notes=[])
            return 0
        collector.publish()
        say(ready=True, notes=collector.notes)
        reason = run(collector)
        say(finishing=reason)
        collector.finish(reason)
        say(done=True, steps=collector.num_steps, notes=collector.notes)
    except FdtraceError as error:
        say(error=[error.what, error.why, error.hint])
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
