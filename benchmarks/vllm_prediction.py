"""What a replay predicts of a live vLLM with other settings, beside what that server then did: a table.

    VLLM_PYTHON=… python benchmarks/vllm_prediction.py [--requests 110] [--rate 4] [--computing]
    VLLM_PYTHON=… python benchmarks/vllm_prediction.py --traces DIR --runs 2     until all recordings are in DIR

One server is recorded. Each of the other settings is predicted from that recording, through vLLM's own scheduler and by
the recording's time model, and then run for real: the same requests at the same times. The first settings run twice:
how far those two are apart is the floor of what any prediction can reach. All figures are fdtrace's own of each
recording, the predicted ones of its replay.

The worker is paced (`paced_worker`): it takes the time that a GPU would, so two equal runs differ by a few per cent.
With `--computing` a model of `--layers` computes, on a processor of its own. There the machine itself is faster in one
run than in another. So each run is also predicted at its pace: all steps longer or shorter by one factor, the time that
the run's own steps took, as a share of the time that the model takes them to need.

Recordings that are in `--traces` are not made again; `--runs` makes no more than so many (of a minute each), and leaves
the table to the call that has all. Run it on a machine that does nothing else. Notes say how many forwards took longer
than their batch may, which breaks the pace, and in how many steps the host stood still.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from vllm_load import open_load
from vllm_server import PYTHON, Server, attach, detach, make_model

from fdtrace.drivers.children import DriverPool
from fdtrace.recorded_rows import RecordedRows
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.history.history import History
from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
from fdtrace.replayer.recorded.time_forms import TimeForm
from fdtrace.replayer.recorded.time_model import TimeModel
from fdtrace.replayer.workload.engine_settings import read_settings
from fdtrace.replayer.workload.under_settings import ChangedSettings
from fdtrace.scheduler_option import given_schedulers

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


STOOD_STILL_US = 20_000
"""A step that takes so much longer than the run's own time model says, was held up by the host."""


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
    def of(history: History) -> Figures:
        """Those of a recording or of a replay by time."""
        latency = history.outcome.latency
        if latency is None:
            raise RuntimeError(f"{history.name} has no times")
        quantiles = (latency.ttft_us.p50, latency.ttft_us.p95, latency.itl_us.p50, latency.itl_us.p95)
        ttft_p50, ttft_p95, itl_p50, itl_p95 = ((value or 0.0) / 1e3 for value in quantiles)
        return Figures(
            history.outcome.num_steps, ttft_p50, ttft_p95, itl_p50, itl_p95,
            latency.output_tokens_per_s, latency.busy_share,
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
    pace_log, processors = trace.with_suffix(".pace"), os.sched_getaffinity(0)
    more = {} if args.computing else {"PYTHONPATH": str(PACED), "PACED_WORKER_LOG": str(pace_log)}
    options, log = options_of({**BASE, **settings}), trace.with_suffix(".log")
    with Server(model, *options, more=more, log=log, apart=args.computing) as server:
        server.wait()
        if args.computing:
            server.steady()
        load = {"prompts": (20, 30), "outputs": (4, 8), "seed": 9}
        asyncio.run(open_load(server.port, requests=5, rate=5.0, **load))
        recording = attach(server.pid, trace)
        answers = asyncio.run(open_load(server.port, requests=args.requests, rate=args.rate, seed=args.seed))
        detach(recording)
    os.sched_setaffinity(0, processors)  # `apart` takes one away
    failed = {answer.error for answer in answers if answer.error}
    if failed:
        raise RuntimeError(f"{trace.name}: {failed}")
    for log in trace.parent.glob(f"{pace_log.name}.*"):
        times = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
        late = sum(took > wanted for took, wanted in times)
        if late:
            print(f"note: {trace.stem}: {late} of {len(times)} forwards took longer than their batch may")


@dataclass(frozen=True, eq=False)
class AtPace(TimeForm):
    """A form whose steps all take longer or shorter by one factor."""

    form: TimeForm
    factor: float

    @property
    def name(self) -> str:
        """The name of the form."""
        return self.form.name

    def us(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Microseconds of each row of features."""
        return self.factor * self.form.us(features)


class LiveRun:
    """The recording of one server."""

    def __init__(self, path: Path, children: DriverPool) -> None:
        self.children = children
        with open_trace(path) as trace:
            self.recording = trace.recording().loaded()
            rows = RecordedRows(trace, self.recording.engine.engine_id).batch_rows(self.recording)
        self.timing = RecordedTiming(self.recording, lambda: rows)

    @property
    def ran(self) -> Figures:
        """What happened."""
        return Figures.of(Experiment(self.recording, timing=self.timing).recorded())

    def predicted(self, settings: dict[str, int | bool], pace: float = 1.0) -> Figures:
        """What vLLM's scheduler would have done under these settings, with steps that take `pace` times as long."""
        engine, timing = self.recording.engine, RecordedTiming(self.recording, lambda: self.timing.rows)
        model = self.timing.model
        timing.__dict__["model"] = replace(
            model, form=AtPace(model.form, pace)
        )  # cached: set before it is asked
        changed = ChangedSettings(read_settings(engine, dict(settings)))
        experiment = Experiment(self.recording, clock="time", changed_settings=changed, timing=timing)
        (given,) = given_schedulers(["vllm"], str(PYTHON))
        with given.open(
            experiment.workload.config,
            engine.env,
            engine.config,
            changed=changed.values,
            children=self.children,
        ) as scheduler:
            return Figures.of(experiment.reschedule(scheduler))

    def pace_by(self, model: TimeModel) -> float:
        """How long its steps took, as a share of what a model takes them to need."""
        features, durations = self.timing.fitted
        return float(durations.sum() / model.form.us(features).sum())

    def stood_still(self) -> str:
        """The steps during which its host stood still; empty: none."""
        features, durations = self.timing.fitted
        over = durations - self.timing.model.form.us(features)
        long = over[over > STOOD_STILL_US]
        share = long.sum() / durations.sum()
        return f"{len(long)} steps took {long.sum() / 1e3:.0f} ms too long ({share:.1%})" if len(long) else ""


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
    parser.add_argument("--layers", type=int, default=16, help="of the model that computes")
    parser.add_argument("--runs", type=int, default=99, help="make at most so many recordings")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = args.traces or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        runs = {"as recorded": {}, "the same again": {}, **VARIANTS}
        paths = {title: directory / f"{title.replace(' ', '-')}.duckdb" for title in runs}
        missing = [title for title in runs if not paths[title].exists()]
        if missing:
            model = make_model(Path(name) / "model", args.layers if args.computing else 2)
        for title in missing[: args.runs]:
            run(paths[title], model, runs[title], args)
        if missing[args.runs :]:
            print(f"still to run: {', '.join(missing[args.runs :])}", file=sys.stderr)
            return
        with DriverPool() as children:
            print_table(
                runs, {title: LiveRun(path, children) for title, path in paths.items()}, args.computing
            )


def print_table(runs: dict[str, dict[str, int | bool]], recorded: dict[str, LiveRun], at_pace: bool) -> None:
    """Each run, and what the first recording predicts of it; with `at_pace` also at the pace of the run."""
    print("| settings | | steps | TTFT p50, ms | p95 | ITL p50, ms | p95 | output tokens/s | busy |")
    print("|---|---|---|---|---|---|---|---|---|")
    base = recorded["as recorded"]
    for title, settings in runs.items():
        run, again = recorded[title], title == "the same again"
        real = run.ran
        print_row(title, "ran", real.cells(base.ran if again else None))
        if not again:
            print_row(title, "**predicted**", base.predicted(settings).cells(real))
        pace = run.pace_by(base.timing.model)
        if at_pace and run is not base:
            cells = base.predicted(settings, pace).cells(real)
            print_row(title, f"predicted at its pace ({pace:.2f})", cells)
        if held := run.stood_still():
            print(f"note: {title}: {held}", file=sys.stderr)
    print(base.timing.model.text, file=sys.stderr)


if __name__ == "__main__":
    main()
