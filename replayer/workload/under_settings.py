"""The recorded requests for an engine with other settings: what changes in them.

Most settings change nothing in a request. Three settings do: K (how many drafts would have been accepted), the block
size (what its blocks hold), and a shorter `max_model_len` (whether it is served at all, and where it ends).
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import EngineInfo
from fdtrace.replayer.config import SchedulerConfig, is_modelled
from fdtrace.replayer.workload.engine_settings import Settings, changed_config
from fdtrace.replayer.workload.workload import BlockKey, Workload, WorkRequest, compact

AcceptanceKind = Literal["drawn", "recorded"]
"""With a larger K, how many of the unrecorded drafts count as accepted: drawn from the request's own acceptances, or
none.
"""


@dataclass(frozen=True)
class ChangedSettings:
    """The settings of a replay that differ from the recorded ones."""

    values: Settings = field(default_factory=dict)
    """By the engine's own names, as `read_settings` gives them."""
    acceptances: AcceptanceKind = "drawn"

    def __bool__(self) -> bool:
        return bool(self.values)


UNCHANGED = ChangedSettings()


def workload_under(workload: Workload, engine: EngineInfo, changed: ChangedSettings) -> Workload:
    """The recorded workload on an engine with changed settings; its notes say what is modelled.

    Raises:
        UsageError: the recording does not say what would have happened.
    """
    if not changed:
        return workload
    if changed.values.get("policy") == "priority" and any(r.priority is None for r in workload.requests):
        raise UsageError(
            "policy=priority cannot be replayed", why="the priorities of requests are not recorded"
        )
    before = workload.config
    config = changed_config(before, engine, changed.values)
    requests, notes = list(workload.requests), list(workload.notes)
    requests, num_rejected = _within(requests, before, config, modelled=is_modelled(engine))
    if num_rejected:
        notes.append(
            f"{num_rejected} requests are rejected: with their output they are longer than max_model_len "
            f"{config.max_model_len}"
        )
    if config.num_draft_tokens != before.num_draft_tokens:
        drafts = _Drafts(before.num_draft_tokens, config.num_draft_tokens, changed.acceptances)
        requests = [drafts.request(request) for request in requests]
        notes.append(drafts.note)
    cached = workload.cached
    if config.block_size != before.block_size or not config.prefix_caching:
        requests = [_with_blocks(request, before, config) for request in requests]
        cached = _chains(cached, before, config) if config.prefix_caching else ()
    if config.num_blocks == before.num_blocks and "max_num_batched_tokens" in changed.values:
        notes.append(
            f"the KV blocks stay {config.num_blocks}: a start-up that profiles memory may leave others"
        )
    return replace(
        workload,
        config=config,
        requests=tuple(requests),
        cached=cached,
        notes=tuple(notes),
        num_rejected=num_rejected,
    )


def _changed(request: WorkRequest, **changes: Any) -> WorkRequest:
    """The request with changes. They also apply to its state at the begin of the recording."""
    new = request._replace(**changes)
    if "accepts" in changes:
        new = new._replace(sums=None)
    if new.resumed is None:
        return new
    return new._replace(resumed=replace(new.resumed, arrived=new.arrived()))


# A shorter max_model_len ------------------------------------------------------------------------------------


def _within(
    requests: Sequence[WorkRequest], before: SchedulerConfig, config: SchedulerConfig, *, modelled: bool
) -> tuple[list[WorkRequest], int]:
    """The requests that are served, each cut at max_model_len; and how many are not served.

    FastDeploy answers 400 to a prompt that leaves no room for two tokens (`EngineClient.add_requests`). vLLM answers
    400 if prompt and max_tokens together are longer (`entrypoints/openai`, `_validate_input`).
    """
    max_model_len = config.max_model_len
    if max_model_len >= before.max_model_len:
        return list(requests), 0
    served = []
    for request in requests:
        max_output = request.num_output_tokens if request.max_tokens is None else request.max_tokens
        if request.num_prompt_tokens + (2 if modelled else max_output) > max_model_len:
            continue
        room = max_model_len - request.num_prompt_tokens
        target = request.target
        output, target = min(request.num_output_tokens, room), None if target is None else min(target, room)
        served.append(_changed(request, num_output_tokens=output, target=target))
    return served, len(requests) - len(served)


# Another number of drafts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drafts:
    """What a request's forwards accept with `now` drafts, if they were recorded with `before` drafts.

    With fewer drafts, a forward accepts at most so many. With more drafts, a forward that accepted all its recorded
    drafts may accept further ones, position by position. The probability is the share of this request's forwards that
    accepted the last recorded position, among those that had accepted all positions before it. Each draw depends on the
    request's id, the forward and the position alone: it is the same in every variant.
    """

    before: int
    now: int
    how: AcceptanceKind

    @property
    def note(self) -> str:
        """What a result rests on, for the notes of the workload."""
        if self.now <= self.before:
            return (
                f"modelled: of the {self.before} recorded drafts a forward accepts the first {self.now} at most; "
                "beyond the recorded forwards as in the last"
            )
        if self.how == "recorded":
            return f"modelled: of {self.now} drafts a forward accepts what was recorded of {self.before}, none beyond"
        return (
            f"modelled: drafts beyond the recorded {self.before} are accepted as often as the request itself "
            "accepted its last recorded position (drawn position by position, the same draws in every variant)"
        )

    def request(self, request: WorkRequest) -> WorkRequest:
        """The request with these acceptances."""
        accepts = np.asarray(request.accepts, dtype=np.int64)
        verified = None if request.drafts is None else np.asarray(request.drafts, dtype=np.int64)
        all_verified = (
            np.ones(len(accepts), bool)
            if verified is None
            else (verified >= self.before) | (verified == MISSING)
        )
        drafts = None
        if verified is not None:
            drafts = np.minimum(verified, self.now)
            if self.now > self.before:
                drafts[all_verified & (verified != MISSING)] = self.now
        accepted = accepts if self.now > self.before else np.minimum(accepts, self.now)
        if self.now > self.before and self.how == "drawn":
            accepted = accepts + self._more(request.request_id, accepts, all_verified)
        if not self.now:
            drafts = None
        return _changed(request, accepts=compact(accepted), drafts=drafts)

    def _more(
        self, request_id: str, accepts: NDArray[np.int64], all_verified: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        more = np.zeros(len(accepts), np.int64)
        num_reached = int((all_verified & (accepts >= self.before - 1)).sum())
        if not num_reached:
            return more
        share = float((all_verified & (accepts >= self.before)).sum()) / num_reached
        for forward in np.flatnonzero(all_verified & (accepts >= self.before)).tolist():
            while (
                more[forward] < self.now - self.before
                and _drawn(request_id, forward, int(more[forward])) < share
            ):
                more[forward] += 1
        return more


def _drawn(request_id: str, forward: int, position: int) -> float:
    """A number from 0 up to 1 (exclusive), always the same for the same arguments."""
    text = f"{request_id}\0{forward}\0{position}".encode(errors="surrogatepass")
    return zlib.crc32(text) / 2**32


# Other blocks -----------------------------------------------------------------------------------------------


def _with_blocks(request: WorkRequest, before: SchedulerConfig, config: SchedulerConfig) -> WorkRequest:
    if not config.prefix_caching and request.block_key is None and config.block_size == before.block_size:
        return request
    if not config.prefix_caching:
        key: BlockKey | None = None
    elif request.block_key is None:
        return request
    else:
        key = _joined(request.block_key, _times(before, config))
    new = _changed(request, block_key=key)
    if new.resumed is None:
        return new
    num_blocks = -(-new.resumed.num_blocks * before.block_size // config.block_size)
    return new._replace(resumed=replace(new.resumed, num_blocks=num_blocks))


def _times(before: SchedulerConfig, config: SchedulerConfig) -> int:
    """How many recorded blocks one new block holds."""
    if config.block_size % before.block_size:
        raise UsageError(
            f"a block_size of {config.block_size} cannot be replayed with prefix caching",
            why=f"common prefixes of prompts are recorded in blocks of {before.block_size} tokens",
            hint="a multiple of it, or enable_prefix_caching=false",
        )
    return config.block_size // before.block_size


def _joined(key: BlockKey, times: int) -> BlockKey:
    def joined(block: int) -> Hashable:
        return tuple(key(block * times + i) for i in range(times))

    return key if times == 1 else joined


def _chains(
    cached: Sequence[tuple[Hashable, ...]], before: SchedulerConfig, config: SchedulerConfig
) -> tuple[tuple[Any, ...], ...]:
    times = _times(before, config)
    if times == 1:
        return tuple(cached)
    whole = (len(chain) // times for chain in cached)
    return tuple(
        tuple(tuple(chain[i * times : (i + 1) * times]) for i in range(count))
        for chain, count in zip(cached, whole, strict=True)
        if count
    )
