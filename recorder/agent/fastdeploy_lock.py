"""A stand-in for the lock of FastDeploy's `ResourceManagerV1`: each section of it is seen as it begins and ends."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Protocol


class Onlooker(Protocol):
    """Who is asked as a section of the lock begins and ends, in the function of `frame`; it raises no Exception."""

    def entered(self, frame: FrameType) -> None: ...

    def leaving(self, frame: FrameType, failed: bool) -> None: ...


class StandIn:
    """In place of a manager's lock: the same lock, with `order` looking on.

    It can take the lock's place at any moment: whoever holds the lock then, holds this one. It is taken by `with` alone
    in FastDeploy; all else goes to the lock itself, unseen.
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
            except BaseException:  # a KeyboardInterrupt: nobody would give the lock back
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
