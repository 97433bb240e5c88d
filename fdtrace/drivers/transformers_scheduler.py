"""transformers' continuous batching behind the interface of the replayer's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fdtrace.drivers.child import DriverProcess
from fdtrace.drivers.row_scheduler import RowDrivenScheduler
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.variables import Variables


class DrivenTransformers(RowDrivenScheduler):
    """The batch processor of a transformers package. If there is a `formula`, it gives the token budget."""

    engine: str | None = "transformers"
    needs = "transformers and PyTorch, or with --scheduler transformers=DIR their requirements"

    def __init__(
        self,
        child: DriverProcess,
        config: SchedulerConfig,
        name: str,
        recorded: Mapping[str, Any],
        formula: Formula | None = None,
    ) -> None:
        """`recorded`: transformers' own sizes and switches, as `engine.config` of a recording has them.

        UsageError if the recorded configuration cannot be driven here.
        """
        if config.role != "mixed":
            raise UsageError(
                f"transformers' scheduler has no role {config.role!r}",
                why="the prefill and decode roles of a workload are FastDeploy's",
                hint="a workload without `role`, or --scheduler fastdeploy=DIR",
            )
        if len(recorded.get("groups", ())) > 1:
            raise UsageError(
                "the scheduler of a model with several groups of layers cannot be driven",
                why="how many KV blocks each kind of attention takes depends on the model, which is not recorded",
                hint="--as-recorded",
            )
        self.recorded, self.formula = dict(recorded), formula
        self._variables = Variables.of(config)
        super().__init__(child, config, name)

    def _opening(self) -> dict[str, Any]:
        return {"sizes": asdict(self.config), "recorded": self.recorded}

    def _step(self, **fields: Any) -> dict[str, Any]:
        if self.formula is None:
            return super()._step(**fields)
        state = self._ask({"arrived": self._arrived, "aborted": self._aborted, "look": True})
        aborted, self._arrived, self._aborted = self._aborted, [], []
        variables = self._variables
        variables.num_running, variables.num_waiting = state["running"], state["waiting"]
        variables.num_running_decodes = state["running_decodes"]
        self._aborted = aborted
        return super()._step(budget=self.formula.budget(variables), **fields)
