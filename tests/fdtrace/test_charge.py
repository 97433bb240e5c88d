"""What a formula charges each running decode, where that is more than 1 and the budget no multiple of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fdtrace.cli import main

BUDGET, ARRIVES = 12, 5


@pytest.mark.parametrize("charge", [1, 2, 5, 7, 12, 13])
@pytest.mark.parametrize("num_decodes", [0, 1, 2, 3, 6])
def test_a_prompt_gets_what_the_decodes_before_it_were_not_charged(
    num_decodes: int, charge: int, tmp_path: Path
) -> None:
    """FastDeploy's loop goes on while the budget is above 0, and takes a decode's whole charge from it: where less than
    a charge is left, one more decode is charged, and nothing is left.
    """
    decodes = [{"id": f"d{i}", "arrival": 0, "prompt": 2, "output": 40} for i in range(num_decodes)]
    workload = {
        "max_num_batched_tokens": BUDGET, "max_num_seqs": 8, "num_blocks": 100, "block_size": 16, "max_model_len": 512,
        "num_speculative_tokens": 0,
        "requests": [*decodes, {"id": "prompt", "arrival": ARRIVES, "prompt": 50, "output": 4}],
    }  # fmt: skip
    file, out = tmp_path / "workload.json", tmp_path / "decisions.jsonl"
    file.write_text(json.dumps(workload))
    formula = f"mine: max_num_batched_tokens; charge {charge}"
    assert main(["simulate", str(file), "-f", formula, "--decisions", str(out)]) in (0, 1)
    steps = [json.loads(line) for line in out.read_text().splitlines()]
    came = next(
        step
        for step in steps
        if step["step"] >= ARRIVES and len(step["rows"]) + step["waiting"] > num_decodes
    )
    chunks = [row[2] for row in came["rows"] if row[0] == "prompt"]
    left = BUDGET - num_decodes * charge
    assert chunks == ([left] if left > 0 else [])
