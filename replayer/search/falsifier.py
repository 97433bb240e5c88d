"""The search itself: draws cases, runs them, keeps those that come nearest to a fault, and changes them.

The i-th run of a seed depends on nothing but the seed, i, and the nearest cases before its batch. So two searches with
one seed are the same, a search can be saved and taken up again, and processes can share the runs of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.search.draw_case import RandomSource, SearchCase, SearchSpace, drawn_case
from fdtrace.replayer.search.findings import HARD, FaultBounds, FaultKind, Finding
from fdtrace.replayer.search.mutate_case import mutated_case
from fdtrace.replayer.search.probing import ProbeResult, probe
from fdtrace.replayer.workload.from_case import workload_from_case
from fdtrace.replayer.workload.startup_checks import refusals
from fdtrace.replayer.workload.workload import Workload

MOST_STEPS = 3000
"""Steps of one run: small workloads end sooner, or hang."""
MOST_KEPT = 12
"""Cases kept for each kind of fault."""
SHARE_FRESH = 0.5
"""Share of the runs that draw a new case, where cases to change are kept."""
SIZES = ("max_num_batched_tokens", "max_num_seqs", "num_blocks", "block_size", "max_model_len")
BATCH = 64
"""Runs whose cases are drawn at once."""


@dataclass(frozen=True)
class CaseOutcome:
    """What one run of a case showed, and the sizes of the case."""

    probed: ProbeResult
    sizes: Mapping[str, int]
    speculation: bool


@dataclass
class SearchCoverage:
    """What a search has tried, in figures: it proves nothing about the rest."""

    num_runs: int = 0
    num_refused: int = 0
    """Drawn cases that FastDeploy's own checks refuse: they are not run."""
    num_steps: int = 0
    num_cut: int = 0
    with_drafts: int = 0
    with_preemptions: int = 0
    out_of_blocks: int = 0
    """Runs in which no block was free after a call."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size -> the least and the largest that was run."""
    nearest: dict[FaultKind, float] = field(default_factory=dict)

    def count(self, outcome: CaseOutcome) -> None:
        """Count one run."""
        probed = outcome.probed
        self.num_runs += 1
        self.num_steps += probed.num_steps
        self.num_cut += probed.cut
        self.with_drafts += outcome.speculation
        self.with_preemptions += probed.num_preemptions > 0
        self.out_of_blocks += probed.least_free_blocks == 0
        for name, value in outcome.sizes.items():
            least, largest = self.sizes.get(name, (value, value))
            self.sizes[name] = (min(least, value), max(largest, value))
        for kind, nearness in probed.near.items():
            self.nearest[kind] = max(self.nearest.get(kind, 0.0), nearness)


@dataclass
class SearchTarget:
    """What is searched: a formula and a policy of the model; the kinds of faults, and their bounds."""

    formula: Formula
    policy: Policy
    kinds: tuple[FaultKind, ...]
    bounds: FaultBounds
    allow_refused: bool = False
    max_steps: int | None = MOST_STEPS
    """The most steps of a run whose case sets no limit; None: as many as its requests can need."""
    cause: str = ""
    """Only findings whose sentence holds this text count."""
    run_by: Callable[[Workload], ProbeResult] | None = None
    """Runs a workload by another scheduler than the model; UsageError where that scheduler refuses it."""

    def workload(self, case: Mapping[str, Any]) -> Workload | None:
        """The workload of a case; None if nobody would serve it."""
        try:
            workload = workload_from_case(case)
        except UsageError:
            return None
        allowed = self.allow_refused or not self.refused(workload)
        return workload if allowed and workload.requests else None

    def refused(self, workload: Workload) -> list[str]:
        """What FastDeploy's own checks refuse of a workload."""
        found = refusals(workload.config, self.formula.name, self.policy, workload.requests)
        return [refusal.text for refusal in found]

    def run(self, workload: Workload) -> ProbeResult | None:
        """One run of it; None: another scheduler refuses it.

        If a fault with a bound comes first, the run is repeated for those without one: a hang is worse than the
        stalls before it.
        """
        probed = self._probed(workload, self.kinds)
        soft = probed is not None and probed.finding is not None and probed.finding.kind not in HARD
        hard = tuple(kind for kind in self.kinds if kind in HARD)
        if soft and hard and self.run_by is None:
            worse = self._probed(workload, hard)
            return worse if worse is not None and worse.finding is not None else probed
        return probed

    def _probed(self, workload: Workload, kinds: tuple[FaultKind, ...]) -> ProbeResult | None:
        most = self.max_steps if workload.case is None or "max_steps" not in workload.case else None
        try:
            if self.run_by is not None:
                probed = self.run_by(workload)
            else:
                probed = probe(workload, self.formula, self.policy, kinds, self.bounds, max_steps=most)
        except UsageError:
            return None
        if probed.finding is not None and self.cause not in probed.finding.text:
            probed.finding = None
        return probed

    def outcome(self, case: Mapping[str, Any]) -> CaseOutcome | None:
        """What a run of a case shows; None: it is refused, or nobody would serve it."""
        workload = self.workload(case)
        probed = None if workload is None else self.run(workload)
        if workload is None or probed is None:
            return None
        config = workload.config
        sizes = {name: getattr(config, name) for name in SIZES}
        sizes["requests"], sizes["K"] = len(workload.requests), config.num_draft_tokens
        return CaseOutcome(probed, sizes, config.speculation)

    def shows(self, case: Mapping[str, Any]) -> Finding | None:
        """The first fault that a case shows; None: it shows none, or nobody would serve it."""
        workload = self.workload(case)
        probed = None if workload is None else self.run(workload)
        return None if probed is None else probed.finding

    def same_as(
        self, case: Mapping[str, Any], finding: Finding
    ) -> Callable[[Mapping[str, Any]], Finding | None]:
        """A function like `shows`, which knows only the fault of a case: the same kind with the same cause."""
        wanted, one = signature(case, finding), replace(self, kinds=(finding.kind,))

        def shows(other: Mapping[str, Any]) -> Finding | None:
            found = one.shows(other)
            return found if found is not None and signature(other, found) == wanted else None

        return shows


def signature(case: Mapping[str, Any], finding: Finding) -> str:
    """What two cases with the same fault have in common."""
    return finding.signature(str(request.get("id", f"r{i}")) for i, request in enumerate(case["requests"]))


@dataclass(frozen=True)
class FaultyCase:
    """A case, and the fault that it shows."""

    case: SearchCase
    finding: Finding


Kept = dict[FaultKind, list[tuple[float, SearchCase]]]
"""The cases that came nearest to each kind of fault, the nearest first."""


class Falsifier:
    """One search. `step` runs one case; `state` is all that a later search needs to go on.

    To share the runs among processes, take cases from `draw`, run each by `SearchTarget.outcome`, and give the outcomes
    to `take` in the order of the cases.
    """

    def __init__(
        self,
        target: SearchTarget,
        space: SearchSpace,
        chance_of: Callable[[int], RandomSource],
        first_run: int = 0,
    ) -> None:
        self.target, self.space = target, space
        self.covered = SearchCoverage()
        self.next_run = first_run
        """The number of the next run whose outcome is to be taken."""
        self._chance_of = chance_of
        self._kept: Kept = {}
        self._before: Kept = {}
        """The kept cases before this batch: its cases are drawn from them."""

    def step(self) -> FaultyCase | None:
        """Draw or change one case, and run it. Returns the case if it shows a fault, else None."""
        case = self.case_of(self.next_run)
        return self.take(case, self.target.outcome(case))

    def draw(self) -> list[SearchCase]:
        """The cases of this batch whose outcomes have not been taken."""
        end = (self.next_run // BATCH + 1) * BATCH
        return [self.case_of(run) for run in range(self.next_run, end)]

    def case_of(self, run: int) -> SearchCase:
        """The case of a run of this batch."""
        chance = self._chance_of(run)
        kinds = [kind for kind in self.target.kinds if self._before.get(kind)]
        if not kinds or chance.random() < SHARE_FRESH:
            return drawn_case(chance, self.space)
        _, case = chance.choice(self._before[chance.choice(kinds)])
        return mutated_case(chance, case, self.space)

    def take(self, case: SearchCase, outcome: CaseOutcome | None) -> FaultyCase | None:
        """Count the outcome of the next run (None: the case was refused). The case, if it shows a fault."""
        self.next_run += 1
        found = None
        if outcome is None:
            self.covered.num_refused += 1
        else:
            self.covered.count(outcome)
            if outcome.probed.finding is not None:
                found = FaultyCase(case, outcome.probed.finding)
            else:
                self._keep(case, outcome.probed)
        if self.next_run % BATCH == 0:
            self._before = {kind: list(entries) for kind, entries in self._kept.items()}
        return found

    def _keep(self, case: SearchCase, probed: ProbeResult) -> None:
        for kind in self.target.kinds:
            nearness = probed.near.get(kind, 0.0)
            kept = self._kept.setdefault(kind, [])
            if nearness > 0 and (len(kept) < MOST_KEPT or nearness > kept[-1][0]):
                kept.append((nearness, case))
                kept.sort(key=lambda pair: -pair[0])
                del kept[MOST_KEPT:]

    def state(self) -> dict[str, Any]:
        """The number of the next run and the kept cases, ready for JSON."""
        return {"next_run": self.next_run, "kept": _plain(self._kept), "before": _plain(self._before)}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`. UsageError if it is none."""
        try:
            self.next_run = int(state["next_run"])
            self._kept, self._before = _kept_of(state["kept"]), _kept_of(state["before"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(
                "this is no state of a search", why="it lacks the number of the next run, or the kept cases"
            ) from None


def _plain(kept: Kept) -> dict[str, list[list[Any]]]:
    return {kind: [[nearness, case] for nearness, case in entries] for kind, entries in kept.items()}


def _kept_of(plain: Mapping[FaultKind, Sequence[Sequence[Any]]]) -> Kept:
    return {
        kind: [(float(nearness), dict(case)) for nearness, case in entries] for kind, entries in plain.items()
    }
