"""A stand-in for the lock of FastDeploy's `ResourceManagerV1`: each section of it is seen as it begins and ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fastdeploy_order import Order


class StandIn:
    """In place of a manager's lock: the same lock, with `order` looking on.

    It can take the lock's place at any moment: whoever holds the lock then, holds this one. It is taken by `with` alone
    in FastDeploy; all else goes to the lock itself, unseen.
    """

    def __init__(self, lock: Any, order: Order) -> None:
        self.lock, self.order = lock, order  # type: Any, Order | None

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
