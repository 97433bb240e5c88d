"""Which decodes did not run because their block table was too short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fdtrace.recorder.collector.columns import Forwards


def limits(engine: Mapping[str, Any]) -> tuple[int, int]:
    """Drafts a decode and tokens a block, of an engine's frame; 0 tokens a block where no decode can stall, or where
    they are not known.
    """
    if engine.get("stalls") is False:
        return 0, 0
    drafts = engine.get("num_speculative_tokens") or 0 if engine.get("spec_method") else 0
    return drafts, engine.get("block_size") or 0


def deduced(
    forwards: Forwards,
    steps: Any,
    limits: tuple[int, int],
    spans: dict[int, tuple[int, int]],
    done: Callable[[int, int], bool],
) -> dict[int, set[int]]:
    """Rows by forward that held a decode, ran nothing, and whose block table ends before the next forward's tokens.

    The rule is that of FastDeploy's `is_block_step`: a forward may write up to token index `num_total_tokens - 1 + K`.
    `limits` are K and the tokens a block; `spans` say of each request the tokens to prefill and those at which it ends;
    `done(request, step)` whether it had run its last step.
    """
    drafts, block_size = limits
    stalled: dict[int, set[int]] = {}
    if not block_size:
        return stalled
    where = forwards.idle()
    short = (where[3] - 1 + drafts) // block_size >= where[4]
    for index, row, number, computed, blocks in np.stack(where, 1)[short].tolist():
        need, stop = spans.get(number, (0, 0))
        if blocks and computed > need and not computed >= stop > 0 and not done(number, int(steps[index])):
            stalled.setdefault(index, set()).add(row)
    return stalled
