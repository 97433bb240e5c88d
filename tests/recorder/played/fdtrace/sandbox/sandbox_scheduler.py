"""A scheduler with the sandbox's surface."""

from collections import deque
from types import SimpleNamespace


class SandboxScheduler:
    def __init__(self, config):
        self.config, self.running, self.waiting, self.call = config, [], deque(), 0
        self.free = list(range(config.max_num_seqs))

    def add_request(self, request):
        self.waiting.append(request)

    def schedule(self):
        decodes = sum(r.num_output_tokens > 0 for r in self.running)
        budget = self.config.max_num_batched_tokens
        left = budget - decodes
        prefills, extended = [], []
        for r in self.running:
            if r.num_output_tokens:
                need = (r.num_computed_tokens + 8) // self.config.block_size + 1
                if need > len(r.block_table):
                    r.block_table.extend([0] * (need - len(r.block_table)))
                    extended.append(r)
        while self.waiting and self.free and left > 0:
            r = self.waiting.popleft()
            r.slot = self.free.pop(0)
            self.running.append(r)
        for r in self.running:
            target = r.num_prompt_tokens
            if r.num_computed_tokens < target and left > 0:
                n = min(left, target - r.num_computed_tokens)
                r.block_table = [0] * ((r.num_computed_tokens + n) // self.config.block_size + 2)
                prefills.append((r, r.num_computed_tokens, r.num_computed_tokens + n))
                left -= n
        self.call += 1
        return SimpleNamespace(
            call=self.call,
            token_budget=budget,
            num_scheduled_tokens=budget - left,
            num_running_decodes=decodes,
            prefills=prefills,
            extended=extended,
            preempted=[],
            aborted=[],
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_free_blocks=1000,
            num_blocks=2000,
            not_admitted="slots" if self.waiting else None,
            num_missing_blocks=None,
        )

    def finish_request(self, request, reason):
        self.running.remove(request)
        self.free.append(request.slot)
        request.slot = -1

    def abort_request(self, request):
        pass
