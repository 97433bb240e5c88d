"""Which process made a file or directory. It decides whether what that process left may be removed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fdtrace.recorder.agent.ring import process_start


@dataclass(frozen=True)
class CreatorProcess:
    """Identifies a process even after its pid is reused: pid, start time (clock ticks since boot) and pid namespace."""

    namespace: int
    pid: int
    start: int

    @classmethod
    def this(cls) -> CreatorProcess:
        """This process."""
        return cls(_namespace(), os.getpid(), process_start(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> CreatorProcess | None:
        """The maker that `str` wrote; None if the text is something else."""
        fields = text.split("-")
        if len(fields) != 3 or not all(
            field.isascii() and field.isdigit() and len(field) < 20 for field in fields
        ):
            return None
        return cls(*map(int, fields))

    def __str__(self) -> str:
        return f"{self.namespace}-{self.pid}-{self.start}"

    @property
    def is_gone(self) -> bool:
        """Whether it has certainly ended. The pids of another namespace say nothing, so then: False."""
        return self.namespace == _namespace() and process_start(self.pid) != self.start


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
