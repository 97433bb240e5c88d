"""A stand-in for the lock of FastDeploy's `ResourceManagerV1`: it reports when each section begins and ends."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Protocol


class Onlooker(Protocol):
    """Called when a section of the lock begins and ends, in the function of `frame`. It raises no Exception."""

    def entered(self, frame: FrameType) -> None: ...

    def leaving(self, frame: FrameType, failed: bool) -> None: ...


class StandIn:
    """Wraps a manager's lock, and calls `order` for each section.

    It can replace the lock at any moment: who holds the lock then also holds this one. FastDeploy takes the lock only
    by `with`. All other attributes go to the lock itself, without a report.
    """

    def __init__(self, lock: Any, order: Onlooker) -> None:
        self.lock = lock
        self.order: Onlooker | None = order

    def __enter__(self) -> Any:
        entered = self.lock.__enter__()
        order = self.order
        if order is not None:
            try:
                order.entered(sys._getframe(1))
            except BaseException:  # a KeyboardInterrupt: else nobody would release the lock
                self.lock.__exit__(None, None, None)
                raise
        return entered

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        try:
            order = self.order
            if order is not None:
                order.leaving(sys._getframe(1), kind is not None)
        finally:
            self.lock.__exit__(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)
