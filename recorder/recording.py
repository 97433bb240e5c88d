"""One engine's recording in memory: what `replayer` and `tui` work on. Read from a trace by `recorder.trace`.

Columns are numpy arrays in the order of the table's key. A NULL is `MISSING` (-1) in integer columns and "" in text
columns: no recorded quantity is negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = -1
"""Stands for NULL in integer columns."""


@dataclass(frozen=True)
class EngineInfo:
    """One row of `engine`; sizes in tokens, sequences and blocks as in `recorder.schema.ENGINE`. None is NULL."""

    engine_id: int
    name: str
    version: str
    max_num_batched_tokens: int
    max_num_seqs: int
    num_speculative_tokens: int
    block_size: int
    num_blocks: int
    max_model_len: int
    spec_method: str | None = None
    role: str = "mixed"
    pid: int | None = None
    dp_rank: int | None = None
    max_profiled_tokens: int | None = None
    num_max_dispatch_tokens_per_rank: int | None = None
    chunked_prefill: bool = True
    prefix_caching: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InitialRequest:
    """A request that was already running when the recording began, as its first recorded step found it."""

    request: int
    num_computed_tokens: int
    num_blocks: int
    decoding: bool
    num_total_tokens: int = MISSING
    """Its tokens when it first decoded, the one sampled last included; MISSING: it did not in this recording."""


@dataclass(frozen=True)
class HandoverSteps:
    """In the prefill and decode roles: steps by entry of `Recording.requests` (int64; MISSING: not).

    A request got its slot and blocks, joined the running queue or was discarded before the scheduling of that step;
    `last_ran` is the last one that it ran in.
    """

    preallocated: NDArray[np.int64]
    joined: NDArray[np.int64]
    discarded: NDArray[np.int64]
    last_ran: NDArray[np.int64]


@dataclass(frozen=True)
class Recording:
    """One engine's steps, requests and acceptance lengths.

    `steps` holds every numeric column of `step` (int64, `new_token_ratio` float64; one entry a step, ascending; `ts`
    in ns), `not_admitted` as an object array. `requests` holds the columns of `request` (one entry a request, by
    number; `arrived_at` and `finished_at` in ns). `accepts[accept_offsets[i]:accept_offsets[i + 1]]` are the drafts
    accepted in the 1st, 2nd, … recorded decode forward of the i-th entry of `requests`. `aborted_step` and
    `finished_step` hold, by entry of `requests`, the step at which it was aborted or finished (MISSING: not).
    `drafts` goes with `accepts`: the drafts verified in each of these forwards (MISSING: unknown). `digests` holds, by
    entry of `steps`, the `recorder.digest` of what each request ran (MISSING: not all is recorded). `queued` are those
    whose arrival was not recorded and that began, or began anew, with a later step than the first, in that order; they
    may be in `initial` too. `block_hashes` holds, by entry of `requests`, that column of it: an array, or None. `vain`
    holds, by entry of `requests`, the decode forwards (from 0, as in `accepts`) before which it sampled and was
    preempted, each as often as that happened. `handover` is None in the mixed role.
    """

    engine: EngineInfo
    steps: Mapping[str, NDArray[Any]]
    requests: Mapping[str, NDArray[Any]]
    accepts: NDArray[np.int16]
    accept_offsets: NDArray[np.int64]
    aborted_step: NDArray[np.int64]
    finished_step: NDArray[np.int64]
    initial: tuple[InitialRequest, ...] = ()
    notes: tuple[str, ...] = ()
    drafts: NDArray[np.int16] | None = None
    digests: NDArray[np.int64] | None = None
    queued: tuple[InitialRequest, ...] = ()
    block_hashes: NDArray[Any] | None = None
    vain: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    handover: HandoverSteps | None = None

    @property
    def num_steps(self) -> int:
        """Recorded steps."""
        return len(self.steps["step"])
