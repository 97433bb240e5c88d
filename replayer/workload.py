"""What is to be scheduled: requests with their arrivals and acceptances, from a case or from a recording."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.clock import BY_STEPS, Clock
from fdtrace.replayer.config import SchedulerConfig, parse_role
from fdtrace.replayer.events import Accepts, Arrived, Resumed
from fdtrace.replayer.request import MOST_ACCEPTED

BlockKey = Callable[[int], Hashable]


def compact(accepts: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Accepted drafts a byte each, where they fit."""
    return accepts.astype(np.uint8) if not len(accepts) or accepts.max() <= MOST_ACCEPTED else accepts


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """One request of a workload; sizes in tokens.

    `arrival` is the step before whose scheduling it arrives, `abort_after` counts steps from there; both are
    microseconds since the first step where the workload's clock goes by time. `accepts`
    are the drafts accepted in its 1st, 2nd, … decode forward. `block_key(i)` stands for the content of the
    i-th block of its tokens (with prefix caching), equal for equal content.
    """

    request_id: str
    arrival: int
    num_prompt_tokens: int
    num_output_tokens: int
    accepts: Accepts = ()
    max_tokens: int | None = None
    abort_after: int | None = None
    group: int | None = None
    block_key: BlockKey | None = None
    resumed: Resumed | None = None
    """Its state, where it was running before the first step."""
    target: int | None = None
    """Output tokens that a replay waits for, where the recording ended before the request did; None: its end.
    """
    join_after: int = 0
    """In the prefill and decode roles: how long after it has its blocks it joins the running queue."""
    discarded: bool = False
    """It does not join then, but gives its blocks back: the other instance refused it or failed."""
    send_after: int = 0
    """In the prefill role: how long after its last chunk its cache is sent and its blocks are freed."""
    drafts: Accepts | None = None
    """Drafts verified in its 1st, 2nd, … decode forward, where they differ; the model verifies the same number in
    each.
    """
    vain: tuple[int, ...] = ()
    """Decode forwards, from 0, before which it was preempted: as often as it had been given drafts that none verified.
    """
    after_idle: bool = False
    """Whether the engine had nothing left to do when it came."""

    def arrived(self) -> Arrived:
        """The event of its arrival."""
        return Arrived(
            self.request_id,
            self.num_prompt_tokens,
            self.num_output_tokens if self.max_tokens is None else self.max_tokens,
            accepts=self.accepts,
            num_output_tokens=self.num_output_tokens,
            block_key=self.block_key,
            drafts=self.drafts,
            vain=self.vain,
            after_idle=self.after_idle,
        )


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival, and the scheduler that they meet."""

    config: SchedulerConfig
    requests: tuple[WorkRequest, ...]
    max_steps: int = 20000
    first_step: int = 0
    """Number of the first step."""
    expected_steps: int = 0
    """Steps of the recording."""
    clock: Clock = BY_STEPS
    shared_tokens: int = 0
    case: Mapping[str, Any] | None = None
    """The case that it was read from."""
    cached: tuple[tuple[Hashable, ...], ...] = ()
    """Chains of blocks, each as `block_key` has them, that the prefix cache held before the first step."""


def workload_from_case(case: Mapping[str, Any]) -> Workload:
    """A case in the format that `fdtrace simulate` reads; UsageError where it is none."""
    if not isinstance(case, Mapping):
        raise UsageError("a workload is a JSON object", why=f"this one is a {type(case).__name__}")
    role = parse_role(str(case.get("role", "mixed")))
    drafts = _integer(case, "num_speculative_tokens", 0)
    method = str(case.get("spec_method", "mtp")) if drafts else None
    if role == "prefill" and method == "mtp":
        drafts = 1  # FastDeploy's `FDConfig.postprocess` (config.py): a prefill instance drafts one token
    env = case.get("env") or {}
    if not isinstance(env, Mapping):
        raise UsageError("this workload's `env` is no object", hint='{"FD_ENC_DEC_BLOCK_NUM": 2}')
    config = SchedulerConfig(
        max_num_batched_tokens=_integer(case, "max_num_batched_tokens"),
        max_num_seqs=_integer(case, "max_num_seqs"),
        num_blocks=_integer(case, "num_blocks"),
        block_size=_integer(case, "block_size", 64),
        max_model_len=_integer(case, "max_model_len", 32768),
        num_speculative_tokens=drafts or 1,
        spec_method=method,
        prefix_caching=bool(case.get("prefix_caching", False)),
        role=role,
        prealloc_threshold=_integer(case, "prealloc_dec_block_slot_num_threshold", 12),
    ).with_env(env)
    requests = case.get("requests")
    if not isinstance(requests, Sequence) or isinstance(requests, str):
        raise UsageError(
            "this workload has no `requests`", hint="a list of objects with id, arrival, prompt, output"
        )
    shared = _integer(case, "shared_tokens", 0)
    read = tuple(_request(i, request, config, shared) for i, request in enumerate(requests))
    ids = {request.request_id for request in read}
    if len(ids) < len(read):
        raise UsageError("two requests of this workload have the same `id`")
    most = _integer(case, "max_steps", 20000)
    return Workload(config, read, max_steps=most, shared_tokens=shared, case=case)


def _request(i: int, spec: Any, config: SchedulerConfig, shared_tokens: int) -> WorkRequest:
    if not isinstance(spec, Mapping):
        raise UsageError(f"request {i} of this workload is no object")
    where = f"request {i} of this workload"
    accepts = spec.get("accepts", ())
    if not isinstance(accepts, Sequence) or not all(isinstance(n, int) and n >= 0 for n in accepts):
        raise UsageError(f"{where}: `accepts` must be a list of whole numbers, 0 or more")
    group = _integer(spec, "group", None, where) if spec.get("group") is not None else None
    request = WorkRequest(
        request_id=str(spec.get("id", f"r{i}")),
        arrival=_integer(spec, "arrival", 0, where),
        num_prompt_tokens=_integer(spec, "prompt", None, where),
        num_output_tokens=_integer(spec, "output", None, where),
        accepts=tuple(accepts),
        max_tokens=_integer(spec, "max_tokens", 0, where) or None,
        abort_after=_integer(spec, "abort_after", 0, where) if "abort_after" in spec else None,
        group=group,
        join_after=_integer(spec, "join_after", 0, where),
        discarded=bool(spec.get("discarded", False)),
        send_after=_integer(spec, "send_after", 0, where),
    )
    _check(request, config, where)
    if config.prefix_caching:
        shared = min(request.num_prompt_tokens, shared_tokens) if group is not None else 0
        request = replace(request, block_key=_case_key(request, shared, config.block_size))
    return request


def _check(request: WorkRequest, config: SchedulerConfig, where: str) -> None:
    if request.num_prompt_tokens < 1 or request.num_output_tokens < 1:
        raise UsageError(f"{where}: `prompt` and `output` must be at least 1")
    if config.role != "prefill" and any(n > config.num_draft_tokens for n in request.accepts):
        raise UsageError(f"{where}: it accepts more than the {config.num_draft_tokens} drafts of a forward")
    if config.role != "decode":
        return
    if request.num_output_tokens < 2:
        raise UsageError(
            f"{where}: `output` must be at least 2 in the decode role",
            why="the first token is made before it",
        )
    if request.accepts and request.accepts[0] > 1:
        raise UsageError(
            f"{where}: it accepts more than the 1 draft of its first forward",
            why="a request comes to a decode instance with one draft token",
        )


def _case_key(request: WorkRequest, shared: int, size: int) -> BlockKey:
    """A case has one token over what a group shares, one of the request's own, and one for all output."""
    prompt = request.num_prompt_tokens
    own = 2000 + zlib.crc32(request.request_id.encode()) % 50000
    runs = ((0, shared, 1000 + (request.group or 0)), (shared, prompt, own), (prompt, 1 << 62, 9))

    def key(i: int) -> Hashable:
        first, end = i * size, (i + 1) * size
        parts = ((value, min(stop, end) - max(start, first)) for start, stop, value in runs)
        return tuple(part for part in parts if part[1] > 0)

    return key


def _integer(
    spec: Mapping[str, Any], name: str, default: int | None = None, where: str = "this workload"
) -> int:
    value = spec.get(name, default)
    if value is None:
        raise UsageError(f"{where} lacks `{name}`")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{where}: `{name}` must be a whole number, not {value!r:.40}")
    return value
