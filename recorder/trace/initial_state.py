"""The state of an engine when its recording began, and the `found` events that say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.json_values import json_object

FOUND_EVENTS = "FROM event WHERE engine_id = $1 AND kind = 'found' AND call IS NULL"
"""Events about what was there when the recording began, of an engine that runs each step right after its call."""

MOST = 1 << 31


@dataclass(frozen=True)
class InitialRequest:
    """A request that was there when the recording began, in its state before the first recorded step."""

    request: int
    num_computed_tokens: int
    num_blocks: int
    decoding: bool
    num_total_tokens: int = MISSING
    """Its prompt and output tokens when it first decoded, with the token sampled last; MISSING: it did not decode."""
    first_step: int = MISSING
    """The first recorded step that it ran in; MISSING: in none."""
    num_output_tokens: int = MISSING
    """Its output tokens when the recording began; MISSING: this follows from its first recorded step."""
    num_prefill_tokens: int = MISSING
    """Tokens that its prefill computes, with outputs from before it was reset; MISSING: its prompt."""
    num_in_flight_tokens: int = 0
    """Of its computed tokens, those of a batch whose output was not taken in yet."""
    num_offloaded_tokens: int = 0
    """It waits, and so many of its tokens are kept on the CPU, in `num_offloaded_blocks` blocks."""
    num_offloaded_blocks: int = 0


@dataclass(frozen=True)
class StateAtStart:
    """What `found` events say. `running` and `waiting` are in the scheduler's order.

    `is_complete`: they say it of every request that was there, and of the engine. Only then the other fields mean
    something. `admits_new`: False if no waiting request is admitted before a running one ends. `cached_blocks`: salted
    hashes of the blocks that the prefix cache keeps for no request, in its order; `num_cached_blocks` is their number,
    which may be larger.
    """

    running: tuple[InitialRequest, ...] = ()
    waiting: tuple[InitialRequest, ...] = ()
    is_complete: bool = False
    admits_new: bool = True
    num_cached_blocks: int = 0
    cached_blocks: tuple[int, ...] = field(default=(), repr=False)


def found_state(rows: Iterable[tuple[int | None, int | None, str | None]]) -> StateAtStart:
    """The state in the rows of `found` events: the request, its prompt tokens, the detail. Others are skipped."""
    running: list[InitialRequest] = []
    waiting: list[InitialRequest] = []
    cached: list[int] = []
    engine: dict[str, Any] | None = None
    for request, num_prompt_tokens, text in rows:
        detail = json_object(text) or {}
        if request is None:
            if detail.get("place") == "engine":
                engine = detail
            cached += _hashes(detail.get("cached_blocks"))
            continue
        state = None if num_prompt_tokens is None else _request(request, num_prompt_tokens, detail)
        if state is not None:
            (waiting if detail.get("place") == "waiting" else running).append(state)
    if engine is None or engine.get("num_requests") != len(running) + len(waiting):
        return StateAtStart(tuple(running), tuple(waiting))
    return StateAtStart(
        tuple(running),
        tuple(waiting),
        is_complete=True,
        admits_new=engine.get("admits_new") is not False,
        num_cached_blocks=_count(engine, "num_cached_blocks") or 0,
        cached_blocks=tuple(cached),
    )


def _request(request: int, num_prompt_tokens: int, detail: dict[str, Any]) -> InitialRequest | None:
    """A decode's computed tokens include the last sampled one. None: a figure is missing."""
    names = ("num_computed_tokens", "num_blocks", "num_total_tokens")
    computed, num_blocks, total = (_count(detail, name) for name in names)
    if computed is None or num_blocks is None or total is None or num_prompt_tokens < 0:
        return None
    outputs = max(0, total - num_prompt_tokens)
    more = ("num_in_flight_tokens", "num_offloaded_tokens", "num_offloaded_blocks")
    prefill = _count(detail, "num_prefill_tokens")
    return InitialRequest(
        request,
        computed,
        num_blocks,
        decoding=outputs > 0 and computed == total,
        num_total_tokens=total,
        num_output_tokens=outputs,
        num_prefill_tokens=MISSING if prefill is None else prefill,
        **{name: _count(detail, name) or 0 for name in more},
    )


def _count(detail: dict[str, Any], name: str) -> int | None:
    value = detail.get(name)
    return value if type(value) is int and 0 <= value < MOST else None


def _hashes(value: Any) -> list[int]:
    return [number for number in value if type(number) is int] if isinstance(value, list) else []
