"""Lets a CPU do what transformers leaves to accelerators, for tests: `offload` and `asynchronous`.

`offload`: the CPU pool is allocated in pinned memory, which needs an accelerator: plain memory does here.
`asynchronous`: double buffering needs a device's streams and events. A CPU has done what was asked when a call returns,
so that streams and events that do nothing keep its order. Scheduling, carry-over and updates stay transformers' own.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

PACKAGE = "transformers.generation.continuous_batching."


class Done:
    """In place of a CUDA stream and event: all work is always complete."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def nothing(self, *args: Any) -> None:
        """There is nothing to do, or to wait for."""

    record = wait = synchronize = wait_stream = wait_event = record_event = nothing

    def query(self) -> bool:
        """Whether it is done."""
        return True


@contextlib.contextmanager
def within(stream: Any) -> Iterator[None]:
    """`torch.cuda.stream`, and transformers' own around it."""
    yield


def offload() -> None:
    """Allocate what is to be pinned as plain memory."""
    import torch

    empty = torch.empty

    def plain(*size: Any, pin_memory: bool = False, **given: Any) -> Any:
        return empty(*size, **given)

    torch.empty = plain


def asynchronous() -> None:
    """Take streams and events that do nothing."""
    import torch

    torch.Event = torch.cuda.Event = torch.cuda.Stream = Done
    torch.cuda.stream, torch.cuda.current_stream = within, Done
    for name in ("input_outputs", "model_runner", "continuous_api", "offloading_manager", "utils"):
        module = importlib.import_module(PACKAGE + name)
        for replaced, by in (("create_device_stream", Done), ("stream_context", within)):
            if hasattr(module, replaced):
                setattr(module, replaced, by)
    pairs = importlib.import_module(PACKAGE + "input_outputs").ContinuousBatchingAsyncIOs
    if hasattr(pairs, "_supported_device_types"):
        pairs._supported_device_types = (*pairs._supported_device_types, "cpu")
        return
    offload()  # an earlier version asks for CUDA, and pins where it is there
    made = pairs.__init__

    def make(self: Any, *args: Any, **given: Any) -> None:
        there, torch.cuda.is_available = torch.cuda.is_available, lambda: True
        try:
            made(self, *args, **given)
        finally:
            torch.cuda.is_available = there

    pairs.__init__ = make
