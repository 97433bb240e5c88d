"""What a replay predicts of another FastDeploy version, beside what that version then did: a table.

    LAB_DIR=DIR python benchmarks/fastdeploy_prediction.py VERSION=CHECKOUT… [--traces DIR] [--case NAME]… [--kept]

VERSION is a policy or a formula of `fdtrace formulas`; the first one is recorded, and all others are predicted from
that recording. Every version then runs for real on the same requests, sent at the same times, and the first one
`--runs` times: how far those are apart is the floor of what any prediction can reach. LAB_DIR and FASTDEPLOY_PYTHON are
those of `fastdeploy_fidelity.py`. A forward takes 5 ms and what the machine adds: `ms a step` says how far two runs are
apart in that. With `--at-pace` each prediction is repeated with forwards so much slower or faster that a step takes as
long as in the real run: what it then misses is not a matter of pace. Recordings that are in `--traces`
(VERSION-CASE-RUN.fdtrace) are not made again. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fastdeploy_fidelity import record

from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.config import POLICIES
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.history.history import History
from fdtrace.replayer.recorded.pipeline_times import pace_of
from fdtrace.replayer.replay.recorded_pipeline import RecordedPipeline, pipeline_of
from fdtrace.replayer.replay.replay_history import history_of

BASE: dict[str, Any] = {
    "seed": 3, "max_num_seqs": 32, "max_num_batched_tokens": 512, "max_model_len": 4096, "num_speculative_tokens": 3,
    "prompts": [40, 300, 900, 2500], "outputs": [10, 60, 200, 400], "step_s": 0.005, "num_requests": 240,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "roomy": {"num_blocks": 400, "rate": 14},
    "tight": {
        "num_blocks": 75, "rate": 4.5, "num_speculative_tokens": 5, "prompts": [40, 100, 300],
        "outputs": [200, 400, 600], "num_requests": 90,
    },
    "saturated": {"num_blocks": 400, "rate": 26},
}  # fmt: skip
"""Room for most; few blocks, and so preemptions; more requests than it can serve."""
SECONDS = 120.0
ROUNDS = 4
"""Replays until the pace of a prediction is that of a real run."""


FIRST_TOKENS = """
SELECT min(epoch_ns(s.ts) / 1e6 + s.forward_us / 1e3) - any_value(epoch_ns(r.arrived_at)) / 1e6 AS wait
FROM step_request q JOIN step s USING (engine_id, step) JOIN request r USING (engine_id, request)
WHERE q.kind = 'prefill' AND q.num_computed_tokens + q.num_tokens >= r.num_prompt_tokens
  AND r.arrived_at IS NOT NULL
GROUP BY r.request
"""
"""Milliseconds from a request's coming to the end of the forward that made its first token."""


@dataclass(frozen=True)
class Figures:
    """One run, recorded or replayed; `first_token` in milliseconds, at the median."""

    forwards: int
    over: int
    peak: int
    preempted: int
    stalled: int
    first_token: float
    pace: float
    """Milliseconds from one forward to the next, on average but for the longest twentieth."""
    unsure: bool = False
    disturbed: float = 0.0

    @classmethod
    def of(cls, history: History, first_token: float, pace: float, **more: Any) -> Figures:
        """Those of a history."""
        found = history.outcome
        return cls(
            found.num_steps, found.num_exceeded, found.peak_tokens, found.num_preemptions, found.num_stalls,
            first_token, pace, **more,
        )  # fmt: skip

    def cells(self, beside: Figures | None = None) -> list[str]:
        """As a row of the table; how far it is from another where there is one."""
        cells = [
            _cell(getattr(self, name), None if beside is None else getattr(beside, name))
            for name in ("forwards", "over", "peak", "preempted", "stalled", "first_token")
        ]
        cells[-1] += " (unsure)" if self.unsure else ""
        return [*cells, f"{self.pace:.1f}"]


def _cell(value: float, other: float | None) -> str:
    text = f"{value:,.0f}"
    return text if other is None or not other or value == other else f"{text} ({value / other - 1:+.1%})"


def recorded(trace: Path) -> Figures:
    """What really happened."""
    with open_trace(trace) as opened:
        waits = [row["wait"] for row in opened.rows(FIRST_TOKENS)]
        recording = opened.recording()
        pace = pace_of(recording.steps["ts"] / 1e6)
        return Figures.of(Experiment(recording).recorded(), median(waits), pace)


def predicted(trace: Path, version: str) -> Figures:
    """What a replay of a recording under another version says."""
    name = POLICIES[version].formula if version in POLICIES else version
    with open_trace(trace) as opened:
        recording = opened.recording()
        experiment = Experiment(recording)
        found = experiment.in_pipeline(BUILTIN[name], POLICIES.get(version, POLICIES["original"]))
        if found is None:
            raise SystemExit(f"{trace} has no order of calls: it cannot be predicted from")
    figures = found.outcome.pipeline
    assert figures is not None
    return Figures.of(
        found,
        figures.first_token_p50_ms,
        figures.pace_ms,
        unsure=figures.is_saturated,
        disturbed=figures.disturbed,
    )


def predicted_at_pace(trace: Path, version: str, pace: float) -> Figures:
    """The same, if a step takes so many milliseconds on average."""
    name = POLICIES[version].formula if version in POLICIES else version
    policy = POLICIES.get(version, POLICIES["original"])
    with open_trace(trace) as opened:
        recording = opened.recording()
        pipeline = pipeline_of(recording, Experiment(recording).workload)
    assert pipeline is not None
    slower = 0.0
    for _ in range(ROUNDS):
        times = pipeline.times.slower(slower)
        scaled = RecordedPipeline(pipeline.workload, times, pipeline.beginning, by_ratio=pipeline.by_ratio)
        found = scaled.replay(BUILTIN[name], policy)
        assert found.figures is not None
        slower += (pace - found.figures.pace_ms) / pipeline.times.forward_terms[0]
    figures = found.figures
    assert figures is not None
    first_token = figures.first_token_p50_ms
    return Figures.of(history_of(found.run), first_token, figures.pace_ms, unsure=figures.is_saturated)


def table(
    case: str, traces: Path, versions: Sequence[str], runs: int, *, at_pace: bool
) -> Iterator[list[str]]:
    """The rows of one configuration."""
    base = recorded(traces / f"{versions[0]}-{case}-1.fdtrace")
    for version in versions:
        ran = [
            recorded(path)
            for run in range(1, runs + 1)
            if (path := traces / f"{version}-{case}-{run}.fdtrace").exists()
        ]
        if not ran:
            continue
        for run, figures in enumerate(ran, 1):
            beside = base if version == versions[0] and run > 1 else None
            yield [case, version, f"ran ({run})" if len(ran) > 1 else "ran", *figures.cells(beside)]
        found = predicted(traces / f"{versions[0]}-{case}-1.fdtrace", version)
        yield [case, version, "**predicted**", *found.cells(ran[0])]
        if at_pace:
            found = predicted_at_pace(traces / f"{versions[0]}-{case}-1.fdtrace", version, ran[0].pace)
            yield [case, version, "predicted at its pace", *found.cells(ran[0])]


def main() -> None:
    """Record what is missing, and print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("versions", nargs="+", metavar="VERSION=CHECKOUT")
    parser.add_argument("--traces", type=Path, help="keep the recordings here, and take those that are there")
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="only these configurations")
    parser.add_argument("--runs", type=int, default=2, help="how often the first version runs (default 2)")
    parser.add_argument(
        "--seed", type=int, default=BASE["seed"], help="of the requests and their times (default 3)"
    )
    parser.add_argument("--kept", action="store_true", help="only the recordings that are there")
    parser.add_argument("--at-pace", action="store_true", help="predict again at the pace of the real run")
    options = parser.parse_args()
    checkouts = dict(one.split("=", 1) for one in options.versions)
    versions = list(checkouts)
    print("| configuration | version | | forwards | over the limit | peak tokens | preempted | stalled rows "
          "| time to first token p50, ms | ms a step |")  # fmt: skip
    print("|---" * 10 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        traces = options.traces or Path(scratch)
        traces.mkdir(exist_ok=True)
        for name in options.case or CASES:
            case = Path(scratch) / f"{name}.json"
            case.write_text(json.dumps(BASE | CASES[name] | {"seed": options.seed}))
            for version in versions:
                for run in range(1, options.runs + 1 if version == versions[0] else 2):
                    trace = traces / f"{version}-{name}-{run}.fdtrace"
                    if not trace.exists() and not options.kept:
                        record(trace, checkouts[version], case, SECONDS)
            for cells in table(name, traces, versions, options.runs, at_pace=options.at_pace):
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
