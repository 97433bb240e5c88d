"""Figures of PyTorch's CUDA caching allocator, from its statistics on the host: nothing waits for a device."""

from __future__ import annotations

import sys
from typing import Any, Callable

from . import wire

UNKNOWN = wire.AllocatorFigures()


def reader(device: Any) -> Callable[[], wire.AllocatorFigures] | None:
    """A function that reads the allocator of a `torch.device`; None if the device has none (a CPU)."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or getattr(device, "type", "") != "cuda":
        return None
    statistics = cuda.memory_stats_as_nested_dict

    def read() -> wire.AllocatorFigures:
        counts = statistics(device)
        allocated, reserved = counts["allocated_bytes"]["all"], counts["reserved_bytes"]["all"]
        return wire.AllocatorFigures(
            allocated_bytes=allocated["current"],
            reserved_bytes=reserved["current"],
            peak_allocated_bytes=allocated["peak"],
            peak_reserved_bytes=reserved["peak"],
        )

    try:
        read()
    except Exception:  # an allocator of another kind keeps no statistics
        return None
    return read
