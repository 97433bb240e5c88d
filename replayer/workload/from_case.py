"""A workload from a case: the JSON format that `fdtrace simulate` reads. It is read strictly.

Everything wrong is refused, with its place (`requests[3].prompt`) and what to do. A key that nobody reads is refused
too: it is a typo, and without it the result would be that of another workload.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import SchedulerConfig, parse_role
from fdtrace.replayer.workload.case_fields import Fields, as_json, refuse_unknown_keys
from fdtrace.replayer.workload.case_variables import LARGEST, read_variables, variables_not_modelled
from fdtrace.replayer.workload.hash_prefix import hashed_key, read_hash_ids
from fdtrace.replayer.workload.workload import BlockKey, Workload, WorkRequest

SIZE_KEYS = (
    *("max_num_batched_tokens", "max_num_seqs", "num_blocks", "block_size", "max_model_len"),
    *("num_speculative_tokens", "spec_method", "prefix_caching", "shared_tokens", "role", "env", "max_steps"),
    *("prealloc_dec_block_slot_num_threshold", "hash_block_size", "notes", "requests"),
)
LAB_KEYS = (
    *("worker", "wait_for_preprocess", "step_s", "seed", "prompts", "outputs", "accept", "prefix_groups"),
    *("abort", "backlog", "gap", "max_gap", "rate", "num_requests"),
)
"""Keys of the lab's cases that say where a simulated forward runs, or how requests are drawn. They have no effect here:
the requests are given, and forwards are in lockstep.
"""
REQUEST_KEYS = (
    *("id", "arrival", "prompt", "output", "accepts", "max_tokens", "abort_after", "group"),
    *("join_after", "discarded", "send_after", "hash_ids"),
)

LEAST_STEPS, STEPS_A_TOKEN = 20_000, 2
"""The limit of steps if a case sets none: the step of the last arrival (or abort, or joining), plus `LEAST_STEPS`, plus
`STEPS_A_TOKEN` for each token. A step with progress makes at least one token, and a replay without progress hangs.
"""


def workload_from_case(case: Any, *, max_steps: int | None = None) -> Workload:
    """The workload that a case describes.

    Args:
        case: what was read from JSON.
        max_steps: the limit of steps, in place of the case's.

    Returns:
        The workload: requests in order of arrival; `notes` say what is not taken from the case as it is.

    Raises:
        UsageError: it is no case. The error names the place, and what to write instead.
    """
    if not isinstance(case, Mapping):
        raise UsageError(
            "a workload is a JSON object",
            why=f"this is {as_json(case)}",
            hint='{"max_num_batched_tokens": 1024, "max_num_seqs": 64, "num_blocks": 900, "requests": [...]}',
        )
    refuse_unknown_keys(case, (*SIZE_KEYS, *LAB_KEYS), REQUEST_KEYS)
    fields = Fields(case)
    config = _config(fields)
    requests = case.get("requests")
    if not isinstance(requests, Sequence) or isinstance(requests, str):
        raise UsageError(
            "this workload has no `requests`", hint="a list of objects with id, arrival, prompt, output"
        )
    shared, hashed_size = fields.whole("shared_tokens", 0), fields.whole("hash_block_size", 512, least=1)
    notes = [*fields.notes("notes"), *variables_not_modelled(fields.mapping("env"))]
    read_requests = [
        _request(i, Fields(spec, f"requests[{i}]"), config, (shared, hashed_size), notes)
        for i, spec in enumerate(requests)
    ]
    _refuse_equal_ids(read_requests)
    read_requests.sort(key=lambda request: request.arrival)
    own_limit = fields.whole("max_steps", None, least=1) if case.get("max_steps") is not None else None
    return Workload(
        config,
        tuple(read_requests),
        max_steps=max_steps or own_limit or steps_limit(read_requests),
        shared_tokens=shared,
        case=case,
        runs_to_limit=own_limit is not None and max_steps is None,
        notes=tuple(notes),
    )


def steps_limit(requests: Sequence[WorkRequest]) -> int:
    """The number of steps in which these requests end unless they hang. It grows with their tokens."""
    last_event = max(
        (r.arrival + (r.abort_after or 0) + r.join_after + r.send_after for r in requests), default=0
    )
    tokens = sum(r.num_prompt_tokens + r.num_output_tokens for r in requests)
    return last_event + LEAST_STEPS + STEPS_A_TOKEN * tokens


def _config(fields: Fields) -> SchedulerConfig:
    role = parse_role(fields.text("role", "mixed"))
    drafts = fields.whole("num_speculative_tokens", 0)
    method = fields.text("spec_method", "mtp") if drafts else None
    if role == "prefill" and method == "mtp":
        drafts = 1  # FastDeploy's `FDConfig.postprocess` (config.py): a prefill instance drafts one token
    config = SchedulerConfig(
        max_num_batched_tokens=fields.whole("max_num_batched_tokens", None),
        max_num_seqs=fields.whole("max_num_seqs", None),
        num_blocks=fields.whole("num_blocks", None),
        block_size=fields.whole("block_size", 64),
        max_model_len=fields.whole("max_model_len", 32768),
        num_speculative_tokens=drafts or 1,
        spec_method=method,
        prefix_caching=fields.flag("prefix_caching", False),
        role=role,
        prealloc_threshold=fields.whole("prealloc_dec_block_slot_num_threshold", 12),
    )
    if config.block_size > config.max_model_len:
        raise UsageError(
            f"`block_size` is {config.block_size}, and `max_model_len` is {config.max_model_len}",
            why="a sequence could hold no block",
            hint="a block_size of max_model_len tokens at most",
        )
    return config.with_env(read_variables(fields.mapping("env")))


def _request(
    i: int, fields: Fields, config: SchedulerConfig, prefixes: tuple[int, int], notes: list[str]
) -> WorkRequest:
    """`prefixes`: the case's shared tokens, and its tokens of a hashed block."""
    group = fields.whole("group", None) if fields.has("group") else None
    output = fields.whole("output", None, least=1)
    request = WorkRequest(
        request_id=fields.name("id", f"r{i}"),
        arrival=fields.whole("arrival", 0),
        num_prompt_tokens=fields.whole("prompt", None, least=1),
        num_output_tokens=output,
        accepts=fields.wholes("accepts"),
        max_tokens=fields.whole("max_tokens", None) if fields.has("max_tokens") else None,
        abort_after=fields.whole("abort_after", None) if fields.has("abort_after") else None,
        group=group,
        join_after=fields.whole("join_after", 0),
        discarded=fields.flag("discarded", False),
        send_after=fields.whole("send_after", 0),
    )
    request = _within_model_len(request, fields, config, notes)
    _check(request, fields, config)
    hash_ids = read_hash_ids(fields.value("hash_ids"), fields.place("hash_ids"))
    if config.prefix_caching:
        shared_tokens, hashed_size = prefixes
        shared = min(request.num_prompt_tokens, shared_tokens) if group is not None else 0
        key = _case_key(request, shared, config.block_size)
        if hash_ids:
            prompt = request.num_prompt_tokens
            key = hashed_key(request.request_id, prompt, hash_ids, hashed_size, config.block_size)
        request = request._replace(block_key=key)
    return request


def _within_model_len(
    request: WorkRequest, fields: Fields, config: SchedulerConfig, notes: list[str]
) -> WorkRequest:
    """The request as an engine admits it.

    A server answers 400 to a prompt that leaves no room for output, and ends a sequence at max_model_len. FastDeploy:
    `EngineClient.add_requests` (entrypoints/engine_client.py) and `LLMEngine.add_requests` (engine/engine.py). vLLM:
    `Processor` (v1/engine), and `check_stop` (v1/core/sched/utils.py).
    """
    room = config.max_model_len - request.num_prompt_tokens
    if room < 1:
        raise UsageError(
            f"`{fields.place('prompt')}` is {request.num_prompt_tokens}, and `max_model_len` is "
            f"{config.max_model_len}",
            why="an engine refuses a prompt that leaves no room for a token of output: it answers 400",
            hint=f"a prompt of {config.max_model_len - 1} tokens at most, or a larger max_model_len",
        )
    if request.max_tokens is not None and request.max_tokens < request.num_output_tokens:
        raise UsageError(
            f"`{fields.place('max_tokens')}` is {request.max_tokens}, and its `output` is "
            f"{request.num_output_tokens}",
            why="an engine ends a request with its max_tokens-th token",
            hint=f"max_tokens of {request.num_output_tokens} or more, or a smaller output",
        )
    if request.num_output_tokens <= room:
        return request
    notes.append(
        f"{fields.place('output')}: {request.request_id} ends at max_model_len, after {room} of its "
        f"{request.num_output_tokens} tokens"
    )
    return request._replace(num_output_tokens=room)


def _check(request: WorkRequest, fields: Fields, config: SchedulerConfig) -> None:
    max_accepted = config.num_draft_tokens
    if config.role != "prefill":
        for i, accepted in enumerate(request.accepts):
            if accepted > max_accepted:
                raise UsageError(
                    f"`{fields.place('accepts')}[{i}]` is {accepted}: it accepts more than the {max_accepted} "
                    "drafts of a forward",
                    hint="as many as `num_speculative_tokens` at most",
                )
    if config.role != "decode":
        return
    if request.num_output_tokens < 2:
        raise UsageError(
            f"`{fields.place('output')}` must be at least 2 in the decode role",
            why="the prefill instance makes the first token",
            hint="2 tokens or more, and a prompt that leaves room for them",
        )
    if request.accepts and request.accepts[0] > 1:
        raise UsageError(
            f"`{fields.place('accepts')}[0]` is {request.accepts[0]}: it accepts more than the 1 draft of its first "
            "forward",
            why="a request comes to a decode instance with one draft token",
            hint="0 or 1",
        )


def _refuse_equal_ids(requests: Sequence[WorkRequest]) -> None:
    places: dict[str, int] = {}
    for i, request in enumerate(requests):
        first = places.setdefault(request.request_id, i)
        if first != i:
            raise UsageError(
                "two requests of this workload have the same `id`",
                why=f"requests[{first}].id and requests[{i}].id are both {as_json(request.request_id)}",
                hint="give each an id of its own; one without an id is called r and its number",
            )


def _case_key(request: WorkRequest, shared: int, size: int) -> BlockKey:
    """In a case, a group's shared tokens are one token repeated, the rest of a prompt another, all output a third."""
    prompt = request.num_prompt_tokens
    own = 2000 + zlib.crc32(request.request_id.encode(errors="surrogatepass")) % 50000
    runs = ((0, shared, 1000 + (request.group or 0)), (shared, prompt, own), (prompt, LARGEST * LARGEST, 9))

    def key(i: int) -> Hashable:
        first, end = i * size, (i + 1) * size
        parts = ((value, min(stop, end) - max(start, first)) for start, stop, value in runs)
        return tuple(part for part in parts if part[1] > 0)

    return key
