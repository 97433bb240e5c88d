"""How much memory the framework's allocator reserves for the largest step so far, fitted from a recording.

An allocator that caches keeps what it once reserved, so reserved memory grows at new maxima of tokens a step
alone. Up to what was profiled at start-up it stays flat, beyond that it grows with the largest step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING
from numpy.typing import NDArray

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.step_state import column

MemoryColumn = Literal["reserved_bytes", "peak_reserved_bytes"]


@dataclass(frozen=True)
class MemoryFit:
    """reserved bytes = max(floor_bytes, base_bytes + bytes_per_token * the largest step's tokens)."""

    column: MemoryColumn
    """What it is fitted to."""
    floor_bytes: int
    base_bytes: float
    bytes_per_token: float
    num_points: int
    """New maxima at which the allocator grew: what the line is fitted from."""
    rms_error_bytes: float
    """Of the fit, over all new maxima of tokens a step."""
    max_error_bytes: float
    max_tokens: int
    """The largest recorded step: beyond it the fit extrapolates."""
    other_bytes: int = 0
    """What else the device held, the median over the steps where its use was sampled; 0 where it never was."""

    def reserved(self, num_tokens: NDArray[Any]) -> NDArray[np.int64]:
        """The allocator's reserved bytes after each step of a history."""
        largest = np.maximum.accumulate(np.asarray(num_tokens, dtype=np.float64))
        line = self.base_bytes + self.bytes_per_token * largest
        return np.rint(np.maximum(line, self.floor_bytes)).astype(np.int64)

    def high_water(self, peak_tokens: int) -> int:
        """Reserved bytes once a step of `peak_tokens` has run."""
        return int(self.reserved(np.array([peak_tokens]))[0])

    def first_over(self, num_tokens: NDArray[Any], device_bytes: int) -> int | None:
        """Index of the first step that a device of `device_bytes` would not hold; None: it holds all."""
        return first_over(self.reserved(num_tokens), device_bytes - self.other_bytes)


def first_over(reserved: NDArray[np.int64], available_bytes: int) -> int | None:
    """Index of the first step with more reserved than is available; None: none has."""
    over = np.flatnonzero(reserved > available_bytes)
    return int(over[0]) if over.size else None


def fitted_column(recording: Recording) -> MemoryColumn:
    """`reserved_bytes`, or `peak_reserved_bytes` where only that one grows.

    On a CPU Paddle gives memory back after each forward: what is reserved between forwards stays flat, and only the
    peak of each forward grows.
    """
    return (
        "peak_reserved_bytes"
        if not _grows(recording, "reserved_bytes") and _grows(recording, "peak_reserved_bytes")
        else "reserved_bytes"
    )


def _grows(recording: Recording, name: MemoryColumn) -> bool:
    values = column(recording, name)
    values = values[values != MISSING]
    return len(values) > 0 and int(values.max()) > int(values[0])


def _other(recording: Recording, name: MemoryColumn) -> int:
    """Bytes of the device beside what the framework reserved."""
    used, reserved = column(recording, "device_used_bytes"), column(recording, name)
    seen = (used != MISSING) & (reserved != MISSING)
    return max(0, int(np.median(used[seen] - reserved[seen]))) if seen.any() else 0


def fit_memory(recording: Recording) -> MemoryFit | None:
    """The fit of a recording; None where it knows no reserved bytes."""
    name = fitted_column(recording)
    tokens, reserved = column(recording, "num_tokens"), column(recording, name)
    seen = (reserved != MISSING) & (tokens != MISSING)
    tokens, reserved = tokens[seen], reserved[seen]
    if not len(tokens):
        return None
    largest, water = np.maximum.accumulate(tokens), np.maximum.accumulate(reserved)
    new = np.concatenate([[True], largest[1:] > largest[:-1]])
    grew = np.concatenate([[False], water[1:] > water[:-1]]) & new
    floor = int(water[0])
    base, slope = _line(largest[grew], water[grew], _last_flat(largest, water), floor)
    error = np.maximum(base + slope * largest[new], floor) - water[new]
    return MemoryFit(
        column=name,
        floor_bytes=floor,
        base_bytes=base,
        bytes_per_token=slope,
        num_points=int(grew.sum()),
        rms_error_bytes=float(np.sqrt(np.mean(error**2))),
        max_error_bytes=float(np.abs(error).max()),
        max_tokens=int(largest[-1]),
        other_bytes=_other(recording, name),
    )


def _last_flat(largest: NDArray[np.int64], water: NDArray[np.int64]) -> int:
    """The largest step that memory was reserved for from the start."""
    return int(largest[water == water[0]][-1])


def _line(
    tokens: NDArray[np.int64], reserved: NDArray[np.int64], flat: int, floor: int
) -> tuple[float, float]:
    """Base and slope through the points of growth; with one, from the end of the flat part."""
    if len(tokens) == 0:
        return float(floor), 0.0
    if len(tokens) == 1:
        slope = (int(reserved[0]) - floor) / max(1, int(tokens[0]) - flat)
        return floor - slope * flat, slope
    slope, base = np.polyfit(tokens.astype(np.float64), reserved.astype(np.float64), 1)
    if slope < 0:
        return float(reserved.mean()), 0.0
    return float(base), float(slope)
