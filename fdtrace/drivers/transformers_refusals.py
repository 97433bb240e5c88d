"""Why a `schedule_batch()` of transformers did not admit the head of the queue: by the rules that the recorder applies.

`transformers_driver.py` imports it from its own directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message
    from fdtrace.recorder.agent import transformers_config as config
    from fdtrace.recorder.agent import transformers_figures as figures
else:
    from agent_modules import agent_module

    config, figures = agent_module("transformers_config"), agent_module("transformers_figures")

MARGIN = "_try_to_meet_safety_margin"


class TransformersRefusals:
    """Looks at the scheduler of a batch processor right after each of its calls."""

    def __init__(self, processor: Any) -> None:
        self.scheduler, self.blocks = processor.scheduler, figures.KVBlocks(processor.cache)
        self.offloads_to_cpu = config.cpu_pool_size(processor) > 0
        self._in_margin: bool | None = None
        self._refusal = figures.HeadRefusal()
        if hasattr(self.scheduler, MARGIN):
            own = getattr(self.scheduler, MARGIN)

            def margin(*args: Any, **kwargs: Any) -> Any:
                found = own(*args, **kwargs)
                self._in_margin = bool(found)
                return found

            setattr(self.scheduler, MARGIN, margin)

    def after(self, budgets: tuple[int, ...], result: Any) -> None:
        """A call has returned.

        Args:
            budgets: its arguments: tokens, and KV cache tokens that it may read.
            result: what it returned.
        """
        start = figures.CallStart(0, 0, 0, 0, int(budgets[0]), int(budgets[1]))
        head, end = figures.head_of(self.scheduler, self.offloads_to_cpu), figures.ended(result)
        self._refusal = figures.refusal(self.scheduler, head, self.blocks, start, end, self._in_margin)
        self._in_margin = None

    def take(self, preempted: int) -> Message:
        """Fields of the answer: `not_admitted`, `missing_blocks`; None: nothing waits, not known.

        Args:
            preempted: requests that were offloaded or reset for the batch of the last call.
        """
        refusal, self._refusal = self._refusal, figures.HeadRefusal()
        reason = refusal.reason
        if preempted and not reason and figures.head_of(self.scheduler, self.offloads_to_cpu) is not None:
            reason = "preemption"
        missing = refusal.missing_blocks
        return {"not_admitted": reason or None, "missing_blocks": missing if missing >= 0 else None}
