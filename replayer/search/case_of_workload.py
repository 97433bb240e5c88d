"""A workload as a case, where it did not come from one: the requests of a recording, to be searched or shrunk."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.search.draw_case import NEVER, SearchCase, tidy
from fdtrace.replayer.workload.workload import Workload, WorkRequest

DEFAULT_THRESHOLD = SchedulerConfig(1, 1, 1).prealloc_threshold


def as_case(workload: Workload) -> tuple[SearchCase, list[str]]:
    """The case, and what of the workload a case cannot say.

    Requests that ran before the recording began arrive before its first step, with the output that they had as part
    of their prompt. Requests that shared a prefix share as many tokens as all of them.
    """
    if workload.case is not None:
        return dict(workload.case), []
    config, notes = workload.config, []
    case = sizes_of(config)
    if config.output_caching or config.keeps_aborted_slots:
        notes.append("a case does not say that outputs are cached, or that aborted requests keep their slots")
    if any(request.resumed is not None for request in workload.requests):
        notes.append("requests that ran before the recording are prefilled anew, before its first step")
    if config.role != "mixed":
        case["role"] = config.role
    groups: dict[Hashable, int] = {}
    if config.prefix_caching:
        case["shared_tokens"], groups = _shared(workload)
        notes.append(
            f"prompts with the same beginning share {case['shared_tokens']} tokens, not as many as recorded"
        )
    case["requests"] = [_request(request, config, groups) for request in workload.requests]
    return tidy(case), notes


def sizes_of(config: SchedulerConfig) -> SearchCase:
    """The case of these sizes, without requests."""
    case: SearchCase = {
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "block_size": config.block_size,
        "max_model_len": config.max_model_len,
        "num_blocks": config.num_blocks,
        "num_speculative_tokens": config.num_draft_tokens,
        "prefix_caching": config.prefix_caching,
        "env": config.env(),
        "requests": [],
    }
    if config.spec_method not in (None, "mtp"):
        case["spec_method"] = config.spec_method
    if config.prealloc_threshold != DEFAULT_THRESHOLD:
        case["prealloc_dec_block_slot_num_threshold"] = config.prealloc_threshold
    return case


def _request(request: WorkRequest, config: SchedulerConfig, groups: dict[Hashable, int]) -> dict[str, Any]:
    made = forwards = 0
    if request.resumed is not None:
        made, forwards = request.resumed.num_emitted_tokens, request.resumed.num_forwards
    output = max(1, request.num_output_tokens - made)
    found: dict[str, Any] = {
        "id": request.request_id,
        "arrival": request.arrival,
        "prompt": request.num_prompt_tokens + made,
        "output": output,
        "accepts": [int(accepted) for accepted in request.accepts[forwards:]],
    }
    if request.max_tokens is not None and request.max_tokens - made > output:
        found["max_tokens"] = request.max_tokens - made
    if request.abort_after is not None:
        found["abort_after"] = request.abort_after
    if request.block_key is not None and groups:
        found["group"] = groups.get(request.block_key(0))
    if config.role != "mixed":
        found |= {"join_after": min(request.join_after, NEVER), "discarded": request.discarded}
        found["send_after"] = request.send_after
    return found


def _shared(workload: Workload) -> tuple[int, dict[Hashable, int]]:
    """Tokens that the requests of one group share, and the first block's key -> its group."""
    size = workload.config.block_size
    chains: dict[Hashable, list[list[Hashable]]] = {}
    for request in workload.requests:
        if request.block_key is not None and request.num_prompt_tokens >= size:
            keys = [request.block_key(i) for i in range(request.num_prompt_tokens // size)]
            chains.setdefault(keys[0], []).append(keys)
    lengths: list[int] = []
    groups: dict[Hashable, int] = {}
    for key, members in chains.items():
        if len(members) > 1:
            groups[key] = len(groups)
            lengths.append(_common(members))
    return size * min(lengths, default=0), groups


def _common(members: list[list[Hashable]]) -> int:
    shortest = min(map(len, members))
    return next((i for i in range(shortest) if len({keys[i] for keys in members}) > 1), shortest)
