"""When an engine writes its state again, so that a trace of a flight recorder can begin there."""

from __future__ import annotations

from typing import Any

NEVER = 1 << 63


class CheckpointTimes:
    """The times at which a flight recorder wants the state: `origin_ns` and every `every_ns` after it, UTC.

    All engines of a flight write it at the same times, and its collector knows them. Other recordings want none.
    """

    def __init__(self, session: dict[str, Any] | None) -> None:
        """`session`: what the agent was asked to record."""
        wanted = (session or {}).get("checkpoints") or {}
        self.every_ns, self.origin_ns = int(wanted.get("every_ns", 0)), int(wanted.get("origin_ns", 0))

    def after(self, ts: int) -> int:
        """The next of these times; NEVER if there is none."""
        if self.every_ns <= 0:
            return NEVER
        return ts + self.every_ns - (ts - self.origin_ns) % self.every_ns
