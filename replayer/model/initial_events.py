"""The state in which a scheduler begins, besides its requests. Only an engine's real scheduler uses these events."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdmissionBlocked:
    """When the model begins, no waiting request is admitted before a running one ends."""
