"""How far a replay reproduces recordings of whole FastDeploy deployments: a table of calls and forwards.

    LAB_DIR=DIR python benchmarks/fastdeploy_fidelity.py VERSION=CHECKOUT… [--traces DIR] [--seconds S] [--case NAME]…

LAB_DIR holds fastdeploy_deployment.py, which runs FastDeploy's own engine and worker loop on a CPU and plays the model
alone; FASTDEPLOY_PYTHON is a Python that has what they import. Each configuration is recorded from its start, and once
more by attaching in its middle. A recording that is in `--traces` already (VERSION-CASE.fdtrace, and
VERSION-CASE-attached.fdtrace) is not made again. Each is replayed under the formula and the policy that recorded it,
and by FastDeploy's own scheduler of the checkout, led through the same events.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fdtrace.recorder.trace.recording import Recording
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.analysis.fidelity import recorded_formula
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.history.history import Fidelity
from fdtrace.replayer.recorded.step_state import column_or_zero
from fdtrace.scheduler_option import given_schedulers

PYTHON = os.environ.get("FASTDEPLOY_PYTHON", sys.executable)
LAB = Path(os.environ.get("LAB_DIR", "."))

BASE: dict[str, Any] = {
    "seed": 3, "max_num_seqs": 32, "max_num_batched_tokens": 512, "max_model_len": 4096, "num_speculative_tokens": 3,
    "prompts": [40, 300, 900, 2500], "outputs": [10, 60, 200, 400], "step_s": 0.005, "backlog": 4,
}  # fmt: skip

CASES: dict[str, dict[str, Any]] = {
    "roomy": {
        "num_blocks": 1200, "max_num_seqs": 64, "max_num_batched_tokens": 1024, "num_speculative_tokens": 4,
    },
    "tight": {"num_blocks": 90, "outputs": [60, 200, 400, 600], "prompts": [40, 300, 900]},
    "k1": {"num_blocks": 120, "num_speculative_tokens": 1},
    "k5": {
        "num_blocks": 75, "num_speculative_tokens": 5, "outputs": [200, 400, 600], "prompts": [40, 100, 300],
    },
    "aborts": {"num_blocks": 200, "abort": 0.4},
    "prefix": {
        "num_blocks": 110, "prefix_caching": True, "prefix_groups": 4, "shared_tokens": 700, "abort": 0.15,
        "outputs": [60, 200, 400],
    },
    "prefix_tight": {
        "num_blocks": 80, "prefix_caching": True, "prefix_groups": 6, "shared_tokens": 300, "abort": 0.1,
        "outputs": [200, 400, 600], "prompts": [40, 300, 600],
    },
    "whole": {
        "num_blocks": 75, "num_speculative_tokens": 0, "max_num_batched_tokens": 1500, "abort": 0.1,
        "env": {"FD_DISABLE_CHUNKED_PREFILL": "1"}, "prompts": [40, 300, 900, 1200], "outputs": [100, 300, 500],
    },
}  # fmt: skip
"""Room for all; few blocks, and so preemptions; 1 and 5 drafts; aborts; prefix caching, where blocks are few too; whole
prompts."""

OTHERS: dict[str, dict[str, Any]] = {
    "k0": {"seed": 19, "num_blocks": 80, "num_speculative_tokens": 0, "abort": 0.1, "outputs": [100, 300, 500]},
    "k2": {
        "seed": 11, "num_blocks": 100, "num_speculative_tokens": 2, "max_num_seqs": 24, "max_num_batched_tokens": 768,
    },
    "k3": {
        "seed": 5, "num_blocks": 140, "max_num_seqs": 48, "max_num_batched_tokens": 1024, "outputs": [10, 60, 600],
        "abort": 0.2,
    },
    "one_seq": {"seed": 16, "max_num_seqs": 1, "num_blocks": 70, "outputs": [10, 60], "abort": 0.3},
    "too_long": {"seed": 14, "num_blocks": 66, "prompts": [40, 300, 3900], "outputs": [100, 400, 600]},
    "short": {"seed": 12, "num_blocks": 150, "prompts": [20, 100, 300], "outputs": [2, 3], "backlog": 16},
    "short_prefix": {
        "seed": 13, "num_blocks": 80, "prompts": [64, 128, 300, 640], "outputs": [2, 3], "backlog": 16,
        "prefix_caching": True, "prefix_groups": 3, "shared_tokens": 128, "abort": 0.2,
    },
    "prefix_k5": {
        "seed": 7, "num_blocks": 75, "num_speculative_tokens": 5, "prefix_caching": True, "prefix_groups": 4,
        "shared_tokens": 300, "prompts": [40, 300, 600], "outputs": [200, 400, 600],
    },
    "prefix_k5_aborts": {
        "seed": 8, "num_blocks": 75, "num_speculative_tokens": 5, "prefix_caching": True, "prefix_groups": 3,
        "shared_tokens": 256, "prompts": [40, 256, 320, 600], "outputs": [100, 400, 600], "abort": 0.4,
    },
    "prefix_aborts": {
        "seed": 9, "num_blocks": 110, "prefix_caching": True, "prefix_groups": 2, "shared_tokens": 700, "abort": 0.5,
        "outputs": [60, 200, 400],
    },
    "prefix_small_blocks": {
        "seed": 15, "block_size": 16, "num_blocks": 300, "num_speculative_tokens": 2, "prefix_caching": True,
        "prefix_groups": 5, "shared_tokens": 100, "outputs": [60, 200, 400], "prompts": [40, 100, 300, 900],
    },
    "prefix_few_seqs": {
        "seed": 17, "max_num_seqs": 4, "num_blocks": 70, "num_speculative_tokens": 4, "prefix_caching": True,
        "prefix_groups": 2, "shared_tokens": 640, "outputs": [10, 60], "prompts": [640, 700, 1300], "abort": 0.2,
    },
    "prefix_whole": {
        "seed": 18, "num_blocks": 80, "max_num_batched_tokens": 1500, "abort": 0.1, "prefix_caching": True,
        "prefix_groups": 4, "shared_tokens": 300, "env": {"FD_DISABLE_CHUNKED_PREFILL": "1"},
        "prompts": [40, 300, 900, 1200], "outputs": [100, 300, 500],
    },
}  # fmt: skip
"""Only those that `--case` names are run: other seeds, sizes and numbers of drafts; outputs of 2 to 12 tokens; requests
that need more blocks than there are (`too_long`).
"""

STARTED = ("ready ", 180.0)
"""What a deployment prints when it serves, and seconds until then at most."""


def record(trace: Path, checkout: str, case: Path, seconds: float) -> None:
    """A deployment from its start to its end."""
    command = [sys.executable, "-m", "fdtrace", "record", "-o", str(trace), "--", *_deployment(case, seconds)]
    _run(command, checkout)


def attach(trace: Path, checkout: str, case: Path, seconds: float) -> None:
    """The middle of a deployment: it runs for half of the time before, and goes on after."""
    with subprocess.Popen(
        _deployment(case, 2 * seconds), env=_environment(checkout), stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        line = next((line for line in server.stdout if line.startswith(STARTED[0])), "")
        if not line:
            raise SystemExit(f"the deployment of {checkout} did not start")
        time.sleep(seconds / 2)
        command = ["attach", line.split()[1], "-o", str(trace), "--duration", str(seconds)]
        _run([sys.executable, "-m", "fdtrace", *command], checkout)
        server.stdout.read()


def _deployment(case: Path, seconds: float) -> list[str]:
    return [PYTHON, str(LAB / "fastdeploy_deployment.py"), str(case), str(seconds)]


def _environment(checkout: str) -> dict[str, str]:
    return dict(os.environ, FASTDEPLOY_SRC=checkout)


def _run(command: list[str], checkout: str) -> None:
    done = subprocess.run(command, env=_environment(checkout), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def figures(trace: Path, checkout: str) -> list[str]:
    """The cells of one recording: what it holds, and how much of it is reproduced, by the model and the real code."""
    with open_trace(trace) as opened:
        recording = opened.recording()
        over = int((recording.steps["num_tokens"] > recording.engine.max_num_batched_tokens).sum())
        cells = [
            f"{recording.num_steps:,}", f"{over:,}", f"{total(recording, 'num_preempted'):,}",
            f"{total(recording, 'num_stalled'):,}",
        ]  # fmt: skip
        return cells + replayed(recording) + driven(recording, checkout)


def total(recording: Recording, name: str) -> int:
    """The sum of a column of steps; what is not known counts as none."""
    return int(column_or_zero(recording, name).sum())


def replayed(recording: Recording) -> list[str]:
    """Calls and forwards reproduced, and where the replay first departs."""
    name = recorded_formula(recording)
    if name is None or name not in BUILTIN:
        return ["-", "-", "no built-in formula has its budgets"]
    return cells_of(Experiment(recording).reschedule(BUILTIN[name]).outcome.fidelity)


def driven(recording: Recording, checkout: str) -> list[str]:
    """The same by the real scheduler of a checkout."""
    experiment, engine = Experiment(recording), recording.engine
    (given,) = given_schedulers([f"fastdeploy={checkout}"], PYTHON)
    with given.open(experiment.workload.config, engine.env, engine.config) as scheduler:
        return cells_of(experiment.reschedule(scheduler).outcome.fidelity)


def cells_of(fidelity: Fidelity | None) -> list[str]:
    """Calls and forwards, and where the replay first departs."""
    if fidelity is None:
        return ["-", "-", "its code is not that which recorded"]
    forwards = f"{fidelity.share:.1%} of {fidelity.num_steps:,}"
    calls = fidelity.calls
    if calls is None:
        return ["in lockstep: its order is not recorded", forwards, ""]
    where = "" if calls.departure is None else f"call {calls.departure.call}"
    if fidelity.first_divergence is not None:
        where = ", ".join(filter(None, (where, f"step {fidelity.first_divergence}")))
    return [f"{calls.share:.1%} of {calls.num_calls:,}", forwards, where]


def main() -> None:
    """Record what is missing, and print the table as Markdown, a line as soon as it is known."""
    parser = argparse.ArgumentParser()
    parser.add_argument("versions", nargs="+", metavar="VERSION=CHECKOUT")
    parser.add_argument("--traces", type=Path, help="keep the recordings here, and take those that are there")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long each is recorded (default 12)")
    parser.add_argument(
        "--case", action="append", choices=sorted(CASES | OTHERS), help="only these configurations"
    )
    parser.add_argument("--kept", action="store_true", help="only the recordings that are there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        traces = options.traces or Path(scratch)
        traces.mkdir(exist_ok=True)
        print("| version | configuration | recorded | forwards | over the limit | preempted | stalled rows "
              "| model: calls | forwards | first departs | real code: calls | forwards | first departs |")  # fmt: skip
        print("|---" * 13 + "|")
        for version, checkout in (one.split("=", 1) for one in options.versions):
            for name in options.case or CASES:
                case = Path(scratch) / f"{name}.json"
                case.write_text(json.dumps(BASE | (CASES | OTHERS)[name]))
                for how, make in (("", record), ("-attached", attach)):
                    trace = traces / f"{version}-{name}{how}.fdtrace"
                    if not trace.exists() and not options.kept:
                        make(trace, checkout, case, options.seconds)
                    if trace.exists() and not trace.with_name(f"{trace.name}.parts").exists():
                        cells = [
                            version,
                            name,
                            "in its middle" if how else "from its start",
                            *figures(trace, checkout),
                        ]
                        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
