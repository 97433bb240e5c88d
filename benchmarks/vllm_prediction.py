"""What a replay predicts of a live vLLM with other settings, beside what that server then did: a table.

    VLLM_PYTHON=… python benchmarks/vllm_prediction.py [--requests 110] [--rate 4] [--traces DIR] [--computing]

One server is recorded. Each of the other settings is predicted from that recording, through vLLM's own scheduler and by
the recording's time model, and then run for real: the same requests at the same times. The first settings run twice:
how far those two are apart is the floor of what any prediction can reach. All figures are fdtrace's own of each
recording, the predicted ones of its replay.

The worker is paced (`paced_worker`): it takes the time that a GPU would, so two equal runs differ by a few per cent.
With `--computing` it takes what this machine's arithmetic takes. Recordings that are in `--traces` are not made again.
Run it on a machine that does nothing else: a real forward that takes longer than its batch may breaks the pace; the
share of such forwards is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_load import open_load
from vllm_server import PYTHON, Server, attach, detach, fdtrace, make_model

PACED = Path(__file__).with_name("paced_worker")
BASE = {"max_num_batched_tokens": 512, "max_num_seqs": 16, "num_gpu_blocks_override": 512}
VARIANTS: dict[str, dict[str, int | bool]] = {
    "4 sequences": {"max_num_seqs": 4},
    "budget 128": {"max_num_batched_tokens": 128},
    "budget 256": {"max_num_batched_tokens": 256},
    "40 KV blocks": {"num_gpu_blocks_override": 40},
    "long prompts 64 a step": {"long_prefill_token_threshold": 64},
    "no chunks": {"enable_chunked_prefill": False, "max_num_batched_tokens": 1024},
}


@dataclass(frozen=True)
class Figures:
    """Of one run or one replay; milliseconds, tokens a second."""

    steps: int
    ttft_p50: float
    ttft_p95: float
    itl_p50: float
    itl_p95: float
    tokens_per_s: float
    busy: float

    @staticmethod
    def of(entry: dict[str, Any]) -> Figures:
        """Those of an entry of `fdtrace replay --json`."""
        latency = entry["latency"]
        ttft, itl = latency["ttft_us"], latency["itl_us"]
        return Figures(
            entry["num_steps"], ttft["p50"] / 1e3, ttft["p95"] / 1e3, itl["p50"] / 1e3, itl["p95"] / 1e3,
            latency["output_tokens_per_s"], latency["busy_share"],
        )  # fmt: skip

    def cells(self, real: Figures | None = None) -> list[str]:
        """As cells of a table, with the difference from the real run."""
        cells = [f"{value:,.{0 if value > 99 else 1}f}" for value in vars(self).values()]
        if real is not None:
            for i, (value, run) in enumerate(zip(vars(self).values(), vars(real).values(), strict=True)):
                cells[i] += f" ({(value / run - 1):+.1%})" if run else ""
        return cells


def options_of(settings: dict[str, int | bool]) -> list[str]:
    """Settings as options of `vllm serve`."""
    options = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        options += [f"--no-{option}"] if value is False else [f"--{option}", str(value)]
    return options


def run(trace: Path, model: Path, settings: dict[str, int | bool], args: argparse.Namespace) -> None:
    """Record a server with these settings, under the load, from its first request to its last."""
    pace_log = trace.with_suffix(".pace")
    more = {} if args.computing else {"PYTHONPATH": str(PACED), "PACED_WORKER_LOG": str(pace_log)}
    with Server(model, *options_of({**BASE, **settings}), more=more, log=trace.with_suffix(".log")) as server:
        server.wait()
        load = {"prompts": (20, 30), "outputs": (4, 8), "seed": 9}
        asyncio.run(open_load(server.port, requests=5, rate=5.0, **load))
        recording = attach(server.pid, trace)
        answers = asyncio.run(open_load(server.port, requests=args.requests, rate=args.rate, seed=args.seed))
        detach(recording)
    failed = {answer.error for answer in answers if answer.error}
    if failed:
        raise RuntimeError(f"{trace.name}: {failed}")
    for log in trace.parent.glob(f"{pace_log.name}.*"):
        times = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
        late = sum(took > wanted for took, wanted in times)
        if late:
            print(f"note: {trace.stem}: {late} of {len(times)} forwards took longer than their batch may")


def replayed(trace: Path, settings: dict[str, int | bool]) -> tuple[Figures, Figures]:
    """The figures of a recording, and of its replay with these settings."""
    changed = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    variant = ", ".join(["predicted: scheduler=vllm", *changed])
    command = fdtrace(
        "replay", trace, "--json", "--clock", "time", "--scheduler-python", PYTHON, "-w", variant
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    entries = json.loads(done.stdout)["formulas"]
    return Figures.of(entries[0]), Figures.of(entries[-1])


def print_row(name: str, kind: str, cells: list[str]) -> None:
    """One line of the table."""
    print("|", " | ".join([name, kind, *cells]), "|", flush=True)


def main() -> None:
    """Record, predict, run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=110)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--traces", type=Path, help="keep the recordings here, and take those that are there")
    parser.add_argument("--computing", action="store_true", help="do not pace the worker")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = args.traces or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        model = make_model(Path(name) / "model")
        runs = {"as recorded": {}, "the same again": {}, **VARIANTS}
        print("| settings | | steps | TTFT p50, ms | p95 | ITL p50, ms | p95 | output tokens/s | busy |")
        print("|---|---|---|---|---|---|---|---|---|")
        base = directory / "as-recorded.duckdb"
        for title, settings in runs.items():
            trace = directory / f"{title.replace(' ', '-')}.duckdb"
            if not trace.exists():
                run(trace, model, settings, args)
            real = replayed(trace, {})[0]
            again = title == "the same again"
            print_row(title, "ran", real.cells(replayed(base, {})[0] if again else None))
            if not again:
                print_row(title, "**predicted**", replayed(base, settings)[1].cells(real))


if __name__ == "__main__":
    main()
