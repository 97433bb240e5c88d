"""The replays of `fdtrace.replay` in worker processes: each is sent the recording, and what the program gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fdtrace.formula_texts import DEFAULT, FormulaLike
from fdtrace.library.replay_variants import VariantReplayer, VariantsLike, chosen_variants
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replay_workers import SentHistory, SubmittedReplays, num_replay_processes, sent_history
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas import Formula
from fdtrace.replayer.history.history import History
from fdtrace.replayer.workload.workload import Workload
from fdtrace.variants import Variant
from fdtrace.worker_processes import NotSendableError, WorkerProcesses, report_share


@dataclass(frozen=True)
class ReplayOrder:
    """What a worker is to replay: a formula or a variant as the program gave it, and the entry of its share."""

    number: int
    formula: str | type | None
    variant: str | tuple[str, Mapping[str, Any]] | None


class OnlyHereError(Exception):
    """A formula is an object of the program: a copy of it might decide otherwise."""


class _Unsent:
    """A task that stays in this process."""

    def __reduce__(self) -> Any:
        raise OnlyHereError


def replay_orders(
    formulas: FormulaLike | Sequence[FormulaLike] | None, variants: VariantsLike
) -> list[ReplayOrder | _Unsent]:
    """What is sent for each of `chosen_variants`, in its order."""
    named: Sequence[Any] = list(variants.items()) if isinstance(variants, Mapping) else (
        [variants] if isinstance(variants, str) else list(variants)
    )  # fmt: skip
    given: Any = formulas if formulas is not None else () if named else DEFAULT
    plain = [given] if isinstance(given, (str, Formula, type)) else list(given)
    return [
        *(
            ReplayOrder(i, value, None) if isinstance(value, (str, type)) else _Unsent()
            for i, value in enumerate(plain)
        ),
        *(
            ReplayOrder(i, None, value) if _is_plain(value) else _Unsent()
            for i, value in enumerate(named, len(plain))
        ),
    ]


def _is_plain(variant: str | tuple[str, Mapping[str, Any]]) -> bool:
    if isinstance(variant, str):
        return True
    plain = (str, int, float, bool, type, Policy, type(None))
    return all(isinstance(value, plain) for value in variant[1].values())


class RecordingWorker:
    """The replays of one recording in a worker process."""

    def __init__(
        self,
        recording: Recording,
        policy: Policy | None,
        clock: Literal["steps", "time"] | None,
        device_bytes: int | None,
        slo: str | None,
        python: str,
        timed: bool,
    ) -> None:
        self.replayer = VariantReplayer(recording, (), clock, device_bytes, slo, timed=timed)
        self.policy, self.python = policy, python

    def variant(self, order: ReplayOrder) -> Variant:
        """What is replayed."""
        formulas = () if order.formula is None else order.formula
        variants = () if order.variant is None else order.variant
        given: Any = dict([variants]) if isinstance(variants, tuple) and variants else variants
        (variant,) = chosen_variants(self.replayer.recording, formulas, given, self.python)
        return variant

    def close(self) -> None:
        """End the processes of engines' schedulers."""
        self.replayer.children.close()


def replayed_order(worker: RecordingWorker, order: ReplayOrder) -> SentHistory:
    """A worker's task."""
    variant = worker.variant(order)

    def progressed(done: int, expected: int) -> None:
        report_share(order.number, done / max(expected, 1))

    history = worker.replayer.reschedule(variant, worker.policy, progressed)
    return sent_history(history, worker.replayer.experiment(variant).workload)


def histories_beside(
    replayer: VariantReplayer,
    chosen: Sequence[Variant],
    orders: Sequence[ReplayOrder | _Unsent],
    policy: Policy | None,
    jobs: int | None,
    *settings: Any,
) -> list[History] | None:
    """The replays of `chosen`, in worker processes; None: they do not pay, and are to be computed in this one.

    Args:
        replayer: that of this process.
        chosen: what is replayed.
        orders: what is sent for each.
        policy: that of the program.
        jobs: how many processes at most; None: so many as pay.
        settings: arguments of `RecordingWorker` between the policy and `timed`.

    Raises:
        FdtraceError: what the first replay raises that fails.
    """
    is_real = [variant.scheduler is not None for variant in chosen]
    count = num_replay_processes(jobs, replayer.recording.num_steps, is_real)
    if not count:
        return None
    arguments = (replayer.recording, policy, *settings, replayer.timing is not None)
    try:
        workers = WorkerProcesses(count, RecordingWorker, *arguments, num_shares=len(chosen))
    except NotSendableError:
        return None

    def here(i: int) -> History:
        return replayer.reschedule(chosen[i], policy)

    def workload(i: int) -> Workload:
        return replayer.experiment(chosen[i]).workload

    with workers:
        return SubmittedReplays(workers, replayed_order, orders).histories(here, workload, lambda *_: None)
