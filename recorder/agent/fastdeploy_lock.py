"""A stand-in for the lock of FastDeploy's `ResourceManagerV1`: it reports when each section begins and ends."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Callable, Protocol

Handler = Callable[[Any, FrameType], None]
"""Takes the manager, and the frame of the function that holds its lock."""


class LockObserver(Protocol):
    """What is called when a section of the lock begins (`entering`) or, once `begun`, ends without an error (`ending`):
    a handler for each function that has something to report.
    """

    begun: bool
    entering: dict[str, Handler]
    ending: dict[str, Handler]

    def report(self, handler: Handler, frame: FrameType) -> None:
        """Call the handler. It raises no Exception."""


class ReportingLock:
    """Wraps a manager's lock, and calls `order` for each section.

    It can replace the lock at any moment: who holds the lock then also holds this one. FastDeploy takes the lock only
    by `with`. All other attributes go to the lock itself, without a report.
    """

    def __init__(self, lock: Any, order: LockObserver) -> None:
        self.lock = lock
        self.order: LockObserver | None = order

    def __enter__(self) -> Any:
        entered = self.lock.__enter__()
        order = self.order
        if order is not None:
            try:
                frame = sys._getframe(1)
                handler = order.entering.get(frame.f_code.co_name)
                if handler is not None:
                    order.report(handler, frame)
            except BaseException:  # a KeyboardInterrupt: else nobody would release the lock
                self.lock.__exit__(None, None, None)
                raise
        return entered

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        try:
            order = self.order
            if order is not None and kind is None and order.begun:
                frame = sys._getframe(1)
                handler = order.ending.get(frame.f_code.co_name)
                if handler is not None:
                    order.report(handler, frame)
        finally:
            self.lock.__exit__(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)
