"""One run of a workload, watched for faults. It ends with the first one, and says how near the others were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import ORIGINAL, Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.model.state import SchedulerFailed
from fdtrace.replayer.replay.any_scheduler import AnyScheduler
from fdtrace.replayer.replay.simulation import Simulation, Step
from fdtrace.replayer.search.findings import FaultBounds, FaultKind, Finding
from fdtrace.replayer.search.watched_formula import WatchedFormula
from fdtrace.replayer.workload.workload import Workload

BOUNDS = FaultBounds()
NEARLY = 0.99
"""The upper limit of `ProbeResult.near` for a fault that did not occur."""


@dataclass
class ProbeResult:
    """What one run showed.

    `near` says for each kind how near the run came to it, from 0 to 1: a search keeps what comes nearer. `num_steps`
    are those that ran, up to the finding.
    """

    finding: Finding | None = None
    near: dict[FaultKind, float] = field(default_factory=dict)
    num_steps: int = 0
    num_preemptions: int = 0
    peak_tokens: int = 0
    least_free_blocks: int = 0
    cut: bool = False
    """Whether the limit of steps ended it."""


def probe(
    workload: Workload,
    by: Formula | AnyScheduler,
    policy: Policy = ORIGINAL,
    kinds: Sequence[FaultKind] = (),
    bounds: FaultBounds = BOUNDS,
    *,
    max_steps: int | None = None,
) -> ProbeResult:
    """Run a workload up to its first fault of these kinds, or to its end.

    Args:
        workload: what is scheduled.
        by: a formula, for the model; or a scheduler.
        policy: the version that the model follows.
        kinds: the faults that end the run.
        bounds: of the kinds that have one.
        max_steps: the most steps; None: the workload's.

    Returns:
        The finding, if there is one, and how near the run came to the others. A hang always ends a run; it is the
        finding if its kind is among `kinds`.
    """
    return _Probe(workload, by, policy, kinds, bounds).run(max_steps or workload.max_steps)


class _Computed(WatchedFormula):
    """A formula that raises SchedulerFailed where it cannot be computed: an engine's call would raise there."""

    def compute(self, ask: Callable[[], int]) -> int:
        try:
            return ask()
        except UsageError as error:
            raise SchedulerFailed(error.what) from None


class _Probe:
    def __init__(
        self,
        workload: Workload,
        by: Formula | AnyScheduler,
        policy: Policy,
        kinds: Sequence[FaultKind],
        bounds: FaultBounds,
    ) -> None:
        self.workload, self.kinds, self.bounds = workload, kinds, bounds
        self.limit = workload.config.max_num_batched_tokens
        watches_order = "starved" in kinds and workload.config.role == "mixed"
        by = _Computed(by) if isinstance(by, Formula) else by
        self.simulation = Simulation(workload, by, policy, with_rows=watches_order)
        self.overtaken = _Overtaken(workload) if watches_order else None
        self.probed = ProbeResult(least_free_blocks=workload.config.num_blocks)
        self.preempted: Counter[str] = Counter()
        self.preempted_since_gain = self.withheld_steps = 0

    def run(self, max_steps: int) -> ProbeResult:
        """Step until something is found, or nothing is left to run."""
        simulation, probed = self.simulation, self.probed
        while simulation.step < max_steps and not simulation.done:
            try:
                step = simulation.run_step()
            except SchedulerFailed as failure:
                if "fails" in self.kinds:
                    probed.finding = Finding("fails", simulation.step, f"the scheduler raises: {failure}")
                break
            probed.num_steps = simulation.step
            probed.finding = self._look(step)
            if probed.finding is not None or simulation.hang is not None:
                break
        probed.cut = probed.finding is None and not simulation.done and simulation.step >= max_steps
        return probed

    def _look(self, step: Step) -> Finding | None:
        """The first fault of this step, and the nearness of all."""
        tokens = step.forward.num_tokens
        probed = self.probed
        probed.peak_tokens = max(probed.peak_tokens, tokens)
        probed.least_free_blocks = min(probed.least_free_blocks, step.decision.num_free_blocks)
        if tokens > self.limit and "exceeded" in self.kinds:
            excess = tokens - self.limit
            text = f"step {step.number} runs {tokens} tokens, {excess} over the limit of {self.limit}"
            return Finding("exceeded", step.number, text, excess)
        self._near("exceeded", tokens / self.limit)
        return self._hang(step) or self._starved(step) or self._preemptions(step) or self._withheld(step)

    def _near(self, kind: FaultKind, nearness: float) -> None:
        self.probed.near[kind] = max(self.probed.near.get(kind, 0.0), min(nearness, NEARLY))

    def _hang(self, step: Step) -> Finding | None:
        decision, forward, config = step.decision, step.forward, self.workload.config
        hang = self.simulation.hang
        if hang is not None:
            goes_round = bool(forward.num_tokens or decision.preempted or decision.extended)
            held = step.num_asking > 0 and step.num_preallocated > 0 and not decision.num_running
            kind: FaultKind = "livelock" if goes_round and decision.preempted else "held" if held else "hang"
            text = f"it hangs at step {hang.step}: {hang.cause}"
            return Finding(kind, hang.step, text) if kind in self.kinds else None
        if decision.num_running:
            stalled = len(forward.stalled) / decision.num_running
            full = decision.num_running / config.max_num_seqs
            spent = self.simulation.scheduler.explains and decision.token_budget <= 0
            near = 0.5 * stalled + 0.25 * decision.is_empty * (stalled > 0) + 0.1 * full + 0.1 * spent
            self._near("hang", near)
        if step.num_asking:
            self._near("held", step.num_preallocated_blocks / config.num_blocks)
        self._near("fails", 0.9 * (1 - decision.num_free_blocks / config.num_blocks))
        gains = forward.num_decodes or forward.started or forward.finished
        self.preempted_since_gain = 0 if gains else self.preempted_since_gain + len(decision.preempted)
        self._near("livelock", max(self.preempted_since_gain / 4, self._preempts_itself(step)))
        return None

    def _preempts_itself(self, step: Step) -> float:
        """A request that is preempted though nothing else runs is near a livelock; nearer if it has no output yet."""
        preempted = step.decision.preempted
        if not preempted or step.decision.num_running or self.workload.config.role == "decode":
            return 0.1 if preempted else 0.0
        return 0.5 if self.simulation.scheduler.num_output_tokens_of(preempted[0]) else 0.8

    def _starved(self, step: Step) -> Finding | None:
        if self.overtaken is None:
            return None
        name, steps = self.overtaken.after(step)
        self._near("starved", steps / (self.bounds.starved_steps + 1))
        if steps <= self.bounds.starved_steps:
            return None
        text = f"{name} ran nothing in {steps} steps in a row, up to step {step.number}, in which later requests ran"
        return Finding("starved", step.number, text, steps)

    def _preemptions(self, step: Step) -> Finding | None:
        preempted = step.decision.preempted
        if not preempted:
            return None
        self.probed.num_preemptions += len(preempted)
        self.preempted.update(preempted)
        name, times = max(((name, self.preempted[name]) for name in preempted), key=lambda pair: pair[1])
        self._near("preempted", times / (self.bounds.preemptions + 1))
        if times <= self.bounds.preemptions or "preempted" not in self.kinds:
            return None
        return Finding(
            "preempted", step.number, f"{name} is preempted {times} times by step {step.number}", times
        )

    def _withheld(self, step: Step) -> Finding | None:
        wasted = min(self._held_back(step), self.limit - step.forward.num_tokens)
        self.withheld_steps = self.withheld_steps + 1 if 2 * wasted > self.limit else 0
        self._near("withheld", self.withheld_steps / (self.bounds.withheld_steps + 1))
        if self.withheld_steps <= self.bounds.withheld_steps or "withheld" not in self.kinds:
            return None
        text = (
            f"in {self.withheld_steps} steps in a row, up to step {step.number}, more than half of the limit of "
            f"{self.limit} stays free, and prompts that would have fitted wait for budget: step {step.number} runs "
            f"{step.forward.num_tokens} tokens with a budget of {step.decision.token_budget}"
        )
        return Finding("withheld", step.number, text, self.withheld_steps)

    def _held_back(self, step: Step) -> int:
        """Prompt tokens that the budget kept out of this step. 0 for a scheduler that does not say."""
        scheduler, decision = self.simulation.scheduler, step.decision
        if not isinstance(scheduler, Scheduler):
            return 0
        left = sum(
            scheduler.num_prefill_tokens_of(name) - end
            for name, _, end in decision.chunks
            if name in scheduler
        )
        head = scheduler.head_of_queue
        if decision.not_admitted != "budget" or head is None:
            return left
        whole = not self.workload.config.chunked_prefill
        return left + (0 if whole and head[1] > self.limit - step.forward.num_tokens else head[1])


class _Overtaken:
    """Counts, for each request, the steps in a row in which it ran nothing while a later one ran."""

    def __init__(self, workload: Workload) -> None:
        self.requests = workload.requests
        self.rank = {request.request_id: i for i, request in enumerate(workload.requests)}
        self.next = 0
        self.steps: dict[str, int] = {}
        """Requests that have arrived and not ended, in order of arrival -> those steps."""

    def after(self, step: Step) -> tuple[str, int]:
        """The request that was overtaken longest, with its steps in a row up to this one."""
        while self.next < len(self.requests) and self.requests[self.next].arrival <= step.number:
            self.steps[self.requests[self.next].request_id] = 0
            self.next += 1
        ran = {row.request_id for row in step.rows or ()}
        last = max((self.rank[name] for name in ran), default=-1)
        longest = ("", 0)
        for name, steps in self.steps.items():
            self.steps[name] = 0 if name in ran or self.rank[name] > last else steps + 1
            longest = max(longest, (name, self.steps[name]), key=lambda pair: pair[1])
        for name in (
            *step.forward.finished,
            *step.decision.aborted,
            *(name for name, _ in step.decision.errors),
        ):
            self.steps.pop(name, None)
        return longest
