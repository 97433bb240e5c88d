"""Draws small workloads, in the format of a case.

Faults of a scheduler show at the edges of its sizes: a budget that the decodes just use up, a cache that just holds one
sequence, a prompt that ends with a block. So each size is drawn at or near an edge of another one, more often than
anywhere else; and sizes are small, because a fault that needs many requests mostly shows with a few, too.

FastDeploy's own checks give the edges: `workload/startup_checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fdtrace.replayer.config import Role

T = TypeVar("T")
SearchCase = dict[str, Any]
"""A case as `workload_from_case` reads it."""

NEVER = 1_000_000
"""`join_after` of a request that never joins; the case then has a limit of steps before it."""
LIMIT_WITH_NEVER = 3000

MOST_REQUESTS, MOST_SEQS = 12, 8
_PLACE = {key: i for i, key in enumerate(("id", "arrival", "prompt", "output", "accepts"))}
_ZEROS = ("join_after", "send_after", "arrival")
"""Keys of a request for which a missing one means 0."""
RESERVE = "OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL"


class RandomSource(Protocol):
    """A source of random numbers, such as `random.Random`. The same source gives the same case."""

    def random(self) -> float:
        """A number from 0 up to 1 (exclusive)."""

    def randint(self, a: int, b: int) -> int:
        """A whole number from `a` to `b`."""

    def choice(self, seq: Sequence[T], /) -> T:
        """One of several."""


@dataclass(frozen=True)
class SearchSpace:
    """What may be drawn.

    `fixed` are sizes of every case, by their keys in a case; of `env` each variable by itself. `base` is a case whose
    sizes are kept and whose requests are drawn from: a search near a recording.
    """

    role: Role = "mixed"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Any] | None = None
    variables: bool = True
    """Whether FastDeploy's environment variables may differ from their defaults."""


def drawn_case(chance: RandomSource, space: SearchSpace) -> SearchCase:
    """A case of this space. FastDeploy may refuse it: the caller checks."""
    if space.base is not None:
        return with_fixed(_like(chance, space.base), space)
    block_size = chance.choice((8, 8, 16, 16, 32, 64))
    drafts = chance.choice((0, 0, 1, 2, 3, 5))
    seqs = chance.randint(1, MOST_SEQS)
    length = block_size * chance.choice((2, 2, 3, 3, 4, 5, 6, 8, 12)) + chance.choice(
        (0, 0, 1, block_size // 2, block_size - 1)
    )
    env = drawn_variables(chance) if space.variables else {}
    case: SearchCase = {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": _budget(chance, seqs, drafts, block_size),
        "block_size": block_size,
        "max_model_len": length,
        "num_blocks": 0,
        "num_speculative_tokens": drafts,
        "role": space.role,
        "env": env,
        "requests": [],
    }
    if chance.random() < 0.2:
        case["prefix_caching"] = True
        case["shared_tokens"] = block_size * chance.randint(1, 4)
    case = with_fixed(case, space)
    if "num_blocks" not in space.fixed:
        case["num_blocks"] = _blocks(chance, case)
    case["requests"] = _requests(chance, case)
    return tidy(case)


def with_fixed(case: SearchCase, space: SearchSpace) -> SearchCase:
    """The case with the space's fixed sizes."""
    fixed = dict(space.fixed)
    env = {
        **(case.get("env", {}) if space.variables or space.base is not None else {}),
        **fixed.pop("env", {}),
    }
    return {**case, **fixed, "env": env}


def tidy(case: SearchCase) -> SearchCase:
    """The case without keys that say nothing, with what belongs together made consistent."""
    tidied = {key: value for key, value in case.items() if _says(value) or key == "requests"}
    if not tidied.get("num_speculative_tokens"):
        tidied.pop("num_speculative_tokens", None)
        tidied.pop("spec_method", None)
    if "max_model_len" in tidied:  # else a sequence could hold no block
        tidied["max_model_len"] = max(tidied["max_model_len"], tidied.get("block_size", 64))
    if tidied.get("role") == "mixed":
        del tidied["role"]
    if not tidied.get("prefix_caching") or not tidied.get("shared_tokens"):
        tidied.pop("shared_tokens", None)
    never = any((request.get("join_after") or 0) >= NEVER for request in tidied["requests"])
    if never:
        tidied.setdefault("max_steps", LIMIT_WITH_NEVER)
    tidied["requests"] = [_tidy_request(request, tidied) for request in tidied["requests"]]
    return tidied


def _says(value: Any) -> bool:
    """Whether a key with this value says more than a missing key."""
    return value is not None and value is not False and value not in ({}, [], "")


def _tidy_request(request: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in sorted(request.items(), key=lambda item: _PLACE.get(item[0], len(_PLACE)))
        if _says(value) and not (key in _ZEROS and value == 0)
    }
    role, drafts = case.get("role", "mixed"), case.get("num_speculative_tokens", 0)
    if "accepts" in kept:
        accepts = [min(accepted, drafts) for accepted in kept["accepts"]]
        if role == "decode":
            accepts[0] = min(1, accepts[0])
        kept["accepts"] = accepts
        if not drafts or not any(accepts):
            del kept["accepts"]
    if role == "mixed":
        for key in ("join_after", "discarded", "send_after"):
            kept.pop(key, None)
    if not case.get("prefix_caching"):
        kept.pop("group", None)
    kept["prompt"] = max(1, min(kept["prompt"], case.get("max_model_len", 32768) - 2))
    room = case.get("max_model_len", 32768) - kept["prompt"]
    kept["output"] = max(2 if role == "decode" else 1, min(kept["output"], room))
    return kept


def _budget(chance: RandomSource, seqs: int, drafts: int, block_size: int) -> int:
    tokens = chance.choice((1, 2, drafts + 1, drafts + 1))
    least = max(seqs * tokens, block_size)
    more = chance.choice((0, 0, 0, 1, tokens, block_size, chance.randint(0, 64), least, 3 * least, 512))
    return least + more


def _blocks(chance: RandomSource, case: Mapping[str, Any]) -> int:
    extension = int(case["env"].get("FD_ENC_DEC_BLOCK_NUM", 2))
    least: int = case["max_model_len"] // case["block_size"] + extension
    return max(1, least + chance.choice((0, 0, 0, 1, chance.randint(1, 8), chance.randint(1, 40), 200, 200)))


def drawn_variables(chance: RandomSource) -> dict[str, Any]:
    """FastDeploy's environment variables; none in most cases."""
    env: dict[str, Any] = {}
    if chance.random() < 0.12:
        env["FD_ENC_DEC_BLOCK_NUM"] = chance.choice((0, 1, 1, 1, 3, 5))
    if chance.random() >= 0.25:
        return env
    ways: tuple[dict[str, Any], ...] = (
        {"FD_DISABLE_CHUNKED_PREFILL": 1},
        {"FD_DETERMINISTIC_MODE": 1, "FD_DETERMINISTIC_SPLIT_KV_SIZE": chance.choice((8, 16, 64))},
        {f"FD_RESERVE_{RESERVE}": chance.choice((0, 1, 2, 4))},
        {f"FD_RESERVE_DECAY_{RESERVE}": chance.choice((0, 0.5, 4))},
        {f"FD_RESERVE_MIN_{RESERVE}": chance.choice((1, 2, 4))},
        {"FD_USE_NEW_TOKEN_RATIO_RESERVE": 0},
        {"FD_INIT_NEW_TOKEN_RATIO": chance.choice((0, 0.1, 1)), "FD_MIN_NEW_TOKEN_RATIO": 0},
        {"FD_MIN_NEW_TOKEN_RATIO": chance.choice((0.5, 0.7))},
    )
    for _ in range(chance.randint(1, 2)):
        env.update(chance.choice(ways))
    return env


def _requests(chance: RandomSource, case: Mapping[str, Any]) -> list[dict[str, Any]]:
    seqs, drafts = case["max_num_seqs"], case.get("num_speculative_tokens", 0)
    count = min(
        MOST_REQUESTS, chance.choice((1, 2, 3, seqs, seqs, seqs + 1, chance.randint(1, MOST_REQUESTS)))
    )
    spread = chance.choice((0, 0, 1, 5, 30))
    accepts = chance.choice(("none", "none", "all", "drawn"))
    alike = chance.random() < 0.3
    requests: list[dict[str, Any]] = []
    at = 0
    for i in range(count):
        request = drawn_request(chance, case)
        if alike and requests:
            request = {**request, "prompt": requests[0]["prompt"], "output": requests[0]["output"]}
        request["id"], request["arrival"] = f"r{i}", at
        if drafts and accepts != "none":
            request["accepts"] = (
                [drafts]
                if accepts == "all"
                else [chance.randint(0, drafts) for _ in range(chance.randint(1, 6))]
            )
        requests.append(request)
        at += chance.randint(0, spread)
    return requests


def drawn_request(chance: RandomSource, case: Mapping[str, Any]) -> dict[str, Any]:
    """A request for the sizes of a case; it has no id, and arrives at once."""
    length, size, budget = case["max_model_len"], case["block_size"], case["max_num_batched_tokens"]
    longest = max(1, length - 2)
    prompt = chance.choice(
        (
            1, size - 1, size, size + 1, budget, budget - 1, budget + 1, longest, longest,
            *(chance.randint(1, longest) for _ in range(6)),
        )
    )  # fmt: skip
    prompt = max(1, min(prompt, longest))
    room = max(1, length - prompt)
    output = chance.choice((1, 2, size, room, *(chance.randint(1, room) for _ in range(4))))
    request: dict[str, Any] = {"arrival": 0, "prompt": prompt, "output": min(output, room)}
    if chance.random() < 0.06:
        request["abort_after"] = chance.randint(0, 30)
    if case.get("prefix_caching") and chance.random() < 0.7:
        request["group"] = chance.randint(0, 1)
    role = case.get("role", "mixed")
    if role != "mixed":
        request["join_after"] = NEVER if chance.random() < 0.15 else chance.choice((0, 0, 1, 3, 20))
        request["discarded"] = chance.random() < 0.05
    if role == "prefill":
        request["send_after"] = chance.choice((0, 1, 5))
    return request


# Near a recording -------------------------------------------------------------------------------------------

MOST_LIKE = 256
"""The most requests that are drawn from a recording."""


def _like(chance: RandomSource, base: Mapping[str, Any]) -> SearchCase:
    """Requests of a base case, drawn with their lengths and acceptances; neighbours keep their gaps, or come closer."""
    own: Sequence[Mapping[str, Any]] = base["requests"]
    seqs = base["max_num_seqs"]
    count = min(MOST_LIKE, chance.choice((2, seqs, 2 * seqs, chance.randint(1, 2 * seqs))))
    window, squeeze = chance.random() < 0.5, chance.choice((0, 0, 1, 2, 4))
    first = chance.randint(0, max(0, len(own) - count))
    requests, at = [], 0
    for i in range(count):
        source = own[min(first + i, len(own) - 1)] if window else chance.choice(own)
        follower = own[min(first + i + 1, len(own) - 1)] if window else chance.choice(own)
        gap = (
            max(0, follower.get("arrival", 0) - source.get("arrival", 0)) if window else chance.randint(0, 3)
        )
        requests.append({**source, "id": f"r{i}", "arrival": at})
        at += gap // squeeze if squeeze else 0
    return tidy({**base, "requests": requests})
