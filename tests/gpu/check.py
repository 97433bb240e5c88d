"""Checks fdtrace on a machine with a GPU, in one command of at most seven minutes; on a CPU the same, small.

    python -m tests.gpu.check [--device cuda|cpu] [--json PATH] [--page PATH]

Run by a Python that has fdtrace, and PyTorch and transformers where TRANSFORMERS_PYTHON names no other. What a CPU
cannot show is skipped with its reason. The exit status is 1 where a part failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gpu.outcome import Failed, Skipped
from tests.gpu.page import page
from tests.gpu.parts import PARTS
from tests.gpu.server import CPU, ENGINE, GPU

MOST_S, LONGEST_PART_S = 420.0, 60.0
"""A part begins only if there is so much time left of all."""


ASKED = """
import json, platform, torch, transformers
found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
if torch.cuda.is_available():
    of = torch.cuda.get_device_properties(0)
    found |= {"gpu": of.name, "memory_gib": round(of.total_memory / 2**30, 1)}
print(json.dumps(found))
"""


def machine() -> dict[str, Any]:
    """What the engine has, as its own Python says."""
    done = subprocess.run([ENGINE, "-c", ASKED], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(directory: Path, device: str, only: list[str]) -> Iterator[dict[str, Any]]:
    """Every part: its name, what it is about, `passed`, `failed` or `skipped`, its figures or why, its seconds."""
    size, begun = GPU if device == "cuda" else CPU, time.monotonic()
    for part in PARTS:
        if only and part.__name__ not in only:
            continue
        since = time.monotonic()
        one: dict[str, Any] = {"part": part.__name__, "about": " ".join((part.__doc__ or "").split())}
        try:
            if since - begun > MOST_S - LONGEST_PART_S and device == "cuda":
                raise Skipped("no time was left")
            one.update(state="passed", figures=part(directory, size))
        except Skipped as why:
            one.update(state="skipped", why=str(why))
        except Exception as error:  # a part that breaks must not take the others' figures with it
            one.update(state="failed", why=str(error) if isinstance(error, Failed) else repr(error))
        one["seconds"] = round(time.monotonic() - since, 1)
        print(
            f"{one['part']:16} {one['state']:8} {one['seconds']:6.1f} s  {one.get('why') or one['figures']}",
            flush=True,
        )
        yield one


def main() -> int:
    """Run, write, and say whether all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: a GPU where there is one")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--page", type=Path, help="write a page of them there")
    parser.add_argument("--keep", type=Path, help="keep the recordings and the engines' logs in this folder")
    parser.add_argument("--part", action="append", default=[], help="only this one; repeatable")
    args = parser.parse_args()
    on = machine()
    device = args.device or ("cuda" if "gpu" in on else "cpu")
    begun = time.monotonic()
    found: dict[str, Any] = {"machine": on, "fdtrace_python": platform.python_version(), "device": device}
    parts = found["parts"] = []
    with tempfile.TemporaryDirectory(prefix="fdtrace-gpu-") as name:
        for part in run(Path(name), device, args.part):
            parts.append(part)
            found["seconds"] = round(time.monotonic() - begun)
            if args.json:  # after each part: a run that is cut short keeps what it has
                args.json.write_text(json.dumps(found, indent=1) + "\n")
        if args.keep:
            shutil.copytree(name, args.keep, dirs_exist_ok=True)
    if args.page:
        args.page.write_text(page(found))
    return int(any(part["state"] == "failed" for part in parts))


if __name__ == "__main__":
    sys.exit(main())
