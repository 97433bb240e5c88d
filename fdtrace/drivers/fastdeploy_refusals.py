"""Why a call of FastDeploy's `schedule()` did not admit the head of the queue: by the rules that the recorder applies.

`fastdeploy_driver.py` imports it from its own directory.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message
    from fdtrace.recorder.agent import fastdeploy_reasons as reasons
else:
    from agent_modules import agent_module

    reasons = agent_module("fastdeploy_reasons")


class FastDeployRefusals:
    """Reads the variables of each call of a manager's `schedule()`, right before it returns."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self._refusal: tuple[str, int] | None = None
        last = next(name for name in reasons.LAST_METHODS if hasattr(manager, name))
        own = getattr(manager, last)

        def before_return(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            if caller.f_code.co_name == "schedule":
                self._read(caller.f_locals)
            return own(*args, **kwargs)

        setattr(manager, last, before_return)

    def _read(self, names: dict[str, Any]) -> None:
        if self.manager.waiting:
            self._refusal = reasons.head_refusal(self.manager, names)

    def take(self) -> Message:
        """Fields of the last call's answer: `not_admitted`, `missing_blocks`; None: nothing waited, not known."""
        refusal, self._refusal = self._refusal, None
        reason, missing = refusal or (None, -1)
        return {"not_admitted": reason, "missing_blocks": missing if missing >= 0 else None}
