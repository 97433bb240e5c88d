"""Texts that frames hold as numbers: a number is an index into one of these lists."""

NOT_ADMITTED = ("", "budget", "blocks", "slots", "preemption", "cache_read", "safety_margin", "other")

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
)

FINISHED = ("stop", "length", "abort", "error")
