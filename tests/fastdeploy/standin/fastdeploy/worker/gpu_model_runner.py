"""A model runner with the surface of FastDeploy's: it plays the forward, from the tasks alone."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np


class Tensor:
    """What fdtrace may ask of a tensor on the host."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def numpy(self) -> Any:
        return self.values


class GPUModelRunner:
    def __init__(self, config: Any, rank: int = 0) -> None:
        self.fd_config, seqs = config, config.scheduler_config.max_num_seqs
        self.parallel_config = SimpleNamespace(tensor_parallel_rank=rank)
        self.share_inputs = {
            "seq_lens_this_time_cpu": Tensor(np.zeros((seqs, 1), np.int32)),
            "accept_num_cpu": Tensor(np.zeros(seqs, np.int32)),
            "is_block_step_cpu": Tensor(np.zeros(seqs, bool)),
        }
        self.speculative_decoding = config.speculative_config.method is not None
        self.enable_overlap_schedule = config.overlap
        self.current_launch_token_num = 0
        self.slots: dict[int, SimpleNamespace] = {}
        self.rng = random.Random(11)
        self.plan: dict[int, list[Any]] = {}
        self.last: list[Any] | None = None
        self.saved: list[Any] = []
        self.fail_at = config.fail_at
        self.forwards = 0
        self.role = config.scheduler_config.splitwise_role

    def insert_tasks_v1(self, req_dicts: Any, num_running_requests: int | None = None) -> None:
        for task in req_dicts:
            if task.task_type.name == "PREFILL":
                self.slots[task.idx] = SimpleNamespace(
                    id=task.request_id, start=task.prefill_start_index, end=task.prefill_end_index,
                    need=task.need_prefill_tokens, computed=task.prefill_start_index, blocks=len(task.block_tables),
                    left=task.sampling_params.max_tokens - len(task.output_token_ids), first=self.role == "decode",
                )  # fmt: skip
                if self.role == "decode":  # its one token is the first of its decodes
                    self.slots[task.idx].computed = task.prefill_end_index
            elif task.task_type.name == "DECODE" and task.idx in self.slots:
                self.slots[task.idx].blocks = len(task.block_tables)
            elif task.task_type.name != "DECODE":
                self.slots.pop(task.idx, None)

    def _preprocess(self) -> None:
        """Row by slot: [request, kind, tokens, tokens computed before, tokens emitted]."""
        drafts = self.fd_config.speculative_config.num_speculative_tokens if self.speculative_decoding else 0
        size = self.fd_config.cache_config.block_size
        stalled = self.share_inputs["is_block_step_cpu"].values
        stalled[:] = False
        self.plan = {}
        for slot, one in self.slots.items():
            if one.computed < one.need:
                if one.computed < one.end:
                    self.plan[slot] = [
                        one.id,
                        "prefill",
                        one.end - one.computed,
                        one.computed,
                        one.end >= one.need,
                    ]
            elif (one.computed - 1 + drafts) // size >= one.blocks:
                stalled[slot] = True
            else:
                verified, one.first = min(drafts, 1) if one.first else drafts, False
                emitted = min(1 + self.rng.randint(0, verified), one.left)
                self.plan[slot] = [one.id, "decode", 1 + verified, one.computed, emitted]
        lengths = self.share_inputs["seq_lens_this_time_cpu"].values
        lengths[:] = 0
        for slot, row in self.plan.items():
            lengths[slot] = row[2]
        self.current_launch_token_num = int(lengths.sum())

    def _execute(self) -> None:
        self.forwards += bool(self.plan)
        if self.plan and self.forwards == self.fail_at:
            raise MemoryError("out of memory")

    def _postprocess(self) -> None:
        accepted = self.share_inputs["accept_num_cpu"].values
        accepted[:] = 0
        for slot, (_, kind, tokens, _, emitted) in self.plan.items():
            one = self.slots[slot]
            accepted[slot] = emitted if kind == "decode" else 1
            one.computed += tokens + emitted if kind == "prefill" else emitted
            one.left -= emitted
            if one.left == 0 or (self.role == "prefill" and emitted):
                del self.slots[slot]

    def _save_model_output(self, output: list[Any]) -> None:
        self.saved += output

    def execute_model(self, model_forward_batch: Any = None, num_running_requests: int | None = None) -> None:
        self.saved = []
        self._preprocess()
        self._execute()
        if self.enable_overlap_schedule and self.last is not None:
            self._save_model_output(self.last)
            self.last = None
        self._postprocess()
        output = [[row[0], int(row[4])] for row in self.plan.values() if row[4]]
        if self.enable_overlap_schedule:
            self.last = output if self.plan else None
        elif self.plan:
            self._save_model_output(output)
