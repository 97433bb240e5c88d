"""vLLM's real scheduler behind the interface of the replayer's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fdtrace.drivers.child import Child
from fdtrace.drivers.row_scheduler import RowDrivenScheduler
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import SchedulerConfig


class DrivenVllm(RowDrivenScheduler):
    """The scheduler of a vLLM package. A decode runs the drafts that it has, or waits: each step has rows."""

    engine = "vllm"
    needs = "vLLM, or with --scheduler vllm=DIR its requirements"

    def __init__(
        self,
        child: Child,
        config: SchedulerConfig,
        name: str,
        recorded: Mapping[str, Any],
        changed: Mapping[str, Any] | None = None,
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
        self.recorded, self.changed = dict(recorded), dict(changed or {})
        super().__init__(child, config, name)

    def _opening(self) -> dict[str, Any]:
        return {"sizes": asdict(self.config), "recorded": self.recorded, "changed": self.changed}

    @property
    def num_blocks(self) -> int:
        """KV blocks that requests can have, all together: vLLM keeps one for itself (`BlockPool.null_block`)."""
        return self.config.num_blocks - 1
