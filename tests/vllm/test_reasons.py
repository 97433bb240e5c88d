"""Why a vLLM admitted no more, and gave nothing to a running request: the adapter's reason is the line at which vLLM's
own `schedule()` left its loop, or passed the request.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import fdtrace.drivers
import fdtrace.recorder.agent
from tests.fdtrace.test_vllm_scheduler import NGRAM, PYTHON, SIZES, real
from tests.fdtrace.vllm_process import VllmProcess

pytestmark = [real, pytest.mark.timeout(1200), pytest.mark.slow, pytest.mark.xdist_group("vllm reasons")]

PARALLEL = {"speculative_config": {"parallel_drafting": True}}
"""A drafter that runs its K drafts at once: each request pays K - 1 slots."""

LONG = {"scheduler_config": {"long_prefill_token_threshold": 16}}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], set[str]]] = {
    "budgets": ({**NGRAM, "max_num_seqs": 32}, PARALLEL, {}, {"input_budget", "preemption"}),
    "slots": ({"max_num_seqs": 4, "max_num_batched_tokens": 256}, {}, {}, {"slots"}),
    "blocks": ({"num_blocks": 40, "max_num_seqs": 16, "max_num_batched_tokens": 512}, {}, {}, {"blocks"}),
    "watermark": (
        {"num_blocks": 60, "max_num_seqs": 16, "max_num_batched_tokens": 512},
        {"scheduler_config": {"watermark": 0.2}},
        {},
        {"watermark", "blocks"},
    ),
    "watermark_prefixes": (
        {"num_blocks": 60, "max_num_seqs": 16, "max_num_batched_tokens": 512, "prefix_caching": True},
        {"scheduler_config": {"watermark": 0.2}},
        {},
        {"watermark", "blocks"},
    ),
    "padding": ({**NGRAM, "prefix_caching": True, "max_num_seqs": 32, "num_blocks": 200}, {}, {"new_decodes": True},
                {"padding", "budget"}),
    "throttle": ({"max_num_seqs": 16, "max_num_batched_tokens": 512}, {}, {"throttles": True}, {"throttle"}),
    "whole": ({"chunked_prefill": False, "max_num_batched_tokens": 1024, "num_blocks": 400, "max_num_seqs": 64}, {}, {},
              {"budget"}),
    "deferred": ({"max_num_batched_tokens": 256}, {}, {"defers": True, "pauses": True}, {"deferred", "paused"}),
    "ahead": ({"max_num_seqs": 8}, {"scheduler_config": {"async_scheduling": True}}, {}, {"slots"}),
    "chunks_throttled": ({"max_num_seqs": 64, "max_num_batched_tokens": 512, "num_blocks": 400}, LONG,
                         {"throttles": True}, {"throttle"}),
    "squeezed": ({"max_num_seqs": 32, "num_blocks": 400}, {}, {"squeezes": True}, {"budget"}),
    "long_prefills_and_slots": ({**NGRAM, "max_num_seqs": 16, "num_blocks": 400}, {**PARALLEL, **LONG}, {},
                                {"input_budget"}),
    "priority": (
        {"num_blocks": 65, "max_num_seqs": 16, "max_num_batched_tokens": 256},
        {"scheduler_config": {"policy": "priority", "scheduler_reserve_full_isl": False}},
        {"priorities": True},
        {"blocks"},
    ),
}  # fmt: skip


RESTS = {
    "chunks_throttled": {"throttle"},
    "deferred": {"paused"},
    "ahead": {"ending"},
    "squeezed": {"budget"},
    "long_prefills_and_slots": {"input_budget"},
    "priority": {"blocks"},
}
"""Case -> reasons for which running requests get nothing in it."""


def given(new_decodes: bool, priorities: bool) -> list[dict[str, Any]]:
    rng = random.Random(7)
    found, step = [], 0
    for i in range(80):
        step += rng.choice((0, 0, 0, 1, 3))
        prompt = rng.choice((20, 60, 150, 300)) + rng.randint(0, 9)
        shared = rng.choice((0, 16, 48)) if prompt > 48 else 0
        if new_decodes and i > 4:
            prompt, shared = 49, 48
        found.append(
            {"id": f"r{i}", "arrival": step, "prompt": prompt, "shared": shared, "output": rng.randint(5, 60)}
        )
        if priorities:
            found[-1]["priority"] = 80 - i  # later ones are served first
    return found


@cache
def watched(name: str) -> dict[str, Any]:
    sizes, recorded, more, _ = CASES[name]
    requests = given(bool(more.get("new_decodes")), bool(more.get("priorities")))
    asked = {"sizes": {**SIZES, **sizes}, "recorded": recorded, "seed": 3, "given": requests, **more}
    return process().ask(asked)


@cache
def process() -> VllmProcess:
    drivers, agent = Path(fdtrace.drivers.__file__).parent, Path(str(fdtrace.recorder.agent.__file__)).parent
    return VllmProcess(PYTHON, Path(__file__).with_name("scheduler_stops.py"), drivers, agent)


@pytest.mark.parametrize("name", CASES)
def test_the_reason_is_where_the_engines_own_loop_ended(name: str) -> None:
    run = watched(name)
    calls = run["calls"]
    wrong = Counter((truth, said) for truth, said, *_ in calls if truth != said)
    assert not wrong
    assert CASES[name][3] <= {truth for truth, *_ in calls}
    assert [call[3] for call in calls] == [call[2] for call in calls], "what is left of both budgets"


@pytest.mark.parametrize("name", CASES)
def test_the_reason_of_a_running_request_is_where_the_loop_passed_it(name: str) -> None:
    run = watched(name)
    wrong = Counter(
        (of_both[0].get(request), of_both[1].get(request))
        for of_both in run["rests"]
        for request in {**of_both[0], **of_both[1]}
        if of_both[0].get(request) != of_both[1].get(request)
    )
    assert not wrong
    assert len(run["rests"]) == run["num_with_rest"], (
        "each call that left a running request out was explained"
    )
    found = {reason for truth, _ in run["rests"] for reason in truth.values()}
    assert RESTS.get(name, set()) <= found
