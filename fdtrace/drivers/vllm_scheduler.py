"""vLLM's real scheduler behind the interface of the replayer's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fdtrace.drivers.child import DriverProcess
from fdtrace.drivers.row_scheduler import RowDrivenScheduler
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.call_rules import VLLM_TAKES
from fdtrace.replayer.formulas.variables import Variables


class DrivenVllm(RowDrivenScheduler):
    """The scheduler of a vLLM package. A decode runs the drafts that it has, or waits: each step has rows.

    If there is a `formula`, it gives the budgets of each call.
    """

    engine: str | None = "vllm"
    needs = "vLLM, or with --scheduler vllm=DIR its requirements"

    def __init__(
        self,
        child: DriverProcess,
        config: SchedulerConfig,
        name: str,
        recorded: Mapping[str, Any],
        changed: Mapping[str, Any] | None = None,
        formula: Formula | None = None,
    ) -> None:
        """`recorded`: vLLM's own sizes and switches, by config, as `engine.config` of a recording has them; `changed`:
        changed settings, by vLLM's own names.

        UsageError if the recorded configuration cannot be driven here.
        """
        if config.role != "mixed":
            raise UsageError(
                f"vLLM's scheduler has no role {config.role!r} here",
                why="the prefill and decode roles of a workload are FastDeploy's: what another instance does comes "
                "between the calls of its scheduler",
                hint="a workload without `role`, or --scheduler fastdeploy=DIR",
            )
        if recorded.get("kv_transfer_config"):
            raise UsageError(
                "the scheduler of an engine that gets KV blocks from elsewhere cannot be driven",
                why="the recording does not say when they arrived",
                hint="--as-recorded",
            )
        self.recorded, self.changed, self.formula = dict(recorded), dict(changed or {}), formula
        self._variables = Variables.of(config)
        super().__init__(child, config, name)

    def _opening(self) -> dict[str, Any]:
        opening = {"sizes": asdict(self.config), "recorded": self.recorded, "changed": self.changed}
        return opening if self.formula is None else {**opening, "rules": sorted(self.formula.rules)}

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        answer = super()._ask(message)
        while "question" in answer:
            answer = super()._ask(self._budgets(answer["question"]))
        return answer

    def _budgets(self, state: Mapping[str, Any]) -> dict[str, int]:
        """The budgets of a call that finds `state`. UsageError if the formula cannot be computed."""
        formula, v = self.formula, self._variables
        assert formula is not None
        v.num_running, v.num_waiting = state["running"], state["waiting"]
        v.num_running_decodes, v.num_draft_slots = state["running_decodes"], state["draft_slots"]
        budgets = {"budget": formula.budget(v)}
        for rule in VLLM_TAKES:
            if rule in formula.rules:
                budgets[rule] = getattr(formula, rule)(v)
        if not state["has_drafter"]:
            _refuse_without_drafter(formula.name, budgets)
        return budgets

    @property
    def num_blocks(self) -> int:
        """KV blocks that requests can have, all together: vLLM keeps one for itself (`BlockPool.null_block`)."""
        return self.config.num_blocks - 1


def _refuse_without_drafter(name: str, budgets: Mapping[str, int]) -> None:
    """UsageError if these budgets charge each request. vLLM's loop does so only if it has a speculative method."""
    rule = "draft_slots" if budgets.get("draft_slots", 0) > 0 else "max_requests"
    if rule == "draft_slots" or budgets.get(rule, budgets["budget"]) < budgets["budget"]:
        raise UsageError(
            f"{rule} of formula {name!r} cannot be used without speculation",
            why="vLLM then counts tokens alone",
            hint="-w 'NAME: max_num_active_seqs=N' limits the running requests",
        )
