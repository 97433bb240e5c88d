"""A runner with the sandbox's surface: it draws what a model would have run."""

import numpy as np

class ModelRunner:
    def __init__(self, config, rng):
        self.config, self.rng, self.step = config, rng, -1
        self.seq_lens_this_time = np.zeros(config.max_num_seqs, np.int32)
        self.accept_num = np.zeros(config.max_num_seqs, np.int32)
        self.stalled, self.memory = [], None

    def execute_model(self, scheduled, running):
        tokens, emitted = self.seq_lens_this_time, self.accept_num
        tokens[:] = 0
        emitted[:] = 0
        for r, start, end in scheduled.prefills:
            tokens[r.slot] = end - start
            emitted[r.slot] = 1
        k = self.config.num_speculative_tokens
        for r in running:
            if r.num_output_tokens:
                tokens[r.slot] = 1 + k
                emitted[r.slot] = 1 + self.rng.randint(0, k)
        if not tokens.any():
            return False
        self.step += 1
        peak = int(tokens.sum()) * 1000
        self.memory = (peak // 2, peak, peak // 2, peak)
        return True
