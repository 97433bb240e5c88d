"""The processes of a server: a pid and everything that it started.

By parents alone. Servers rewrite their command lines (vLLM's process titles), and FastDeploy's workers leave
their parent's process group and session (`preexec_fn=os.setsid`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fdtrace.recorder.inject.inject_errors import NoProcess
from fdtrace.recorder.inject.proc import Stat, read_stat


@dataclass(frozen=True)
class Process:
    """One process of a tree. `start_time` is in clock ticks since boot; `depth` is 0 for the root."""

    pid: int
    parent: int
    start_time: int
    name: str
    depth: int

    def is_alive(self) -> bool:
        """Whether this very process still runs: not a later one with its pid, not its zombie."""
        return is_same_process(self.pid, self.start_time)


def is_same_process(pid: int, start_time: int) -> bool:
    """Whether the process that had `pid` and `start_time` still runs."""
    try:
        stat = read_stat(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.start_time == start_time and stat.state not in "ZX"


def process_tree(pid: int) -> list[Process]:
    """`pid` and its descendants, parents before children, zombies left out. NoProcess when `pid` is gone."""
    children: dict[int, list[Stat]] = {}
    root = None
    for stat in _all_processes():
        children.setdefault(stat.parent, []).append(stat)
        if stat.pid == pid:
            root = stat
    if root is None or root.state in "ZX":
        raise NoProcess(pid)
    found: list[Process] = []
    waiting = [(root, 0)]
    while waiting:
        stat, depth = waiting.pop(0)
        if stat.state not in "ZX":
            found.append(Process(stat.pid, stat.parent, stat.start_time, stat.name, depth))
        # A pid that was reused while we read cannot be older than its parent.
        below = [child for child in children.get(stat.pid, []) if child.start_time >= stat.start_time]
        waiting += [(child, depth + 1) for child in sorted(below, key=lambda child: child.pid)]
    return found


def _all_processes() -> list[Stat]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.append(read_stat(f"/proc/{name}/stat"))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found
