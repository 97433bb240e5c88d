"""`fdtrace.simulate`: a workload without a trace, under formulas."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fdtrace.formula_texts import DEFAULT, FormulaLike, as_formulas
from fdtrace.library.named_runs import NamedRuns
from fdtrace.library.replay_variants import VariantsLike, parsed_variants
from fdtrace.library.result_table import ResultTable
from fdtrace.library.run_waits import RunWaits, table_of_waits
from fdtrace.recorder.errors import FdtraceError, UsageError
from fdtrace.replayer import Policy, Workload, golden_line, parse_policy, workload_from_case
from fdtrace.simulate_variant import checked_variant, simulate_variant
from fdtrace.simulated_trace import check_may_be_written, write_simulated
from fdtrace.simulation_result import SimulationResult
from fdtrace.variants import Variant, refuse_equal_names, variants_of
from fdtrace.workload_file import read_case

COUNTED = ("preempted", "extended", "stalled", "aborted", "finished")
"""Lists of a step's line. A table shows their lengths."""


class SimulatedRun:
    """The simulation of a workload under one formula. `SimulatedRuns` holds them by name."""

    def __init__(self, simulated: SimulationResult, lines: Sequence[Mapping[str, Any]]) -> None:
        self._simulated, self._lines = simulated, lines

    @property
    def name(self) -> str:
        """The formula's name."""
        return self._simulated.name

    @property
    def limit(self) -> int:
        """Tokens that a step may run: `max_num_batched_tokens`."""
        return self._simulated.limit

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """What each step decided: a dictionary for each step, as `fdtrace simulate --decisions` writes it."""
        return [dict(line) for line in self._lines]

    @property
    def steps(self) -> ResultTable:
        """Its steps, one row each: `step`, `num_tokens`, `num_running`, `num_waiting`, `num_free_blocks` and the
        numbers of requests `num_preempted`, `num_extended`, `num_stalled`, `num_aborted`, `num_finished`.
        """
        rows = [
            {
                "step": line["step"],
                "num_tokens": line["tokens"],
                "num_running": line["running"],
                "num_waiting": line["waiting"],
                "num_free_blocks": line["free_blocks"],
                **{f"num_{name}": len(line[name]) for name in COUNTED},
            }
            for line in self._lines
        ]
        return ResultTable.of_rows(rows, title=self.name)

    @property
    def exceeded(self) -> ResultTable:
        """The steps over the limit, with `excess_tokens`."""
        rows = [
            {**row, "excess_tokens": row["num_tokens"] - self.limit}
            for row in self.steps
            if row["num_tokens"] > self.limit
        ]
        return ResultTable.of_rows(rows, title=f"{self.name}, exceeded")

    def request(self, request_id: str) -> ResultTable:
        """The steps in which a request ran: `step`, `kind`, `num_tokens`, `num_computed_tokens`.

        Raises:
            UsageError: it ran in no step.
        """
        rows = [
            {"step": line["step"], "kind": kind, "num_tokens": tokens, "num_computed_tokens": computed}
            for line in self._lines
            for name, kind, tokens, computed in line["rows"]
            if name == request_id
        ]
        if not rows:
            raise UsageError(f"request {request_id!r} ran in no step of {self.name}")
        return ResultTable.of_rows(rows, title=f"{request_id} under {self.name}")

    @property
    def waits(self) -> RunWaits:
        """Who waited, how long, for what and behind whom, in steps of the simulation (docs/waiting.md)."""
        return RunWaits(self._simulated.waits)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it as a trace, as `fdtrace simulate -o` does. `fdtrace.open` reads it.

        Raises:
            UsageError: a trace cannot hold this configuration.
            TraceError: something is at the path, or it cannot be written there.
        """
        check_may_be_written(self._simulated.variant)
        write_simulated(Path(path), self._simulated)

    @property
    def sentence(self) -> str:
        """Why it did not come to its end, and how many requests finished. Empty if all of them did."""
        return self._simulated.sentence

    def __repr__(self) -> str:
        figures = self._simulated.figures(self._simulated)
        over = f"{figures['num_exceeded']} of {figures['num_steps']} steps exceed {self.limit} tokens"
        left = f", {self.sentence}" if self.sentence else ""
        return f"<SimulatedRun {self.name}: {over}, by {figures['max_excess']} at most{left}>"


class SimulatedRuns(NamedRuns[SimulatedRun]):
    """Simulations of one workload by the formulas' names, in the order given."""

    def __init__(self, runs: Sequence[SimulatedRun], notes: Sequence[str]) -> None:
        super().__init__(runs)
        self.notes = tuple(notes)
        """What in the workload is ignored or changed."""

    def table(self) -> ResultTable:
        """One row a run, as in `fdtrace simulate --json`: steps over the limit, excess, peak, requests by how they
        ended, the first step that differs from the first run, and `hang`, `cut`, `failure` (None: it did not happen).
        """
        first = next(iter(self._runs.values()))._simulated
        rows = []
        for run in self._runs.values():
            figures = run._simulated.figures(first)
            hang, cut = figures.pop("hang"), figures.pop("cut")
            refused, _ = figures.pop("refused_by_fastdeploy"), figures.pop("waits")
            figures["hang"] = None if hang is None else f"at step {hang['step']}: {hang['cause']}"
            figures["cut"] = None if cut is None else f"at step {cut['step']}"
            figures["refused_by_fastdeploy"] = "; ".join(refused) or None
            rows.append(figures)
        return ResultTable.of_rows(rows, title="simulations")

    def waits(self) -> ResultTable:
        """One row a run: the totals of its waits side by side, as `RunWaits.totals`."""
        return table_of_waits({run.name: run._simulated.waits for run in self._runs.values()})


def simulate(
    workload: Mapping[str, Any] | str | os.PathLike[str],
    formulas: FormulaLike | Sequence[FormulaLike] | None = None,
    *,
    variants: VariantsLike = (),
    policy: str | Policy | None = None,
    max_steps: int | None = None,
    scheduler_python: str = sys.executable,
) -> SimulatedRuns:
    """Schedule a workload with no trace: by the model of FastDeploy's scheduler, or by an engine's real one.

    Args:
        workload: a configuration and its requests as a dictionary, or the path of a JSON file: see docs/simulate.md.
        formulas: as for `replay`. None: the default ones, or none if there are variants.
        variants: as for `replay`, without `arrivals`: texts as `-w` takes them, or by name a mapping of settings and of
            `formula`, `policy`, `scheduler`. Each names a formula or a scheduler.
        policy: the scheduler's version, by its name; None: that of the formula's time.
        max_steps: stop after so many steps; None: the workload's own limit, else as many steps as it can need.
        scheduler_python: a Python that can import the engine whose scheduler a variant asks for.

    Returns:
        A run for each formula and variant.

    Raises:
        UsageError: the workload, a formula or a variant is not valid. It names the place, and what to write instead.
        TargetError: an engine's scheduler cannot be imported.
        FdtraceError: the scheduler would raise an exception.
    """
    case = read_case(Path(workload)) if isinstance(workload, (str, os.PathLike)) else dict(workload)
    loaded = workload_from_case(case, max_steps=max_steps)
    given_policy = parse_policy(policy) if isinstance(policy, str) else policy
    parsed = [checked_variant(variant) for variant in parsed_variants(variants, scheduler_python)]
    plain = as_formulas(formulas if formulas is not None else () if parsed else DEFAULT)
    chosen = [*variants_of(plain, [], [formula.name for formula in plain]), *parsed]
    refuse_equal_names(chosen)
    return SimulatedRuns([_run(loaded, variant, given_policy) for variant in chosen], loaded.notes)


def _run(workload: Workload, variant: Variant, policy: Policy | None) -> SimulatedRun:
    lines: list[dict[str, Any]] = []
    simulated = simulate_variant(workload, variant, policy, lambda step: lines.append(golden_line(step)))
    if simulated.failure:
        raise FdtraceError(f"{variant.name} {simulated.failure}")
    return SimulatedRun(simulated, lines)
