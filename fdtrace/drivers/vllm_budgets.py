"""Sets the budgets of a vLLM `Scheduler` by a formula: `schedule()` reads them at each call.

`vllm_driver.py` imports it from its own directory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message
    from fdtrace.drivers.vllm_settings import RefusedSetting
else:  # beside this script, without fdtrace
    from vllm_settings import RefusedSetting

SECOND_BUDGET = ("input_budget", "draft_slots", "max_requests")
"""Rules that need a `schedule()` with a second budget (vLLM #51725)."""


class FormulaBudgets:
    """Asks for the budgets of each call, and sets them. `ask` sends a question and returns the answer.

    Raises:
        Refused: this vLLM does not read what the formula's rules give.
    """

    def __init__(self, scheduler: Any, rules: list[str]) -> None:
        self.scheduler, self.config = scheduler, scheduler.scheduler_config
        self.ask: Callable[[Message], Message] = lambda question: {}
        self.budget = 0
        """The budget of the last call, as the formula gave it."""
        self.configured = self.config.max_num_batched_tokens
        speculation = scheduler.vllm_config.speculative_config
        self.has_drafter = speculation is not None
        self.configured_slots = int(getattr(speculation, "max_num_new_slots_for_drafting", 0))
        self.slots = self.configured_slots
        second = [rule for rule in SECOND_BUDGET if rule in rules]
        if second and not _has_second_budget(scheduler):
            raise RefusedSetting(f"{', '.join(second)}: the schedule() of this vLLM reads one budget only")
        if "max_requests" in rules and getattr(scheduler, "adaptive_long_prefill_threshold", False):
            raise RefusedSetting(
                "max_requests: long_prefill_token_threshold_adaptive derives a threshold from the input budget"
            )
        if second and speculation is not None:
            self._let_slots_be_set(speculation)

    def _let_slots_be_set(self, speculation: Any) -> None:
        """The slots are a property of the speculative configuration: a class of its own answers with ours."""
        cls, budgets = type(speculation), self
        own = {"max_num_new_slots_for_drafting": property(lambda config: budgets.slots)}
        object.__setattr__(speculation, "__class__", type(cls.__name__, (cls,), own))

    def set(self, state: Message) -> None:
        """Ask for the budgets of the call that comes next, and set them. `state`: what this call finds."""
        answer = self.ask({**state, "draft_slots": self.configured_slots, "has_drafter": self.has_drafter})
        self.budget = answer["budget"]
        tokens = max(0, self.budget)
        inputs, self.slots = answer.get("input_budget"), self.configured_slots
        if answer.get("draft_slots") is not None:
            self.slots = max(0, answer["draft_slots"])
        most = answer.get("max_requests")
        if most is not None and self.has_drafter:
            # Each request costs its tokens and `slots`. The budget is `max_requests` times the slots, and the tokens:
            # one request more never fits.
            self.slots = tokens + 1
            inputs = max(0, most) * self.slots + tokens
        self.scheduler.max_num_scheduled_tokens = tokens
        object.__setattr__(
            self.config, "max_num_batched_tokens", self.configured if inputs is None else max(0, inputs)
        )


def _has_second_budget(scheduler: Any) -> bool:
    methods = (vars(cls).get("schedule") for cls in type(scheduler).__mro__)
    codes = (getattr(method, "__code__", None) for method in methods)
    return any("input_budget" in getattr(code, "co_varnames", ()) for code in codes)
