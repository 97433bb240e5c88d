"""How long the search takes to find and shrink each known fault, from the start of the command.

    python benchmarks/search.py [--seeds 5] [--checkouts DIR] [--python PATH]

Each search is a `fdtrace falsify` of its own, with each of several seeds. DIR holds checkouts of FastDeploy, named as
the versions (original, pr7438, …); PATH is a Python with Paddle and FastDeploy's requirements. With them, the real code
of that version confirms each small case, and its time is told apart: it is the start of Paddle and FastDeploy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BUDGET = ["--find", "hang", "--cause", "the budget is", "--no-variables"]
KNOWN: dict[str, tuple[str, list[str]]] = {
    "original exceeds": ("original", ["--find", "exceeded"]),
    "pr7438 exceeds at M <= 512": ("pr7438", ["--find", "exceeded"]),
    "pr7499 hangs": ("pr7499", BUDGET),
    "pr7623 hangs": ("pr7623", BUDGET),
    "release 2.6 hangs": ("release_2_6", BUDGET),
    "decode role: held blocks": ("release_2_6", ["--find", "held", "--role", "decode"]),
    "livelock by self-preemption": ("original", ["--find", "livelock", "--cause", "preempts itself"]),
    "ternary: the budget of 1": ("ternary", ["--find", "withheld", "--cause", "a budget of 1"]),
}


def searched(formula: str, options: list[str], seed: int) -> tuple[float, dict[str, Any]]:
    """Seconds of one search, and what it printed."""
    command = [
        sys.executable,
        "-m",
        "fdtrace",
        "falsify",
        "-f",
        formula,
        *options,
        "--seed",
        str(seed),
        "--json",
    ]
    begin = time.monotonic()
    done = subprocess.run([*command, "--seconds", "120"], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begin
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    printed: dict[str, Any] = json.loads(done.stdout)
    return seconds, printed


def confirmed(case: dict[str, Any], formula: str, kind: str, args: argparse.Namespace) -> tuple[float, str]:
    """Seconds and answer of the version's real code on a small case."""
    checkout = args.checkouts / formula
    if not checkout.is_dir():
        return 0.0, "no such version"
    file = Path("benchmark-search.json")
    file.write_text(json.dumps(case))
    real = ["--scheduler", f"fastdeploy={checkout}", "--scheduler-python", args.python]
    command = [
        sys.executable,
        "-m",
        "fdtrace",
        "shrink",
        str(file),
        "-f",
        formula,
        "--keep",
        kind,
        "--json",
        *real,
    ]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begin
    file.unlink()
    answers = json.loads(done.stdout)["real"].values() if done.returncode == 1 else [done.stderr.strip()]
    return seconds, "; ".join(answers).partition(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--checkouts", type=Path)
    parser.add_argument("--python", default=sys.executable)
    args = parser.parse_args()
    for name, (formula, options) in KNOWN.items():
        runs = [searched(formula, options, seed) for seed in range(args.seeds)]
        seconds = [taken for taken, _ in runs]
        found = [printed["found"][0] for _, printed in runs if printed["found"]]
        workloads = [printed["covered"]["num_runs"] for _, printed in runs]
        requests = [len(fault["case"]["requests"]) for fault in found]
        print(
            f"{name:30} found {len(found)} of {args.seeds}; seconds median {statistics.median(seconds):.1f}, "
            f"most {max(seconds):.1f}; workloads median {statistics.median(workloads):,.0f}, most {max(workloads):,}; "
            f"requests at most {max(requests, default=0)}",
            flush=True,
        )
        if args.checkouts is not None and found:
            taken, answer = confirmed(found[0]["case"], formula, found[0]["kind"], args)
            print(f"{'':30} {formula}: {answer} ({taken:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
