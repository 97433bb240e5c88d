"""The one schema of a trace: tables and columns with their types, units and meaning.

Everything that writes, reads or documents a trace goes through `TABLES`; `docs/trace.md` is generated from it. A
change of meaning raises `SCHEMA_VERSION`. A column that an engine cannot tell is NULL, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from fdtrace.recorder import schema_views

SCHEMA_VERSION = 2
"""Raised with every change that an older reader would misread. 2: the table `call`."""

STORAGE_VERSION = "v1.5.0"
"""DuckDB's storage version: 1.5 and 2.x both read it (2.0 would write 69, which 1.x cannot)."""

ROW_GROUP_SIZE = 983_040
"""Rows a row group of `step_request`: 8 x DuckDB's 122,880; larger groups compress a step's rows better."""


@dataclass(frozen=True)
class Column:
    """One column: its DuckDB type and what it means, its unit included."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True)
class Table:
    """One table, kept in the order of `order_by`; traces of schema versions before `since` do not have it."""

    name: str
    comment: str
    columns: tuple[Column, ...]
    order_by: tuple[str, ...]
    since: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)


def _table(name: str, comment: str, order_by: str, *columns: tuple[str, str, str], since: int = 1) -> Table:
    return Table(name, comment, tuple(Column(*column) for column in columns), tuple(order_by.split()), since)


TRACE = _table(
    "trace",
    "One row: what wrote this file and how the recording ended.",
    "created_at",
    ("schema_version", "INTEGER", "the schema's version"),
    ("fdtrace_version", "VARCHAR", "the fdtrace that recorded"),
    ("created_at", "TIMESTAMP_NS", "when recording began, UTC"),
    ("ended_at", "TIMESTAMP_NS", "when it ended, UTC; NULL while it records"),
    ("state", "VARCHAR", "`recording`, `complete`, or `recovered` (made by `fdtrace recover`)"),
    (
        "ended_by",
        "VARCHAR",
        "what ended it: `detach`, `interrupt`, `duration`, `steps`, `exit`, `signal 9`, …",
    ),
    ("notes", "VARCHAR", "JSON list of what this recording could not see, and why"),
)

ENGINE = _table(
    "engine",
    "One row a recorded engine (a data-parallel rank).",
    "engine_id",
    ("engine_id", "INTEGER", "number of the engine in this trace, from 0"),
    ("name", "VARCHAR", "`fastdeploy`, `vllm` or `sandbox`"),
    ("version", "VARCHAR", "the engine's own version"),
    ("pid", "INTEGER", "process that schedules"),
    ("host", "VARCHAR", "host name"),
    ("started_at", "TIMESTAMP_NS", "when its recording began, UTC"),
    ("role", "VARCHAR", "`mixed`, `prefill` or `decode`"),
    ("dp_rank", "INTEGER", "data-parallel rank"),
    ("max_num_batched_tokens", "INTEGER", "the scheduler's own limit, tokens a step"),
    ("max_profiled_tokens", "INTEGER", "tokens a step that memory was profiled for at start-up"),
    (
        "num_max_dispatch_tokens_per_rank",
        "INTEGER",
        "expert-parallel dispatch buffer, tokens a rank and step",
    ),
    ("max_num_seqs", "INTEGER", "most sequences that run at once"),
    (
        "num_speculative_tokens",
        "INTEGER",
        "drafts a decode and step (FastDeploy's config holds 1 also without a method)",
    ),
    ("spec_method", "VARCHAR", "speculative method; NULL: no speculation"),
    ("block_size", "INTEGER", "tokens a KV block"),
    ("num_blocks", "INTEGER", "KV blocks of the device"),
    ("max_model_len", "INTEGER", "most tokens of a sequence"),
    ("chunked_prefill", "BOOLEAN", "whether a prompt may be prefilled in chunks"),
    ("prefix_caching", "BOOLEAN", "whether equal prefixes share blocks"),
    (
        "config",
        "VARCHAR",
        "JSON: the rest of the scheduling configuration, and which columns this engine cannot tell",
    ),
    ("env", "VARCHAR", "JSON: the engine's own scheduling variables; never the whole environment"),
)

STEP = _table(
    "step",
    "One row a step: one forward pass that ran at least one token.",
    "engine_id step",
    ("engine_id", "INTEGER", "the engine"),
    ("step", "BIGINT", "number of the forward in this engine; a gap is a loss, see event `lost`"),
    ("ts", "TIMESTAMP_NS", "when the forward began, UTC"),
    ("token_budget", "INTEGER", "tokens the scheduling call could hand out at its start"),
    ("num_scheduled_tokens", "INTEGER", "tokens that the scheduling call counted"),
    ("num_tokens", "INTEGER", "tokens that the forward really ran"),
    ("num_prefill_tokens", "INTEGER", "of these, in prefill chunks"),
    ("num_decode_tokens", "INTEGER", "of these, in decodes, drafts included"),
    ("num_draft_tokens", "INTEGER", "drafts verified"),
    ("num_accepted_tokens", "INTEGER", "drafts accepted"),
    (
        "num_predicted_tokens",
        "INTEGER",
        "tokens launched: predicted (overlap mode) or padded (vLLM); NULL where not told",
    ),
    ("num_running", "INTEGER", "requests in the running queue after scheduling"),
    ("num_running_decodes", "INTEGER", "running requests past their prefill when the scheduling call began"),
    ("num_waiting", "INTEGER", "requests in the waiting queue after scheduling"),
    ("num_preempted", "INTEGER", "requests preempted by the scheduling call"),
    ("num_stalled", "INTEGER", "decodes that did not run: their block table was too short"),
    ("num_free_blocks", "INTEGER", "KV blocks free after scheduling"),
    ("num_blocks", "INTEGER", "KV blocks in all"),
    (
        "not_admitted",
        "VARCHAR",
        "why the head of the waiting queue stayed: `budget`, `blocks`, `slots`, `preemption`; "
        "NULL: nothing waited",
    ),
    (
        "num_missing_blocks",
        "INTEGER",
        "KV blocks that the head of the queue lacked, where `not_admitted` is `blocks`",
    ),
    (
        "reserved_output_blocks",
        "INTEGER",
        "KV blocks that scheduling keeps free for each running request; NULL where it reserves by a ratio or not",
    ),
    (
        "new_token_ratio",
        "DOUBLE",
        "share of the tokens still to come that scheduling keeps KV blocks free for; NULL where it reserves otherwise",
    ),
    (
        "allocated_bytes",
        "BIGINT",
        "framework's allocator, after the forward; of rank 0 where there are several",
    ),
    ("reserved_bytes", "BIGINT", "framework's allocator, after the forward"),
    (
        "peak_allocated_bytes",
        "BIGINT",
        "highest allocated in this forward, or so far where the engine does not reset it",
    ),
    (
        "peak_reserved_bytes",
        "BIGINT",
        "highest reserved in this forward, or so far where the engine does not reset it",
    ),
    (
        "device_used_bytes",
        "BIGINT",
        "NVML's used memory of the device, last sample before the end of the step",
    ),
    ("schedule_us", "INTEGER", "the scheduling call, microseconds"),
    ("forward_us", "INTEGER", "the forward call on the CPU, microseconds"),
)

STEP_REQUEST = _table(
    "step_request",
    "One row a request and step that it ran tokens in.",
    "engine_id step",
    ("engine_id", "INTEGER", "the engine"),
    ("step", "BIGINT", "the step"),
    ("request", "INTEGER", "number of the request in this trace"),
    ("kind", "VARCHAR", "`prefill` or `decode`"),
    ("num_tokens", "INTEGER", "tokens that it ran"),
    (
        "num_computed_tokens",
        "INTEGER",
        "its tokens computed before the step; of a decode, the sampled one included",
    ),
    ("num_draft_tokens", "INTEGER", "drafts verified"),
    ("num_accepted_tokens", "INTEGER", "drafts accepted"),
    ("num_blocks", "INTEGER", "KV blocks that it holds"),
)

CALL = _table(
    "call",
    "One row a scheduling call that handed something out or found work. Calls that follow each other, handed out nothing "
    "and are equal in all that the row says are one row. An engine without any request adds none.",
    "engine_id call",
    ("engine_id", "INTEGER", "the engine"),
    ("call", "BIGINT", "number of the scheduling call in this engine; of several, the first"),
    ("num_calls", "BIGINT", "calls that this row stands for: 1, or a run of equal idle ones"),
    ("idle", "BOOLEAN", "whether it handed out nothing: no chunk, no block, no preemption, no abort"),
    ("ts", "TIMESTAMP_NS", "when the call began, UTC; of several, the first"),
    (
        "last_ts",
        "TIMESTAMP_NS",
        "when the last of them began; up to 0.2 s early, as num_calls is, where the engine ended or was killed within them",
    ),
    ("schedule_us", "INTEGER", "the call, microseconds; of several, the first"),
    ("token_budget", "INTEGER", "tokens that it could hand out at its start"),
    ("num_scheduled_tokens", "INTEGER", "tokens that it counted"),
    ("num_running", "INTEGER", "requests in the running queue after it"),
    ("num_running_decodes", "INTEGER", "running requests past their prefill when it began"),
    ("num_prefilling", "INTEGER", "running requests in their prefill when it began"),
    ("num_waiting", "INTEGER", "requests in the waiting queue after it"),
    (
        "num_deferred",
        "INTEGER",
        "of these, passed over as they were not ready (FastDeploy: preprocessing, or no token of theirs fits; vLLM: its "
        "skipped_waiting)",
    ),
    (
        "num_preallocated",
        "INTEGER",
        "requests that hold their blocks and have not joined the running queue; NULL but in the prefill and decode roles",
    ),
    ("num_chunks", "INTEGER", "prefill chunks that it handed out"),
    ("num_admitted", "INTEGER", "of these, of requests that came from the waiting queue"),
    ("num_extended", "INTEGER", "decodes that it gave new KV blocks"),
    ("num_preempted", "INTEGER", "requests that it preempted"),
    ("num_aborted", "INTEGER", "requests that it took out as aborted"),
    ("num_free_blocks", "INTEGER", "KV blocks free after it"),
    ("reserved_output_blocks", "INTEGER", "as in `step`"),
    ("new_token_ratio", "DOUBLE", "as in `step`"),
    (
        "head",
        "INTEGER",
        "number of the request at the head of the waiting queue after it; NULL: nothing waited",
    ),
    ("not_admitted", "VARCHAR", "why that one stayed, as in `step`"),
    ("num_missing_blocks", "INTEGER", "KV blocks that it lacked, as in `step`"),
    (
        "first_step",
        "BIGINT",
        "the forward that its tasks entered; NULL: it has none (idle), or that forward is not recorded",
    ),
    since=2,
)

RANK_MEMORY = _table(
    "rank_memory",
    "One row a step and further rank of the same forwards; rank 0's memory is in `step`. View `memory` has both.",
    "engine_id step rank",
    ("engine_id", "INTEGER", "the engine"),
    ("step", "BIGINT", "the step"),
    ("rank", "INTEGER", "tensor-parallel rank, from 1"),
    ("allocated_bytes", "BIGINT", "framework's allocator, after the forward"),
    ("reserved_bytes", "BIGINT", "framework's allocator, after the forward"),
    ("peak_allocated_bytes", "BIGINT", "highest allocated, as in `step`"),
    ("peak_reserved_bytes", "BIGINT", "highest reserved, as in `step`"),
)

REQUEST = _table(
    "request",
    "One row a request seen.",
    "engine_id request",
    ("engine_id", "INTEGER", "the engine"),
    ("request", "INTEGER", "number of the request in this trace"),
    ("request_id", "VARCHAR", "the engine's own id"),
    ("arrived_at", "TIMESTAMP_NS", "when the engine got it from a client, UTC; NULL: before recording began"),
    ("arrived_step", "BIGINT", "the step before whose scheduling it came; NULL: before recording began"),
    ("num_prompt_tokens", "INTEGER", "tokens of the prompt"),
    ("max_tokens", "INTEGER", "most output tokens that it may make"),
    ("num_cached_tokens", "INTEGER", "prompt tokens found in the prefix cache"),
    ("num_output_tokens", "INTEGER", "output tokens made, so far or at its finish"),
    ("finished_at", "TIMESTAMP_NS", "when it finished, UTC"),
    ("finish_reason", "VARCHAR", "`stop`, `length`, `abort`, `error`; NULL: not finished in this recording"),
    (
        "block_hashes",
        "UBIGINT[]",
        "with prefix caching, one a full prompt block, salted afresh for each trace",
    ),
)

EVENT = _table(
    "event",
    "What happened beside the tokens.",
    "engine_id step ts",
    ("engine_id", "INTEGER", "the engine; NULL where it concerns the whole recording"),
    ("step", "BIGINT", "the step that it belongs to, or the next one"),
    ("ts", "TIMESTAMP_NS", "when, UTC"),
    (
        "kind",
        "VARCHAR",
        "arrived, skipped, preempted, rescheduled, extended, stalled, aborted, finished, error, "
        "attached, detached, lost, switched_off; in the prefill and decode roles also preallocated (it got its "
        "blocks), joined (the running queue), discarded (it will not join). Where the engine schedules ahead of its "
        "forwards, what changed its queues is dated exactly: queued (it entered the waiting queue), abort_wanted (a "
        "client aborted it), requeued (preempted, it is back in the waiting queue), left (it ended, and left the "
        "running queue), freed (so did its blocks), recycled (aborted, it is forgotten), output_cached (its blocks "
        "entered the prefix cache), and found (what was there when this began, see its detail)",
    ),
    ("request", "INTEGER", "the request; NULL where none is concerned"),
    ("reason", "VARCHAR", "why, where it is known at that moment"),
    ("detail", "VARCHAR", "JSON: the event's own figures"),
    (
        "call",
        "BIGINT",
        "the scheduling call that it belongs to, or came before; NULL where these are not ordered",
    ),
)

CALL_REQUEST = _table(
    "call_request",
    "One row a thing that a scheduling call did with a request, and one a decode of which it counted other tokens than "
    "the call before: with `event` in the order of calls, all that its decisions came from. Only where the engine "
    "schedules ahead of its forwards.",
    "engine_id call",
    ("engine_id", "INTEGER", "the engine"),
    ("call", "BIGINT", "the scheduling call"),
    ("request", "INTEGER", "number of the request in this trace"),
    (
        "did",
        "VARCHAR",
        "`chunk` (scheduled one of its prefill), `extended` (gave it blocks), `preempted`, `aborted`, `skipped` (its "
        "preprocessing was not ready), `failed` (it failed), `refused` (blocks for its chunk were not free); NULL: "
        "nothing, the row says what it counted. Kind by kind in the order in which the call did it",
    ),
    ("num_computed_tokens", "INTEGER", "of a chunk: the request's tokens computed before it"),
    ("num_tokens", "INTEGER", "of a chunk: its tokens"),
    (
        "num_total_tokens",
        "INTEGER",
        "prompt and output tokens that the call counted of a decode: what the engine had learned of its outputs",
    ),
    (
        "num_needed_blocks",
        "INTEGER",
        "of a chunk or of one refused: free KV blocks asked for; NULL where it follows from the queues",
    ),
)

TABLES = (TRACE, ENGINE, STEP, STEP_REQUEST, CALL, CALL_REQUEST, RANK_MEMORY, REQUEST, EVENT)

View, VIEWS = schema_views.View, schema_views.VIEWS
