"""The scheduler model, the budget formulas and their comparison: no clock, no files, no terminal."""

from fdtrace.replayer.case import workload_from_case
from fdtrace.replayer.compare import history_of, replay, reschedule
from fdtrace.replayer.config import ORIGINAL, POLICIES, RELEASE_2_6, Policy, SchedulerConfig, parse_policy
from fdtrace.replayer.events import (
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
)
from fdtrace.replayer.formulas import (
    BUILTIN,
    VARIABLES,
    Formula,
    Variables,
    formula_from_class,
    parse_formula,
)
from fdtrace.replayer.history import Fidelity, Hang, History, Outcome, StepRow
from fdtrace.replayer.outcome import outcome_dict
from fdtrace.replayer.reschedule import Replay, ReplayCancelled
from fdtrace.replayer.scheduler import Scheduler
from fdtrace.replayer.simulation import Simulation, golden_line
from fdtrace.replayer.state import SchedulerFailed
from fdtrace.replayer.workload import Workload, WorkRequest

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
    "StepRow",
    "Variables",
    "WorkRequest",
    "Workload",
    "formula_from_class",
    "golden_line",
    "history_of",
    "outcome_dict",
    "parse_formula",
    "parse_policy",
    "replay",
    "reschedule",
    "workload_from_case",
]
