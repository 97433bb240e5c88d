"""Which explainer belongs to a replay: a step is explained by the way in which it was replayed."""

from __future__ import annotations

from collections.abc import Callable

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_ordered import OrderedExplainer
from fdtrace.replayer.analysis.explain_pipeline import PipelineExplainer
from fdtrace.replayer.analysis.explain_step import Explainer
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas import Formula
from fdtrace.replayer.history.history import Order
from fdtrace.replayer.workload.workload import Workload


def explainer_of(
    order: Order | None,
    recording: Recording,
    workload: Callable[[], Workload],
    formula: Formula,
    policy: Policy,
) -> Explainer:
    """An explainer for the steps of a rescheduled replay.

    Args:
        order: how its calls and forwards followed each other (`Outcome.order`).
        recording: the recording that it replays.
        workload: gives the recorded requests; called when a step is explained.
        formula, policy: what scheduled it.
    """
    if order == "recorded":
        return OrderedExplainer(recording, workload, formula, policy)
    if order == "pipeline":
        return PipelineExplainer(recording, workload, formula, policy)
    return Explainer(workload, formula, policy)
