"""The engines that the agent knows. One file beside this one knows one engine's names."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Iterable, Protocol

if TYPE_CHECKING:
    from .hooks import Hook
    from .writer import KeyframeRow, Writer


class Adapter(Protocol):
    """Turns what an engine's hooked methods show into frames."""

    hooks: tuple[Hook, ...]
    active: bool
    """Whether this engine's scheduler was seen at work in this process."""

    def begin(self, writer: Writer) -> None:
        """A recording begins: forget the last one's state."""

    def describe(self) -> dict[str, Any]:
        """The engine's row."""

    def snapshot(self) -> Iterable[tuple[int, KeyframeRow]]:
        """Every running row, at a step's boundary."""


ADAPTERS = (
    ("sandbox", "SandboxAdapter"),
    ("fastdeploy", "FastDeployAdapter"),
    ("fastdeploy_worker", "FastDeployWorkerAdapter"),
    ("vllm", "VllmAdapter"),
    ("vllm_worker", "VllmWorkerAdapter"),
    ("transformers", "TransformersAdapter"),
)
"""Module and class. The side that schedules before the side that runs, where an engine has both in one process."""


def loaded() -> list[Any]:
    """The adapters' classes of those modules that this package has: an injected one has its own engine's alone."""
    modules = ((sys.modules.get("%s.%s" % (__package__, module)), name) for module, name in ADAPTERS)
    return [getattr(module, name) for module, name in modules if module is not None]
