"""Whoever owns worker processes that never end by themselves: for tests of their end."""

from __future__ import annotations

import os
import sys
import time

from fdtrace.worker_processes import WorkerProcesses


class EndlessState:
    """The state of such a worker."""

    def close(self) -> None:
        """Say so, on the descriptor that the owner passes on."""


def endless(state: EndlessState, _: None) -> None:
    """A task: tell the worker's number, and never end."""
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    while True:
        time.sleep(0.01)


def own_worker() -> None:
    """Own a worker, and wait for it."""
    with WorkerProcesses(1, EndlessState) as workers:
        workers.submit(endless, None).result()
