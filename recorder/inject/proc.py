"""What /proc says about processes and threads."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Stat:
    """Fields of /proc/PID/stat. `start_time` is in clock ticks since boot: pid and start time identify a process even
    after its pid is reused.
    """

    pid: int
    name: str
    state: str
    parent: int
    start_time: int


def read_stat(path: str) -> Stat:
    """Read `path`, a /proc/…/stat. Raises FileNotFoundError or ProcessLookupError if the process is gone."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    head, _, tail = text.rpartition(")")  # the name may contain parentheses and spaces
    pid, _, name = head.partition(" (")
    fields = tail.split()
    return Stat(int(pid), name, fields[0], int(fields[1]), int(fields[19]))


def read_status(path: str) -> dict[str, str]:
    """Read `path`, a /proc/…/status, into a dictionary of names and values."""
    with open(path, encoding="utf-8", errors="replace") as file:
        pairs = (line.rstrip("\n").partition(":") for line in file)
        return {name: value.strip() for name, _, value in pairs}


def num_filters(status: dict[str, str]) -> int:
    """The number of seccomp filters of a process or thread, from the result of `read_status`."""
    if status.get("Seccomp") != "2":
        return 0
    return int(status.get("Seccomp_filters", 1))  # counted since Linux 5.9


def read_small(path: str, default: str = "") -> str:
    """The text of a one-line file; `default` if the file cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return default


def threads(pid: int) -> list[int]:
    """The ids of the process's threads; empty if the process is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return []
