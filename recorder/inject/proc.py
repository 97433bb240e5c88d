"""What /proc tells about processes and threads."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Stat:
    """Of /proc/PID/stat. `start_time` is in clock ticks since boot: with the pid it names one process for
    good.
    """

    pid: int
    name: str
    state: str
    parent: int
    start_time: int


def read_stat(path: str) -> Stat:
    """Read `path`, a /proc/…/stat; FileNotFoundError or ProcessLookupError when it is gone."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    head, _, tail = text.rpartition(")")  # the name may itself hold parentheses and spaces
    pid, _, name = head.partition(" (")
    fields = tail.split()
    return Stat(int(pid), name, fields[0], int(fields[1]), int(fields[19]))


def read_status(path: str) -> dict[str, str]:
    """Read `path`, a /proc/…/status, as names to values."""
    with open(path, encoding="utf-8", errors="replace") as file:
        pairs = (line.rstrip("\n").partition(":") for line in file)
        return {name: value.strip() for name, _, value in pairs}


def num_filters(status: dict[str, str]) -> int:
    """How many seccomp filters a process or thread is under, by what `read_status` has read."""
    if status.get("Seccomp") != "2":
        return 0
    return int(status.get("Seccomp_filters", 1))  # counted since Linux 5.9


def read_small(path: str, default: str = "") -> str:
    """A one-line file's text, `default` where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return default


def threads(pid: int) -> list[int]:
    """The ids of the process's threads; empty when it is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return []
