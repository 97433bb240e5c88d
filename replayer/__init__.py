"""The scheduler model, the budget formulas and their comparison: no clock, no files, no terminal."""

from fdtrace.replayer.config import (
    ORIGINAL,
    POLICIES,
    RELEASE_2_6,
    Policy,
    SchedulerConfig,
    is_modelled,
    parse_policy,
)
from fdtrace.replayer.experiment import Experiment, replay_recording, reschedule
from fdtrace.replayer.formulas import (
    BUILTIN,
    VARIABLES,
    Formula,
    Variables,
    formula_from_class,
    parse_formula,
)
from fdtrace.replayer.history.history import Fidelity, Hang, History, Outcome, StepLimitReached
from fdtrace.replayer.history.outcome_figures import outcome_dict
from fdtrace.replayer.model.events import (
    Aborted,
    Arrived,
    Decision,
    Discarded,
    Emitted,
    Event,
    Finished,
    Forward,
    Forwarded,
    Joined,
    Preallocate,
    Ready,
    Reason,
    Recycled,
    Rescheduled,
    Resumed,
    Schedule,
    StepRow,
)
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.model.state import SchedulerFailed
from fdtrace.replayer.replay.replay_history import history_of
from fdtrace.replayer.replay.simulation import Simulation, golden_line
from fdtrace.replayer.replay.workload_replay import Replay, ReplayCancelled
from fdtrace.replayer.workload.from_case import workload_from_case
from fdtrace.replayer.workload.workload import Workload, WorkRequest

__all__ = [
    "BUILTIN",
    "ORIGINAL",
    "POLICIES",
    "RELEASE_2_6",
    "VARIABLES",
    "Aborted",
    "Arrived",
    "Decision",
    "Discarded",
    "Emitted",
    "Event",
    "Experiment",
    "Fidelity",
    "Finished",
    "Formula",
    "Forward",
    "Forwarded",
    "Hang",
    "History",
    "Joined",
    "Outcome",
    "Policy",
    "Preallocate",
    "Ready",
    "Reason",
    "Recycled",
    "Replay",
    "ReplayCancelled",
    "Rescheduled",
    "Resumed",
    "Schedule",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerFailed",
    "Simulation",
    "StepLimitReached",
    "StepRow",
    "Variables",
    "WorkRequest",
    "Workload",
    "formula_from_class",
    "golden_line",
    "history_of",
    "is_modelled",
    "outcome_dict",
    "parse_formula",
    "parse_policy",
    "replay_recording",
    "reschedule",
    "workload_from_case",
]
