"""Texts that frames hold as numbers: a number is an index into one of these lists."""

NOT_ADMITTED = (
    *("", "budget", "blocks", "slots", "preemption", "cache_read", "safety_margin", "other"),
    *("input_budget", "watermark", "padding", "throttle", "deferred", "paused"),
)
"""Why the head of the waiting queue was not admitted. `docs/trace.md` explains each. The list grows at its end only."""

OTHER = NOT_ADMITTED.index("other")
"""The code of a reason that is not in the list."""

EVENTS = (
    "arrived",
    "skipped",
    "preempted",
    "rescheduled",
    "extended",
    "stalled",
    "aborted",
    "finished",
    "error",
    "attached",
    "detached",
    "lost",
    "switched_off",
    "preallocated",
    "joined",
    "discarded",
    "queued",
    "abort_wanted",
    "requeued",
    "left",
    "freed",
    "recycled",
    "output_cached",
    "found",
    "exceeded",
    "checkpoint",
)

FINISHED = ("stop", "length", "abort", "error")
