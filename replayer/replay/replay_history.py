"""The history of a replay that has been run."""

from __future__ import annotations

from functools import partial

from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.outcome_figures import NOT_ASKED, MemoryQuestion, outcome_of
from fdtrace.replayer.replay.deployment_replay import DeploymentReplay
from fdtrace.replayer.replay.pipeline import PipelineReplay
from fdtrace.replayer.replay.replayed_lives import lives_of, moments_of
from fdtrace.replayer.replay.workload_replay import Replay


def history_of(
    run: Replay | DeploymentReplay | PipelineReplay, memory: MemoryQuestion = NOT_ASKED
) -> History:
    """The history of a replay that has been run."""
    columns = memory.with_memory(run.log.columns())
    limit = run.workload.config.max_num_batched_tokens
    outcome = outcome_of(
        columns,
        limit,
        num_refused_tokens=int(columns["num_refused_tokens"].sum()) if run.scheduler.explains else None,
        num_unfinished=run.num_unfinished,
        hang=run.hang,
        cut=run.cut,
        clock=None if run.order == "pipeline" else run.workload.clock,
        order=run.order,
        memory=memory,
    )
    reader = run.log.reader()
    name = run.scheduler.name
    lives = partial(lives_of, run.workload, reader, moments_of(run))
    return History(name, "rescheduled", limit, columns, outcome, reader, reader.request_steps, lives)
