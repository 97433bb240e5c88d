"""One ring of an engine that has several, and the data that belongs to this ring alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fdtrace.recorder.collector.ledger import Ledger
from fdtrace.recorder.trace.column_values import MISSING


@dataclass
class EngineRing:
    """One ring of an engine of several rings: maps the ring's own numbers of requests and steps to the trace's."""

    kind: str
    rank: int = 0
    numbers: dict[int, int] = field(default_factory=dict)
    waits_for_keyframe: bool = True
    base: int | None = None
    """Add this to the ring's own number of a step to get the trace's number. None until both are known."""
    past: bool = False
    lost_frames: int = 0
    lost_from: int = MISSING

    @property
    def runs(self) -> bool:
        """Whether this ring holds forwards."""
        return self.kind == "worker" or self.base is not None

    def record_loss(self, step: int, ledger: Ledger) -> None:
        """Add an event for lost frames: from `lost_from`, the next step at that time, up to before `step`."""
        if not self.lost_frames:
            return
        detail = {
            "frames": self.lost_frames, "part": self.kind, "first_step": self.lost_from, "last_step": step - 1,
        }  # fmt: skip
        ledger.event("lost", self.lost_from, reason="overwritten before it was read", detail=detail)
        self.lost_frames, self.lost_from = 0, MISSING

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> EngineRing:
        """The part that saved `state`."""
        numbers = {int(local): number for local, number in state.pop("numbers").items()}
        return cls(numbers=numbers, **state)

    def state(self) -> dict[str, Any]:
        """The state as JSON."""
        return dict(asdict(self), numbers={str(local): number for local, number in self.numbers.items()})
