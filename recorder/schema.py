"""The one schema of a trace: tables and columns with their types, units and meaning.

All code that writes, reads or documents a trace uses `TABLES`. `docs/trace.md` is generated from it. A change of
meaning raises `SCHEMA_VERSION`. A value that an engine does not provide is NULL, never 0.
"""

from __future__ import annotations

from fdtrace.recorder import schema_views
from fdtrace.recorder.schema_tables import table as _table

SCHEMA_VERSION = 4
"""Raised with every change that an older reader would misread. 2 brought the table `call`, 3 the cache read budget, 4
the input budget, and when and with which priority clients sent their requests."""

STORAGE_VERSION = "v1.5.0"
"""DuckDB's storage version. DuckDB 1.5 and 2.x can both read it (2.0 would write 69, which 1.x cannot read)."""

ROW_GROUP_SIZE = 983_040
"""Rows of a row group of `step_request`: 8 x DuckDB's 122,880. Larger groups compress the rows of a step better."""

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
        "what ended it: `detach`, `interrupt`, `duration`, `steps`, `exit`, `signal 9`, …; `keep`: a flight recorder kept it; `simulate`: no engine ran",
    ),
    ("notes", "VARCHAR", "JSON list of what this recording could not see, and why"),
)

ENGINE = _table(
    "engine",
    "One row for each recorded engine (a data-parallel rank).",
    "engine_id",
    ("engine_id", "INTEGER", "number of the engine in this trace, from 0"),
    ("name", "VARCHAR", "`fastdeploy`, `vllm`, `transformers` or `sandbox`"),
    ("version", "VARCHAR", "the engine's own version"),
    ("pid", "INTEGER", "process that schedules"),
    ("host", "VARCHAR", "host name"),
    ("started_at", "TIMESTAMP_NS", "when its recording began, UTC"),
    ("role", "VARCHAR", "`mixed`, `prefill` or `decode`"),
    ("dp_rank", "INTEGER", "data-parallel rank"),
    ("max_num_batched_tokens", "INTEGER", "the scheduler's own limit, tokens a step"),
    ("max_profiled_tokens", "INTEGER", "tokens a step that memory was profiled for at start-up"),
    ("num_max_dispatch_tokens_per_rank", "INTEGER", "expert-parallel dispatch buffer, tokens a rank a step"),
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
        "JSON: the rest of the scheduling configuration, and which columns this engine does not provide",
    ),
    ("env", "VARCHAR", "JSON: the engine's own scheduling variables; never the whole environment"),
)

STEP = _table(
    "step",
    "One row for each step: one forward pass that ran at least one token.",
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
        "tokens launched: predicted (overlap mode) or padded (vLLM); NULL: not known",
    ),
    ("cache_read_budget", "INTEGER", "KV cache tokens that the call could read; NULL: no such budget"),
    ("num_cache_read_tokens", "INTEGER", "those that it counted; NULL: read by a block table, without limit"),
    ("input_budget", "INTEGER", "tokens and draft slots that the call could hand out; NULL: no such budget"),
    ("num_input_tokens", "INTEGER", "those that it counted: its tokens, and draft slots of each request"),
    ("num_running", "INTEGER", "requests in the running queue after scheduling"),
    ("num_running_decodes", "INTEGER", "running requests past their prefill when the scheduling call began"),
    ("num_waiting", "INTEGER", "requests in the waiting queue after scheduling"),
    ("num_preempted", "INTEGER", "requests preempted by the scheduling call"),
    ("num_stalled", "INTEGER", "decodes that did not run: too few blocks (transformers: for any reason)"),
    ("num_free_blocks", "INTEGER", "KV blocks free after scheduling"),
    ("num_blocks", "INTEGER", "KV blocks in all"),
    (
        "not_admitted",
        "VARCHAR",
        "why the head of the waiting queue was not admitted: `budget` (token_budget was used up, or a prompt that must "
        "not be cut did not fit), `input_budget` (the same of input_budget), `blocks`, `watermark` (its blocks were free, "
        "but not the watermark besides), `slots`, `preemption` (a call that preempts admits nobody), `padding` (a new "
        "decode, padded to 1 + K tokens, did not fit), `throttle` (of prefills of data-parallel ranks), `deferred` (all "
        "that waits is passed over as not ready; event `skipped` says of each for what), `paused`, `cache_read`, "
        "`safety_margin` (of free KV blocks), `other`; NULL: nothing waited",
    ),
    (
        "num_missing_blocks",
        "INTEGER",
        "KV blocks that the head of the queue lacked, where `not_admitted` is `blocks`, `watermark` or `safety_margin`",
    ),
    (
        "reserved_output_blocks",
        "INTEGER",
        "KV blocks that scheduling keeps free for each running request; NULL: it reserves by a ratio, or not at all",
    ),
    (
        "new_token_ratio",
        "DOUBLE",
        "share of the tokens still to come for which scheduling keeps KV blocks free; NULL: it reserves otherwise",
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
    "One row for each step and each request that ran tokens in it.",
    "engine_id step",
    ("engine_id", "INTEGER", "the engine"),
    ("step", "BIGINT", "the step"),
    ("request", "INTEGER", "number of the request in this trace"),
    ("kind", "VARCHAR", "`prefill` or `decode`"),
    ("num_tokens", "INTEGER", "tokens that it ran"),
    (
        "num_computed_tokens",
        "INTEGER",
        "its tokens computed before the step; of a decode, with the sampled one",
    ),
    ("num_draft_tokens", "INTEGER", "drafts verified"),
    ("num_accepted_tokens", "INTEGER", "drafts accepted"),
    ("num_blocks", "INTEGER", "KV blocks that it holds"),
)

CALL = _table(
    "call",
    "One row for each scheduling call that handed something out or found work. Equal calls that follow each other and "
    "handed out nothing share one row. An engine without any request adds no row.",
    "engine_id call",
    ("engine_id", "INTEGER", "the engine"),
    ("call", "BIGINT", "number of the scheduling call in this engine; of several, the first"),
    ("num_calls", "BIGINT", "calls in this row: 1, or a run of equal idle calls"),
    ("idle", "BOOLEAN", "whether the call handed out nothing: no chunk, no block, no preemption, no abort"),
    ("ts", "TIMESTAMP_NS", "when the call began, UTC; of several, the first"),
    (
        "last_ts",
        "TIMESTAMP_NS",
        "when the last of them began; if the engine ended within such a run, this and num_calls may be 0.2 s behind",
    ),
    ("schedule_us", "INTEGER", "the call, microseconds; of several, the first"),
    ("token_budget", "INTEGER", "tokens that it could hand out at its start"),
    ("num_scheduled_tokens", "INTEGER", "tokens that it counted"),
    ("cache_read_budget", "INTEGER", "as in `step`"),
    ("num_cache_read_tokens", "INTEGER", "as in `step`"),
    ("input_budget", "INTEGER", "as in `step`"),
    ("num_input_tokens", "INTEGER", "as in `step`"),
    ("num_running", "INTEGER", "requests in the running queue after it"),
    ("num_running_decodes", "INTEGER", "running requests past their prefill when it began"),
    ("num_prefilling", "INTEGER", "running requests in their prefill when it began"),
    ("num_waiting", "INTEGER", "requests in the waiting queue after it"),
    (
        "num_deferred",
        "INTEGER",
        "of these, requests that it passed over as not ready (FastDeploy: preprocessing, or no token of theirs fits; "
        "vLLM: its skipped_waiting)",
    ),
    (
        "num_preallocated",
        "INTEGER",
        "requests that hold blocks but have not joined the running queue; NULL except in the prefill and decode roles",
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
        "number of the request at the head of the waiting queue after it: the first that it did not pass over as not "
        "ready, else the first of all; NULL: nothing waited",
    ),
    ("not_admitted", "VARCHAR", "why that request was not admitted, as in `step`"),
    ("num_missing_blocks", "INTEGER", "KV blocks that it lacked, as in `step`"),
    (
        "first_step",
        "BIGINT",
        "the forward that its tasks entered; NULL: there is none (idle), or it is not recorded",
    ),
    since=2,
)

RANK_MEMORY = _table(
    "rank_memory",
    "One row for each step and each further rank of its forward; rank 0's memory is in `step`. View `memory` has both.",
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
    "One row for each request that was seen.",
    "engine_id request",
    ("engine_id", "INTEGER", "the engine"),
    ("request", "INTEGER", "number of the request in this trace"),
    ("request_id", "VARCHAR", "the engine's own id"),
    ("arrived_at", "TIMESTAMP_NS", "when the engine got it from a client, UTC; NULL: before recording began"),
    ("arrived_step", "BIGINT", "it came before the scheduling of this step; NULL: before recording began"),
    ("num_prompt_tokens", "INTEGER", "tokens of the prompt"),
    ("max_tokens", "INTEGER", "most output tokens that it may generate"),
    ("num_cached_tokens", "INTEGER", "prompt tokens found in the prefix cache"),
    ("num_output_tokens", "INTEGER", "output tokens generated, so far or at its end"),
    ("finished_at", "TIMESTAMP_NS", "when it finished, UTC"),
    ("finish_reason", "VARCHAR", "`stop`, `length`, `abort`, `error`; NULL: not finished in this recording"),
    (
        "block_hashes",
        "UBIGINT[]",
        "with prefix caching: a hash for each full prompt block; each recording has a new salt (a flight's kept traces share it)",
    ),
    ("sent_at", "TIMESTAMP_NS", "when it reached the server's front end, UTC; NULL: the engine does not say"),
    (
        "priority",
        "INTEGER",
        "its priority; in vLLM the lowest number is served first; NULL: the engine has none",
    ),
)

EVENT = _table(
    "event",
    "What happened besides the tokens.",
    "engine_id step ts",
    ("engine_id", "INTEGER", "the engine; NULL if it concerns the whole recording"),
    ("step", "BIGINT", "the step that it belongs to, or the next one"),
    ("ts", "TIMESTAMP_NS", "when, UTC"),
    (
        "kind",
        "VARCHAR",
        "arrived, skipped (a waiting request was passed over as not ready; in vLLM also: a call gave nothing to a "
        "running one), preempted, rescheduled, extended, stalled, aborted, finished, error, "
        "attached, detached, lost, switched_off, triggered (a trigger of a flight recorder, with its value). In the prefill and decode roles also preallocated (it got its "
        "blocks), joined (the running queue), discarded (it will not join). If the engine schedules ahead of its "
        "forwards, changes of its queues are dated exactly: queued (it entered the waiting queue), abort_wanted (a "
        "client aborted it), requeued (after a preemption it is in the waiting queue again), left (it ended and left "
        "the running queue), freed (its blocks were given back; without a request: of one that had left when this began), recycled (it was aborted and is forgotten), "
        "output_cached (its blocks entered the prefix cache), exceeded (vLLM: its drafter ran more tokens than its buffers hold), found (what was there when this began, see its detail), checkpoint (the same of a later call: only in the ring of a "
        "flight recorder, where a kept trace can begin with it). Of transformers there is found too. Of other engines, it is a request that ran then and that the first step left out",
    ),
    ("request", "INTEGER", "the request; NULL if it concerns none"),
    ("reason", "VARCHAR", "why, if that is known at that moment"),
    ("detail", "VARCHAR", "JSON: the event's own figures"),
    (
        "call",
        "BIGINT",
        "the scheduling call to which it belongs, or before which it came; NULL: calls and events are not ordered",
    ),
)

CALL_REQUEST = _table(
    "call_request",
    "One row for each thing that a scheduling call did with a request, and one for each decode of which it counted "
    "other tokens than the call before. With `event`, in the order of the calls, this is all on which the calls based "
    "their decisions. Only if the engine schedules ahead of its forwards.",
    "engine_id call",
    ("engine_id", "INTEGER", "the engine"),
    ("call", "BIGINT", "the scheduling call"),
    ("request", "INTEGER", "number of the request in this trace"),
    (
        "did",
        "VARCHAR",
        "`chunk` (scheduled a chunk of its prefill), `extended` (gave it blocks), `preempted`, `aborted`, `skipped` "
        "(its preprocessing was not ready), `failed` (it failed), `refused` (blocks for its chunk were not free); NULL: "
        "nothing, the row holds only a count. Kind by kind, in the order in which the call did it",
    ),
    ("num_computed_tokens", "INTEGER", "of a chunk: the request's tokens computed before it"),
    ("num_tokens", "INTEGER", "of a chunk: its tokens"),
    (
        "num_total_tokens",
        "INTEGER",
        "prompt and output tokens of a decode that the call counted: what the engine knew of its outputs by then",
    ),
    (
        "num_needed_blocks",
        "INTEGER",
        "of a chunk, also a refused one: the free KV blocks that it needed; NULL: this follows from the queues",
    ),
)

TABLES = (TRACE, ENGINE, STEP, STEP_REQUEST, CALL, CALL_REQUEST, RANK_MEMORY, REQUEST, EVENT)

View, VIEWS = schema_views.View, schema_views.VIEWS
