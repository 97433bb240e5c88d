"""Prefixes that a request trace names by `hash_ids`, at block sizes of an engine that are not the trace's."""

from __future__ import annotations

from typing import Any

import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import workload_from_case
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.replay.simulation import Simulation
from fdtrace.replayer.workload.hash_prefix import hashed_key


def shared_blocks(size: int, left: list[int], right: list[int], prompt: int, hashed: int = 512) -> int:
    """Blocks of `size` that two prompts share at their beginning."""
    keys = [hashed_key(name, prompt, ids, hashed, size) for name, ids in (("a", left), ("b", right))]
    return next(
        (i for i in range(prompt // size) if keys[0](i) != keys[1](i)),
        prompt // size,
    )


@pytest.mark.parametrize(
    ("size", "expected"), [(16, 64), (64, 16), (512, 2), (1024, 1), (2048, 0), (96, 10), (300, 3)]
)
def test_prompts_share_what_their_equal_hashed_blocks_hold(size: int, expected: int) -> None:
    assert shared_blocks(size, [1, 2, 3], [1, 2, 9], 1536) == expected


def test_the_last_hashed_block_may_be_a_part_and_no_hash_covers_the_output() -> None:
    assert shared_blocks(64, [1, 2], [1, 2], 700) == 10
    keys = [hashed_key(name, 700, [1, 2], 512, 64) for name in "ab"]
    assert keys[0](10) != keys[1](10), "it has tokens of the output, too"
    assert shared_blocks(64, [1], [1], 700) == 8, "what no id covers is its own"
    assert shared_blocks(64, [1, 2, 7, 8], [1, 2, 9, 9], 700) == 10, "ids beyond the prompt have no meaning"


def test_a_simulation_finds_the_prefix_in_its_cache() -> None:
    requests = [
        {"id": "a", "arrival": 0, "prompt": 1100, "output": 2, "hash_ids": [5, 6, 7]},
        {"id": "b", "arrival": 9, "prompt": 1300, "output": 2, "hash_ids": [5, 6, 8]},
    ]
    case = {"max_num_batched_tokens": 4096, "max_num_seqs": 4, "num_blocks": 600, "prefix_caching": True}
    for size, found in ((64, 1024), (512, 1024), (768, 768)):
        workload = workload_from_case(
            {**case, "block_size": size, "hash_block_size": 512, "requests": requests}
        )
        chunks = [
            (row.request_id, row.num_computed_tokens)
            for step in Simulation(workload, BUILTIN["pr7499"])
            for row in step.rows or ()
            if row.kind == "prefill"
        ]
        assert chunks == [("a", 0), ("b", found)]
    workload = workload_from_case({**case, "prefix_caching": False, "requests": requests})
    assert all(request.block_key is None for request in workload.requests)


@pytest.mark.parametrize("ids", ["12", [1, "2"], [-1], [True], [10**17], {}, [1.0]])
def test_ids_that_are_none_are_refused_with_their_place(ids: Any) -> None:
    request = {"id": "a", "prompt": 100, "output": 2, "hash_ids": ids}
    with pytest.raises(UsageError, match=r"requests\[0\]\.hash_ids"):
        workload_from_case(
            {"max_num_batched_tokens": 64, "max_num_seqs": 1, "num_blocks": 600, "requests": [request]}
        )
