"""What a flight recorder was asked to do. The session's file holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fdtrace.recorder.errors import TraceError

SECOND = 1_000_000_000
"""Nanoseconds."""

AFTER_S, AT_MOST_EVERY_S, KEEP = 10, 300, 20
"""Defaults: seconds that a kept trace goes on after its trigger, seconds between two triggers that keep one, and
number of kept traces."""

SEGMENTS = 8
"""The window is so many segments, and one more is being filled: a kept trace may have an eighth more than asked for."""

LEAST_CHECKPOINT_NS, CHECKPOINT_OF_BYTES_NS = 5 * SECOND, 15 * SECOND
"""Time between two checkpoints of an engine: at least, so that some publications lie between them; and where no time
says how long a segment is."""


@dataclass(frozen=True)
class FlightPlan:
    """The limits and triggers of a flight recorder.

    Args:
        window_ns: the ring holds at least so many nanoseconds; None: it is limited by `window_bytes`.
        window_bytes: the ring holds at most so many bytes.
        after_ns: a kept trace goes on for so long after its trigger.
        at_most_every_ns: a trigger that comes sooner after the one that kept a trace keeps nothing.
        keep: number of kept traces; the oldest go first.
        on: the conditions that the user gave.
        counts: whether what the ring drops is counted, for the metrics.
    """

    window_ns: int | None = None
    window_bytes: int | None = None
    after_ns: int = AFTER_S * SECOND
    at_most_every_ns: int = AT_MOST_EVERY_S * SECOND
    keep: int = KEEP
    on: tuple[str, ...] = ()
    counts: bool = False

    @property
    def checkpoint_ns(self) -> int:
        """Time between two checkpoints of an engine: a segment's. A kept trace can begin with each of them."""
        if self.window_ns is None:
            return CHECKPOINT_OF_BYTES_NS
        return max(LEAST_CHECKPOINT_NS, self.window_ns // SEGMENTS)

    def as_json(self) -> dict[str, Any]:
        """For the session's file."""
        return {**asdict(self), "on": list(self.on)}

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> FlightPlan:
        """The plan that `as_json` gave. TraceError if it is none: the session's file may be anybody's."""
        try:
            plan = cls(**{**(values or {}), "on": tuple((values or {}).get("on", ()))})
            numbers = (plan.after_ns, plan.at_most_every_ns, plan.keep)
            window = plan.window_bytes if plan.window_ns is None else plan.window_ns
            if not all(type(number) is int and number >= 0 for number in (*numbers, window)) or not window:
                raise ValueError("a limit is no number")
            if not all(isinstance(text, str) for text in plan.on):
                raise ValueError("a trigger is no text")
            if type(plan.counts) is not bool:
                raise ValueError("whether it counts is neither yes nor no")
        except (TypeError, ValueError) as error:
            raise TraceError("this session describes no flight recorder", why=str(error)) from None
        return plan
