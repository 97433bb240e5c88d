"""One ring of an engine of several: what is its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fdtrace.recorder.trace.column_values import MISSING

from fdtrace.recorder.collector.ledger import Ledger


@dataclass
class Part:
    """One ring of a joined engine: how its own numbers of requests and steps become those of the trace."""

    kind: str
    rank: int = 0
    numbers: dict[int, int] = field(default_factory=dict)
    waits_for_keyframe: bool = True
    base: int | None = None
    """Added to the ring's own number of a step it gives the trace's; None until both are known."""
    past: bool = False
    lost_frames: int = 0
    lost_from: int = MISSING

    @property
    def runs(self) -> bool:
        """Whether this ring holds forwards."""
        return self.kind == "worker" or self.base is not None

    def record_loss(self, step: int, ledger: Ledger) -> None:
        """An event of what was lost: between the step that was next then and `step`, which is next now."""
        if not self.lost_frames:
            return
        detail = {
            "frames": self.lost_frames, "part": self.kind, "first_step": self.lost_from, "last_step": step - 1,
        }  # fmt: skip
        ledger.event("lost", self.lost_from, reason="overwritten before it was read", detail=detail)
        self.lost_frames, self.lost_from = 0, MISSING

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Part:
        """The part that left `state` (`asdict`)."""
        numbers = {int(local): number for local, number in state.pop("numbers").items()}
        return cls(numbers=numbers, **state)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return dict(asdict(self), numbers={str(local): number for local, number in self.numbers.items()})
