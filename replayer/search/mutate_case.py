"""Changes a case a little: what a search does with the cases that came nearest to a fault."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

from fdtrace.replayer.search.draw_case import (
    MOST_REQUESTS,
    RandomSource,
    SearchCase,
    SearchSpace,
    drawn_request,
    drawn_variables,
    tidy,
    with_fixed,
)

MOST_CHANGES = 3


def mutated_case(chance: RandomSource, case: SearchCase, space: SearchSpace) -> SearchCase:
    """A copy of a case with one to three changes. Fixed sizes stay; near a recording, all sizes do."""
    new = deepcopy(case)
    ways = _REQUEST_WAYS if space.base is not None else (*_REQUEST_WAYS, *_SIZE_WAYS)
    for _ in range(chance.randint(1, MOST_CHANGES)):
        chance.choice(ways)(chance, new)
    return tidy(with_fixed(new, space))


def _nearby(chance: RandomSource, value: int, least: int = 0) -> int:
    """A number near another one, at twice it, or at half of it."""
    return max(
        least, chance.choice((value - 1, value + 1, value * 2, value // 2, value + chance.randint(-8, 8)))
    )


def _change_length(chance: RandomSource, case: SearchCase) -> None:
    request, key = chance.choice(case["requests"]), chance.choice(("prompt", "output"))
    request[key] = _nearby(chance, request[key], 1)


def _draw_lengths(chance: RandomSource, case: SearchCase) -> None:
    request, fresh = chance.choice(case["requests"]), drawn_request(chance, case)
    request["prompt"], request["output"] = fresh["prompt"], fresh["output"]


def _change_arrival(chance: RandomSource, case: SearchCase) -> None:
    request = chance.choice(case["requests"])
    request["arrival"] = _nearby(chance, request.get("arrival", 0))


def _come_at_once(chance: RandomSource, case: SearchCase) -> None:
    for request in case["requests"]:
        request["arrival"] = 0


def _copy_request(chance: RandomSource, case: SearchCase) -> None:
    if len(case["requests"]) < 4 * MOST_REQUESTS:
        copied = dict(chance.choice(case["requests"]))
        used = {request["id"] for request in case["requests"]}
        copied["id"] = next(name for i in range(len(used) + 1) if (name := f"r{i}") not in used)
        case["requests"].append(copied)


def _drop_request(chance: RandomSource, case: SearchCase) -> None:
    if len(case["requests"]) > 1:
        del case["requests"][chance.randint(0, len(case["requests"]) - 1)]


def _all_alike(chance: RandomSource, case: SearchCase) -> None:
    model = chance.choice(case["requests"])
    for request in case["requests"]:
        request["prompt"], request["output"] = model["prompt"], model["output"]


def _change_accepts(chance: RandomSource, case: SearchCase) -> None:
    drafts = case.get("num_speculative_tokens", 0)
    request = chance.choice(case["requests"])
    request["accepts"] = [chance.randint(0, drafts) for _ in range(chance.randint(1, 6))]


def _change_size(chance: RandomSource, case: SearchCase) -> None:
    key = chance.choice(("max_num_batched_tokens", "max_num_seqs", "num_blocks", "max_model_len"))
    case[key] = _nearby(chance, case.get(key, 32768), 1)


def _least_budget(chance: RandomSource, case: SearchCase) -> None:
    tokens = chance.choice((1, 2, case.get("num_speculative_tokens", 0) + 1))
    case["max_num_batched_tokens"] = max(case["max_num_seqs"] * tokens, case.get("block_size", 64))


def _least_blocks(chance: RandomSource, case: SearchCase) -> None:
    extension = int(case.get("env", {}).get("FD_ENC_DEC_BLOCK_NUM", 2))
    case["num_blocks"] = case.get("max_model_len", 32768) // case.get("block_size", 64) + extension


def _change_drafts(chance: RandomSource, case: SearchCase) -> None:
    case["num_speculative_tokens"] = chance.randint(0, 5)


def _drop_variable(chance: RandomSource, case: SearchCase) -> None:
    if case.get("env"):
        del case["env"][chance.choice(sorted(case["env"]))]


def _draw_variables(chance: RandomSource, case: SearchCase) -> None:
    case["env"] = {**case.get("env", {}), **drawn_variables(chance)}


_Way = Callable[[RandomSource, SearchCase], None]
_REQUEST_WAYS: tuple[_Way, ...] = (
    *(_change_length, _change_length, _draw_lengths, _change_arrival, _come_at_once, _copy_request),
    *(_drop_request, _all_alike, _change_accepts),
)
_SIZE_WAYS: tuple[_Way, ...] = (
    *(_change_size, _change_size, _least_budget, _least_blocks, _change_drafts, _drop_variable),
    _draw_variables,
)
