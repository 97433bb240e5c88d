"""What a replay of a deployment's pipeline begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fdtrace.replayer.model.events import Notification
from fdtrace.replayer.replay.fetching import SentRequest
from fdtrace.replayer.replay.worker import Slot


@dataclass(frozen=True)
class PipelineStart:
    """What a replay begins with: milliseconds since the first recorded forward."""

    at: float
    """When the first call begins."""
    sent: tuple[SentRequest, ...]
    aborts: tuple[tuple[float, str], ...] = ()
    initial_events: tuple[Notification, ...] = ()
    """What was there already, as events for the model."""
    slots: tuple[Slot, ...] = ()
    """The same, as slots of the worker."""
    unseen: Mapping[str, int] = field(default_factory=dict)
    """Tokens that these requests had made and no call had counted."""
    ended: tuple[str, ...] = ()
    """Requests that the first call found running although the worker had ended them."""
    until: float | None = None
    """When the replay ends, if the recording ended before its requests did."""
