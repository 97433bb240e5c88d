"""How much memory the framework's allocator reserves for the largest step so far, fitted from a recording.

A caching allocator keeps what it has reserved. So reserved memory grows only when a step has more tokens than every
step before. It stays flat up to the size that was profiled at start-up, and grows with the largest step beyond it.

An engine that copies the KV cache that a step reads (`num_cache_read_tokens`) needs memory for that too, and each copy
that is larger than all before it gets a new segment: what is reserved then grows at steps of any size. For such a
recording what the tensors of a step need (`peak_allocated_bytes`) is fitted instead, to both numbers. PyTorch gives its
unused segments back before it fails, so a step runs out of memory by what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.columns_on_demand import any_known
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.step_state import column, small_column

MemoryColumn = Literal["reserved_bytes", "peak_reserved_bytes", "peak_allocated_bytes"]

EXPLAINED = 0.5
"""A fit to tokens alone holds if at least this share of the growth came at new maxima of tokens."""


@dataclass(frozen=True)
class MemoryFit:
    """bytes = max(floor_bytes, base_bytes + bytes_per_token * the largest step's tokens).

    With `cache_read`, the largest of base_bytes + bytes_per_token * tokens + bytes_per_cache_read_token * the KV cache
    tokens that the step read, and `bytes_per_budget_token` more for each token of budget beyond `token_budget`.
    """

    column: MemoryColumn
    """The recorded column that it is fitted to."""
    floor_bytes: int
    base_bytes: float
    bytes_per_token: float
    num_points: int
    """Points that the line is fitted to: new maxima of tokens a step at which reserved memory grew."""
    rms_error_bytes: float
    """Error of the fit over all new maxima of tokens a step."""
    max_error_bytes: float
    max_tokens: int
    """The largest recorded step. Beyond it the fit extrapolates."""
    other_bytes: int = 0
    """Other memory in use on the device: the median over the steps where it was sampled; 0 if it never was."""
    explained: float = 1.0
    """Share of the growth that came at new maxima of tokens; of KV cache reads too with `cache_read`."""
    cache_read: bool = False
    bytes_per_cache_read_token: float = 0.0
    bytes_per_budget_token: float = 0.0
    """What the engine allocates at its start for each token of its budget, whatever it runs."""
    token_budget: int = 0
    """The recorded budget."""
    extrapolates: bool = True
    """Whether it holds for steps of more tokens than `max_tokens`: steps of several sizes made the memory grow."""

    def after_each(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Bytes after each step of a history with these columns: reserved, or needed at most so far."""
        line = self.base_bytes + self.bytes_per_token * np.asarray(columns["num_tokens"], dtype=np.float64)
        if self.cache_read:
            line += self.bytes_per_cache_read_token * np.maximum(cache_reads(columns), 0)
            budget = max(self.token_budget, int(np.max(columns["token_budget"], initial=0)))
            line += self.bytes_per_budget_token * (budget - self.token_budget)
        largest = np.maximum.accumulate(line)
        return np.rint(np.maximum(largest, self.floor_bytes)).astype(np.int64)

    def holds_for(self, columns: Mapping[str, NDArray[Any]]) -> bool:
        """Whether the recording says anything of steps as large as those of a history with these columns."""
        if self.explained < EXPLAINED:
            return False
        return self.extrapolates or int(np.max(columns["num_tokens"], initial=0)) <= self.max_tokens


def first_over(reserved: NDArray[np.int64], available_bytes: int) -> int | None:
    """Index of the first step with more than `available_bytes` reserved; None: there is none."""
    over = np.flatnonzero(reserved > available_bytes)
    return int(over[0]) if over.size else None


def fitted_column(recording: Recording) -> MemoryColumn:
    """`reserved_bytes`, or `peak_reserved_bytes` if only that column grows.

    On a CPU Paddle frees memory after each forward: reserved memory between forwards stays flat, and only the peak of
    each forward grows.
    """
    return (
        "peak_reserved_bytes"
        if not _grows(recording, "reserved_bytes") and _grows(recording, "peak_reserved_bytes")
        else "reserved_bytes"
    )


def _grows(recording: Recording, name: MemoryColumn) -> bool:
    values = small_column(recording, name)
    first = int(np.argmax(values != MISSING)) if len(values) else 0
    return len(values) > 0 and int(values.max()) > int(values[first])


def _other(recording: Recording, name: MemoryColumn) -> int:
    """Bytes in use on the device that the framework has not reserved."""
    if not any_known(recording.steps, "device_used_bytes"):
        return 0
    used, reserved = column(recording, "device_used_bytes"), column(recording, name)
    both_known = (used != MISSING) & (reserved != MISSING)
    return max(0, int(np.median(used[both_known] - reserved[both_known]))) if both_known.any() else 0


def cache_reads(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """KV cache tokens that each step read: as the engine counted them, or what its requests had computed before it."""
    for name in ("num_cache_read_tokens", "num_context_tokens"):
        if name in columns:
            return np.asarray(columns[name], dtype=np.int64)
    return np.zeros(len(columns["num_tokens"]), dtype=np.int64)


def fit_memory(recording: Recording) -> MemoryFit | None:
    """The fit of a recording; None if it has no bytes of an allocator."""
    by_tokens = _fit_to_tokens(recording)
    if by_tokens is None or by_tokens.explained >= EXPLAINED:
        return by_tokens
    return _fit_to_reads(recording) or by_tokens


def _fit_to_tokens(recording: Recording) -> MemoryFit | None:
    name = fitted_column(recording)
    tokens, reserved = small_column(recording, "num_tokens"), small_column(recording, name)
    both_known = (reserved != MISSING) & (tokens != MISSING)
    if not both_known.all():
        tokens, reserved = tokens[both_known], reserved[both_known]
    if not len(tokens):
        return None
    largest, high_water = np.maximum.accumulate(tokens), np.maximum.accumulate(reserved)
    is_maximum = _rises(largest)
    is_maximum[0] = True
    grew = _rises(high_water) & is_maximum
    floor = int(high_water[0])
    base, slope = _line(largest[grew], high_water[grew], _last_flat(largest, high_water), floor)
    error = np.maximum(base + slope * largest[is_maximum], floor) - high_water[is_maximum]
    growth, at = int(high_water[-1]) - floor, np.flatnonzero(grew)
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
        explained=float((high_water[at] - high_water[at - 1]).sum() / growth) if growth else 1.0,
    )


def _fit_to_reads(recording: Recording) -> MemoryFit | None:
    """The fit of what the tensors of a step need, by its tokens and the KV cache tokens that it read; None if too
    little of that is known.
    """
    tokens, reads = column(recording, "num_tokens"), column(recording, "num_cache_read_tokens")
    needed = column(recording, "peak_allocated_bytes")
    known = (tokens != MISSING) & (needed != MISSING) & (reads != MISSING)
    tokens, reads, needed = tokens[known], reads[known], needed[known]
    if not len(needed):
        return None
    high_water = np.maximum.accumulate(needed)
    grew = _rises(high_water)
    if grew.sum() < FEWEST_POINTS:
        return None
    of_step = np.stack([np.ones(grew.sum()), tokens[grew], reads[grew]]).T.astype(np.float64)
    several_sizes = len(np.unique(tokens[grew])) > 1
    base, per_token, per_read = _plane(of_step, high_water[grew].astype(np.float64), several_sizes)
    steps = np.maximum.accumulate(base + per_token * tokens + per_read * reads)
    error = np.maximum(steps, high_water[0])[grew] - high_water[grew]
    spread = high_water[grew] - high_water[grew].mean()
    return MemoryFit(
        column="peak_allocated_bytes",
        floor_bytes=int(high_water[0]),
        base_bytes=base,
        bytes_per_token=per_token,
        num_points=int(grew.sum()),
        rms_error_bytes=float(np.sqrt(np.mean(error**2))),
        max_error_bytes=float(np.abs(error).max()),
        max_tokens=int(tokens.max()),
        other_bytes=_other(recording, "reserved_bytes"),
        explained=float(max(0.0, 1 - (error**2).sum() / max(1.0, (spread**2).sum()))),
        cache_read=True,
        bytes_per_cache_read_token=per_read,
        bytes_per_budget_token=_static_bytes(recording),
        token_budget=recording.engine.max_num_batched_tokens,
        extrapolates=several_sizes,
    )


FEWEST_POINTS = 4
"""Growths that a fit to two numbers needs: one more than it has unknowns."""


def _plane(
    of_step: NDArray[np.float64], needed: NDArray[np.float64], several_sizes: bool
) -> tuple[float, float, float]:
    """Base, bytes a token and bytes a KV cache token read; none of the two is below 0. If all steps have the same
    tokens, their part is in the base.
    """
    used = [0, 1, 2] if several_sizes else [0, 2]
    while True:
        solved = np.linalg.lstsq(of_step[:, used], needed, rcond=None)[0]
        wrong = [i for i, value in zip(used, solved, strict=True) if i and value < 0]
        if not wrong:
            values = dict(zip(used, solved.tolist(), strict=True))
            return values[0], values.get(1, 0.0), values.get(2, 0.0)
        used = [i for i in used if i not in wrong]


def _static_bytes(recording: Recording) -> float:
    """Bytes of the attention masks that the engine allocates at its start, for each token of its budget."""
    masks = recording.engine.config.get("attention_mask_bytes")
    budget = recording.engine.max_num_batched_tokens
    return float(masks) / budget if isinstance(masks, int) and budget else 0.0


def _rises(high_water: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a rising series has more than before; not at its first entry."""
    return np.concatenate([[False], high_water[1:] > high_water[:-1]])


def _last_flat(largest: NDArray[np.int64], high_water: NDArray[np.int64]) -> int:
    """The largest step for which the memory reserved at the start was enough."""
    return int(largest[np.searchsorted(high_water, high_water[0], side="right") - 1])


def _line(
    tokens: NDArray[np.int64], reserved: NDArray[np.int64], flat: int, floor: int
) -> tuple[float, float]:
    """Base and slope through the points of growth; through one point, from the end of the flat part."""
    if len(tokens) == 0:
        return float(floor), 0.0
    if len(tokens) == 1:
        slope = (int(reserved[0]) - floor) / max(1, int(tokens[0]) - flat)
        return floor - slope * flat, slope
    slope, base = np.polyfit(tokens.astype(np.float64), reserved.astype(np.float64), 1)
    if slope < 0:
        return float(reserved.mean()), 0.0
    return float(base), float(slope)
