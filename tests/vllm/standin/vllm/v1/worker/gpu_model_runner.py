"""A model runner that computes nothing: it accepts drafts by a rule, and pads to a multiple of eight."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from vllm.v1.core.sched.output import ModelRunnerOutput, SchedulerOutput
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer


class GPUModelRunner:
    def __init__(self, rank: int = 0, fail_at: int = 0, slots: int = 0, budget: int = 0) -> None:
        self.parallel_config = SimpleNamespace(rank=rank)
        self.device = SimpleNamespace(type="cpu")
        self.fail_at, self.forwards = fail_at, 0
        self.rng = random.Random(5)
        self.state: SchedulerOutput | None = None
        self.drafter = SpecDecodeBaseProposer(slots, budget) if slots else None

    def _determine_batch_execution_and_padding(self, num_tokens: int) -> tuple[str, Any]:
        return "FULL", SimpleNamespace(num_tokens=-(-num_tokens // 8) * 8)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        if not scheduler_output.total_num_scheduled_tokens:
            return ModelRunnerOutput([], [])
        self.forwards += 1
        self._determine_batch_execution_and_padding(scheduler_output.total_num_scheduled_tokens)
        if self.forwards == self.fail_at:
            raise RuntimeError("out of memory")
        self.state = scheduler_output
        return None

    def sample_tokens(self, grammar_output: Any) -> ModelRunnerOutput:
        output, self.state = self.state, None
        assert output is not None
        made = []
        for name in output.num_scheduled_tokens:
            drafts = len(output.scheduled_spec_decode_tokens.get(name, ()))
            made.append([7] * (1 + self.rng.randint(0, drafts)))
        if self.drafter is not None:
            self.drafter.propose(output.total_num_scheduled_tokens, len(made))
        return ModelRunnerOutput(list(output.num_scheduled_tokens), made)
