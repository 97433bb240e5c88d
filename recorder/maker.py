"""Which process made a file or directory: whether what it left may go."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fdtrace.recorder.agent.ring import process_start


@dataclass(frozen=True)
class Maker:
    """A process for good: pid and start time (clock ticks since boot), and the pid namespace that the pid counts in."""

    namespace: int
    pid: int
    start: int

    @classmethod
    def this(cls) -> Maker:
        """This process."""
        return cls(_namespace(), os.getpid(), process_start(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> Maker | None:
        """What `str` made; None where the text is not that."""
        parts = text.split("-")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
            return None
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.namespace}-{self.pid}-{self.start}"

    @property
    def is_gone(self) -> bool:
        """Whether it has surely ended: the pids of another namespace tell nothing."""
        return self.namespace == _namespace() and process_start(self.pid) != self.start


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
