"""What a part of the GPU check gives: its figures, or why there are none; and how the parts replay a recording."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.gpu.server import ENGINE, Size

Figures = dict[str, Any]


class Failed(Exception):
    """What was measured is not what was to be."""


class Skipped(Exception):
    """This machine cannot show it."""


def only_on_a_gpu(size: Size, what: str) -> None:
    """Skipped on a CPU."""
    if size.device == "cpu":
        raise Skipped(f"{what}: this needs a GPU")


def replay(trace: Path, *options: str) -> dict[str, Any]:
    """`fdtrace replay --json`, with the engine's Python for its scheduler."""
    command = [sys.executable, "-m", "fdtrace", "replay", str(trace), "--json", *options]
    if "--scheduler" in options:
        command += ["--scheduler-python", ENGINE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(done.stderr[-500:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found
