"""The state in which a scheduler begins, besides its requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdmissionBlocked:
    """When the model begins, no waiting request is admitted before a running one ends. Only an engine's real
    scheduler uses it.
    """


@dataclass(frozen=True, slots=True)
class ReserveFound:
    """The reserve for running requests when the model begins.

    `value` is a ratio of the tokens that they may still emit, or a number of blocks for each of them. `relaxed`: at
    first no blocks are reserved.
    """

    value: float
    relaxed: bool = False
