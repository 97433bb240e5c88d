"""The requests of every step as arrays, and the features of a batch that its duration depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH_FEATURES = ("prefill_tokens", "prefills", "decode_tokens", "kv_tokens", "prefill_attention")
"""What a step's duration may depend on in its batch, in this order: prefill tokens, requests with a prefill, decode
tokens, KV tokens that are read (computed before), and for the chunks the sum of tokens times the tokens that each of
them reads.
"""
FEATURES = (*BATCH_FEATURES, "new_shape")
"""The same, and 1 if no earlier step of the engine ran as many tokens, else 0.

The tokens of a step are the rows of its matrix products. Libraries prepare a kernel when a number of rows comes for the
first time, and keep it: oneDNN on a CPU (vLLM's `create_onednn_mm_handler` keeps them by number of rows).
"""


@dataclass(frozen=True, eq=False)
class BatchRowColumns:
    """A row a request and step, ascending by step; arrays of one entry a row."""

    step: NDArray[np.int64]
    """The entry of the step in its history, from 0."""
    request: NDArray[np.int64]
    """The entry of the request in its recording or workload."""
    prefill: NDArray[np.bool_]
    num_tokens: NDArray[np.int64]
    num_computed_tokens: NDArray[np.int64]
    num_accepted_tokens: NDArray[np.int64]

    def features(self, num_steps: int) -> NDArray[np.float64]:
        """`FEATURES` of each step, a row a step. All steps before the first row are unknown."""
        tokens, computed = self.num_tokens.astype(np.float64), self.num_computed_tokens.astype(np.float64)
        prefill = self.prefill.astype(np.float64)
        parts = (
            tokens * prefill,
            prefill,
            tokens * (1 - prefill),
            computed,
            prefill * tokens * (computed + tokens / 2),
        )
        sums = [np.bincount(self.step, part, num_steps).astype(np.float64) for part in parts]
        return np.stack([*sums, _is_new_shape(sums[0] + sums[2])], axis=1)


def _is_new_shape(num_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last of `FEATURES`, from the tokens of each step."""
    is_new = np.zeros(len(num_tokens))
    is_new[np.unique(num_tokens, return_index=True)[1]] = 1.0
    return is_new * (num_tokens > 0)


class ShapesSeen:
    """The numbers of tokens that the steps of an engine had so far."""

    def __init__(self) -> None:
        self._seen = {0.0}

    def features(self, batch: Sequence[float]) -> tuple[float, ...]:
        """`FEATURES` of the next step, from its `BATCH_FEATURES`."""
        prefill, prefills, decode, kv, attention = batch
        num_tokens = prefill + decode
        is_new = num_tokens not in self._seen
        if is_new:
            self._seen.add(num_tokens)
        return prefill, prefills, decode, kv, attention, float(is_new)


def batch_features_of(rows: Sequence[Any]) -> tuple[float, ...]:
    """`BATCH_FEATURES` of one step, from its `StepRow`s."""
    prefill = prefills = decode = kv = attention = 0.0
    for row in rows:
        tokens, computed = row.num_tokens, row.num_computed_tokens
        kv += computed
        if row.kind == "prefill":
            prefill += tokens
            prefills += 1
            attention += tokens * (computed + tokens / 2)
        else:
            decode += tokens
    return prefill, prefills, decode, kv, attention
