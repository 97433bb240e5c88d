"""What a drafter runs, padded to captured sizes by a real vLLM's own code: VLLM_PYTHON names a Python that has it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import fdtrace.recorder.agent
from tests.fdtrace.test_vllm_scheduler import PYTHON, real

pytestmark = [real, pytest.mark.timeout(1200), pytest.mark.slow]


def test_a_drafters_first_pass_is_noted_as_vllm_pads_it() -> None:
    agent = Path(str(fdtrace.recorder.agent.__file__)).parent
    program = Path(__file__).with_name("drafter_padding.py")
    done = subprocess.run([PYTHON, program, agent], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    # 70 tokens are more than the largest captured size: such a batch is not padded.
    assert answer["noted"] == [[5, 8, 60], [33, 64, 60], [64, 64, 60], [70, 70, 60]]
    assert answer["captured"] == {
        "cudagraph_mode": "FULL",
        "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64],
        "max_cudagraph_capture_size": 64,
    }
