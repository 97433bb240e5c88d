"""The engines that the agent knows. The names of each engine are known in files of its own, beside this one."""

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
    """Whether this engine's scheduler, or its model runner, was seen at work in this process."""

    def begin(self, writer: Writer) -> None:
        """A recording begins: drop the state of the last one."""

    def describe(self) -> dict[str, Any]:
        """The engine's row."""

    def snapshot(self) -> Iterable[tuple[int, KeyframeRow]]:
        """Every running row. Called between two steps."""


ADAPTERS = (
    ("sandbox", "SandboxAdapter"),
    ("fastdeploy", "FastDeployAdapter"),
    ("fastdeploy_worker", "FastDeployWorkerAdapter"),
    ("vllm", "VllmAdapter"),
    ("vllm_worker", "VllmWorkerAdapter"),
    ("transformers", "TransformersAdapter"),
)
"""Module and class. If an engine has both sides in one process, the side that schedules comes first."""


def loaded() -> list[Any]:
    """The adapter classes whose modules are loaded. An injected agent has only those of its own engine."""
    modules = ((sys.modules.get("%s.%s" % (__package__, module)), name) for module, name in ADAPTERS)
    return [getattr(module, name) for module, name in modules if module is not None]
