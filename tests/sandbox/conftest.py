"""One Paddle for the session (its import takes seconds), and a small model that every test of it shares.

The modules of these tests are one xdist group, so that one worker alone imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fdtrace.sandbox import framework
from fdtrace.sandbox.batch import Batch, BatchRow
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.kv_cache import PagedKVCache
from fdtrace.sandbox.model import Transformer


@pytest.fixture(scope="session")
def paddle() -> Any:
    pytest.importorskip("paddle", reason="the sandbox engine needs Paddle: pip install 'fdtrace[sandbox]'")
    return framework.load("cpu")


@pytest.fixture(scope="session")
def config() -> EngineConfig:
    return EngineConfig(
        max_num_batched_tokens=64, max_num_seqs=4, block_size=8, num_blocks=96, max_model_len=160
    )


@pytest.fixture(scope="session")
def greedy(paddle: Any, config: EngineConfig) -> Callable[[Any, int], list[int]]:
    """Greedy continuation by the plainest way: the whole sequence again for each token."""
    model, cache = Transformer(paddle, config), PagedKVCache(paddle, config)

    def continue_(prompt: Any, num_tokens: int) -> list[int]:
        tokens = [int(token) for token in prompt]
        for _ in range(num_tokens):
            row = BatchRow(np.array(tokens, dtype=np.int32), 0, range(config.num_blocks), num_logits=1)
            tokens.append(int(model.forward(Batch.pack([row], config.block_size), cache)[0]))
        return tokens[len(prompt) :]

    return continue_
