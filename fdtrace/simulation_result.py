"""The result of one simulation: its row of the table, its figures for programs, its sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fdtrace.replayer.analysis.wait_figures import waits_dict
from fdtrace.simulated_log import SimulatedLog

if TYPE_CHECKING:
    from rich.console import Console

    from fdtrace.replayer.analysis.waiting import Waits
    from fdtrace.replayer.config import Policy
    from fdtrace.replayer.replay.simulation import Simulation, Step
    from fdtrace.replayer.workload.workload import Workload
    from fdtrace.variants import Variant

TABLE_COLUMNS = ("over", "by", "peak", "steps", "finished", "preempted", "stalls", "departs", "ends")


class SimulationResult:
    """Counts what a simulation did. It keeps a hash of each step's decision, to find where two simulations differ."""

    def __init__(
        self, variant: Variant, simulation: Simulation, policy: Policy | None, refused: Sequence[str] = ()
    ) -> None:
        """`policy`: the version of the model; None: an engine's real scheduler. `refused`: what FastDeploy refuses."""
        self.variant, self.name, self.policy = variant, variant.name, policy
        self.simulation, self.refused = simulation, list(refused)
        self.log = SimulatedLog(simulation.workload)
        self.limit = simulation.workload.config.max_num_batched_tokens
        self.failure = ""
        self._lines: list[int] = []
        self._tokens: list[int] = []
        self._preempted: list[int] = []
        self._stalled: list[int] = []

    def add(self, step: Step, line: str) -> None:
        """Count one step, and keep it; `line` is its decision as text."""
        self._lines.append(hash(line))
        self._tokens.append(step.forward.num_tokens)
        self._preempted.append(len(step.decision.preempted))
        self._stalled.append(len(step.forward.stalled))
        self.log.add(step)

    @property
    def waits(self) -> Waits:
        """Who waited in the steps up to its end."""
        return self.log.waits(self.name, self.num_steps)

    @property
    def num_steps(self) -> int:
        """Steps up to its end. Of a hang only the steps before it count: how long it was observed means nothing."""
        hang = self.simulation.hang
        return len(self._lines) if hang is None else min(hang.step, len(self._lines))

    @property
    def tokens(self) -> list[int]:
        """Tokens of these steps."""
        return self._tokens[: self.num_steps]

    @property
    def excess(self) -> list[int]:
        """The tokens over the limit, of each step that exceeds it."""
        return [n - self.limit for n in self.tokens if n > self.limit]

    @property
    def num_preempted(self) -> int:
        """Preemptions in these steps."""
        return sum(self._preempted[: self.num_steps])

    @property
    def num_stalled(self) -> int:
        """Stalls in these steps."""
        return sum(self._stalled[: self.num_steps])

    def departs_from(self, other: SimulationResult) -> int | None:
        """The first step that differs from another simulation; None: no step does."""
        lines, other_lines = self._lines[: self.num_steps], other._lines[: other.num_steps]
        for step, (line, other_line) in enumerate(zip(lines, other_lines, strict=False)):
            if line != other_line:
                return step
        return None if len(lines) == len(other_lines) else min(len(lines), len(other_lines))

    @property
    def is_bad(self) -> bool:
        """Whether it did not reach the end of the workload."""
        return bool(self.failure or self.simulation.hang or self.simulation.cut)

    @property
    def sentence(self) -> str:
        """Why it did not reach its end, and how many requests finished; empty if all of them did."""
        hang, cut = self.simulation.hang, self.simulation.cut
        clauses = [self.failure] if self.failure else []
        if hang is not None:
            clauses.append(f"hangs at step {hang.step}: {hang.cause}")
        if cut is not None:
            clauses.append(f"is {cut.text}; --max-steps N sets the limit")
        total, finished = len(self.simulation.workload.requests), self.simulation.num_finished
        if finished < total:
            clauses.append(f"finished {finished} of {total} requests{self._aborted_and_failed()}")
        return "; ".join(clauses)

    def _aborted_and_failed(self) -> str:
        counts = ((self.simulation.num_aborted, "aborted"), (self.simulation.num_failed, "failed"))
        text = ", ".join(f"{count} {status}" for count, status in counts if count)
        return f" ({text})" if text else ""

    def _ends(self) -> str:
        hang, cut = self.simulation.hang, self.simulation.cut
        if self.failure:
            return "FAILS"
        if hang is not None:
            return f"HANGS at {hang.step}"
        if cut is not None:
            return f"CUT at {cut.step}"
        return "refused" if self.refused else "done"

    def cells(self, first: SimulationResult) -> list[str]:
        """Its row of the table."""
        over = self.excess
        step = None if first is self else self.departs_from(first)
        return [
            self.name,
            str(len(over)),
            f"+{max(over)}" if over else "-",
            str(max(self.tokens, default=0)),
            str(self.num_steps),
            f"{self.simulation.num_finished} of {len(self.simulation.workload.requests)}",
            str(self.num_preempted),
            str(self.num_stalled),
            "-" if first is self else "equal" if step is None else f"from step {step}",
            self._ends(),
        ]

    def figures(self, first: SimulationResult) -> dict[str, Any]:
        """Its figures for programs."""
        over = self.excess
        hang, cut, simulation = self.simulation.hang, self.simulation.cut, self.simulation
        return {
            "name": self.name,
            "limit": self.limit,
            "num_steps": self.num_steps,
            "num_exceeded": len(over),
            "max_excess": max(over, default=0),
            "peak_tokens": max(self.tokens, default=0),
            "num_requests": len(simulation.workload.requests),
            "num_finished": simulation.num_finished,
            "num_aborted": simulation.num_aborted,
            "num_failed": simulation.num_failed,
            "num_preemptions": self.num_preempted,
            "num_stalls": self.num_stalled,
            "departs_at": None if first is self else self.departs_from(first),
            "hang": None if hang is None else {"step": hang.step, "cause": hang.cause},
            "cut": None
            if cut is None
            else {
                "step": cut.step,
                "max_steps": cut.max_steps,
                "num_unfinished": cut.num_unfinished,
                "num_to_come": cut.num_to_come,
            },
            "failure": self.failure or None,
            "refused_by_fastdeploy": self.refused,
            "waits": waits_dict(self.waits),
        }


def print_json(workload: Workload, results: Sequence[SimulationResult], errors: Sequence[str]) -> None:
    """Print all results as one JSON object on stdout."""
    print(
        json.dumps(
            {
                "num_requests": len(workload.requests),
                "max_steps": workload.max_steps,
                "notes": list(workload.notes),
                "schedulers": [result.figures(results[0]) for result in results],
                "errors": list(errors),
            }
        )
    )


def print_table(results: Sequence[SimulationResult], console: Console) -> None:
    """Print a row for each result. `departs` compares each with the first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ASCII if not console.is_terminal else box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("scheduler", overflow="fold")
    for name in TABLE_COLUMNS:
        table.add_column(name, justify="right", overflow="fold")
    for result in results:
        table.add_row(*map(Text, result.cells(results[0])))
    console.print(table)
