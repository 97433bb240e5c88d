"""The scheduler model, the budget formulas and their comparison: no clock, no files, no terminal."""

from replayer.config import ORIGINAL, POLICIES, RELEASE_2_6, Policy, SchedulerConfig, parse_policy
from replayer.events import (
    Aborted,
    Arrived,
    Decision,
    Emitted,
    Event,
    Finished,
    Forward,
    Forwarded,
    Ready,
    Reason,
    Recycled,
    Rescheduled,
    Resumed,
    Schedule,
)
from replayer.scheduler import Scheduler

__all__ = [
    "ORIGINAL",
    "POLICIES",
    "RELEASE_2_6",
    "Aborted",
    "Arrived",
    "Decision",
    "Emitted",
    "Event",
    "Finished",
    "Forward",
    "Forwarded",
    "Policy",
    "Ready",
    "Reason",
    "Recycled",
    "Rescheduled",
    "Resumed",
    "Schedule",
    "Scheduler",
    "SchedulerConfig",
    "parse_policy",
]
