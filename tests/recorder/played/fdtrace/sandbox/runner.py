"""A runner with the sandbox's surface: it draws what a model would have run."""

from array import array
from collections import namedtuple

Memory = namedtuple("Memory", "allocated_bytes reserved_bytes peak_allocated_bytes peak_reserved_bytes")


class ModelRunner:
    def __init__(self, config, rng):
        self.config, self.rng, self.step = config, rng, -1
        self.seq_lens_this_time = array("i", [0] * config.max_num_seqs)
        self.accept_num = array("i", [0] * config.max_num_seqs)
        self.stalled, self.memory = [], None

    def execute_model(self, scheduled, running):
        tokens, emitted = self.seq_lens_this_time, self.accept_num
        for slot in range(len(tokens)):
            tokens[slot] = emitted[slot] = 0
        for r, start, end in scheduled.prefills:
            tokens[r.slot] = end - start
            emitted[r.slot] = 1
        k = self.config.num_speculative_tokens
        for r in running:
            if r.num_output_tokens:
                tokens[r.slot] = 1 + k
                emitted[r.slot] = 1 + self.rng.randint(0, k)
        if not any(tokens):
            return False
        self.step += 1
        peak = sum(tokens) * 1000
        self.memory = Memory(peak // 2, peak, peak // 2, peak)
        return True
