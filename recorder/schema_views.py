"""The views of a trace. Each answers one common question."""

from __future__ import annotations

from dataclasses import dataclass

from fdtrace.recorder import waiting_view


@dataclass(frozen=True)
class View:
    """A view that answers one common question."""

    name: str
    comment: str
    query: str


EXCEEDED = View(
    "exceeded",
    "Each step that ran more tokens than a limit allows: which limit, by how much, and how far the allocator grew. "
    "If memory was profiled for more tokens than the scheduler may hand out (a chunk is rounded up to an image's "
    "end), that larger number is the limit. For a step over `cache_read_budget`, tokens are those of the KV cache that "
    "it read. In vLLM and transformers, `padded`: the batch was padded to more than the limit; tokens are those "
    "launched. `drafter`: the drafter's first pass was larger than its buffers; tokens are those that it ran, padded.",
    """
    SELECT s.engine_id, s.step, s.ts,
           CASE WHEN s.num_tokens > e.scheduled THEN e.scheduled_name
                WHEN s.num_tokens > e.max_profiled_tokens THEN 'max_profiled_tokens'
                ELSE 'num_max_dispatch_tokens_per_rank' END AS limit_name,
           CASE WHEN s.num_tokens > e.scheduled THEN e.scheduled
                WHEN s.num_tokens > e.max_profiled_tokens THEN e.max_profiled_tokens
                ELSE e.num_max_dispatch_tokens_per_rank END AS limit_tokens,
           s.num_tokens, s.num_tokens - limit_tokens AS excess_tokens,
           CASE WHEN s.num_tokens > e.max_profiled_tokens
                THEN s.num_tokens - e.max_profiled_tokens END AS over_profiled_tokens,
           s.num_scheduled_tokens, s.token_budget, s.num_prefill_tokens, s.num_decode_tokens,
           s.reserved_bytes, s.reserved_bytes - p.reserved_bytes AS reserved_growth_bytes
    FROM step s
    JOIN (SELECT *, greatest(max_num_batched_tokens, max_profiled_tokens) AS scheduled,
                 CASE WHEN max_profiled_tokens > max_num_batched_tokens THEN 'max_profiled_tokens'
                      ELSE 'max_num_batched_tokens' END AS scheduled_name FROM engine) e USING (engine_id)
    LEFT JOIN step p ON p.engine_id = s.engine_id AND p.step = s.step - 1
    WHERE s.num_tokens > e.scheduled
       OR s.num_tokens > e.max_profiled_tokens
       OR (s.num_prefill_tokens = 0 AND s.num_tokens > e.num_max_dispatch_tokens_per_rank)
    UNION ALL
    SELECT s.engine_id, s.step, s.ts, 'cache_read_budget', s.cache_read_budget, s.num_cache_read_tokens,
           s.num_cache_read_tokens - s.cache_read_budget, NULL,
           s.num_scheduled_tokens, s.token_budget, s.num_prefill_tokens, s.num_decode_tokens,
           s.reserved_bytes, s.reserved_bytes - p.reserved_bytes
    FROM step s LEFT JOIN step p ON p.engine_id = s.engine_id AND p.step = s.step - 1
    WHERE s.num_cache_read_tokens > s.cache_read_budget
    UNION ALL
    SELECT s.engine_id, s.step, s.ts, 'padded', e.scheduled, s.num_predicted_tokens,
           s.num_predicted_tokens - e.scheduled, NULL,
           s.num_scheduled_tokens, s.token_budget, s.num_prefill_tokens, s.num_decode_tokens,
           s.reserved_bytes, s.reserved_bytes - p.reserved_bytes
    FROM step s
    JOIN (SELECT engine_id, greatest(max_num_batched_tokens, max_profiled_tokens) AS scheduled
          FROM engine WHERE name IN ('vllm', 'transformers')) e USING (engine_id)
    LEFT JOIN step p ON p.engine_id = s.engine_id AND p.step = s.step - 1
    WHERE s.num_predicted_tokens > e.scheduled AND s.num_tokens <= e.scheduled
    UNION ALL
    SELECT s.engine_id, s.step, s.ts, 'drafter', d.limit_tokens, d.tokens, d.tokens - d.limit_tokens, NULL,
           s.num_scheduled_tokens, s.token_budget, s.num_prefill_tokens, s.num_decode_tokens,
           s.reserved_bytes, s.reserved_bytes - p.reserved_bytes
    FROM (SELECT v.engine_id, coalesce(c.first_step, v.step) AS step,
                 TRY_CAST(v.detail->>'$.limit_tokens' AS INTEGER) AS limit_tokens,
                 greatest(TRY_CAST(v.detail->>'$.num_tokens' AS INTEGER),
                          TRY_CAST(v.detail->>'$.num_padded_tokens' AS INTEGER)) AS tokens
          FROM event v LEFT JOIN (  -- few are asked for: without this, all calls would be joined
              FROM call WHERE call IN (
                  SELECT TRY_CAST(detail->>'$.call' AS BIGINT) FROM event
                  WHERE kind = 'exceeded' AND reason = 'drafter')
              ) c ON c.engine_id = v.engine_id AND c.call = TRY_CAST(v.detail->>'$.call' AS BIGINT)
          WHERE v.kind = 'exceeded' AND v.reason = 'drafter'
          QUALIFY row_number() OVER (PARTITION BY v.engine_id, coalesce(c.first_step, v.step)) = 1) d
    JOIN step s ON s.engine_id = d.engine_id AND s.step = d.step
    LEFT JOIN step p ON p.engine_id = s.engine_id AND p.step = s.step - 1
    """,
)

BUDGET = View(
    "budget",
    "What each step was allowed, what the scheduler counted and left of each budget, and what ran. The gap is what "
    "nobody counted.",
    """
    SELECT s.engine_id, s.step, e.max_num_batched_tokens, s.token_budget, s.num_scheduled_tokens, s.num_tokens,
           s.num_tokens - s.num_scheduled_tokens AS uncounted_tokens,
           e.max_num_batched_tokens - s.num_tokens AS unused_tokens,
           s.num_running_decodes, s.num_waiting, s.not_admitted,
           s.token_budget - s.num_scheduled_tokens AS token_budget_left, s.input_budget, s.num_input_tokens,
           s.input_budget - s.num_input_tokens AS input_budget_left
    FROM step s JOIN engine e USING (engine_id)
    """,
)

REQUEST_TIMELINE = View(
    "request_timeline",
    "Every step of every request, with its id: filter by request_id.",
    """
    SELECT r.engine_id, r.request_id, r.request, q.step, q.kind, q.num_tokens, q.num_computed_tokens,
           q.num_draft_tokens, q.num_accepted_tokens, q.num_blocks
    FROM step_request q JOIN request r USING (engine_id, request)
    """,
)

PREEMPTION = View(
    "preemption",
    "Each preemption: the request, the reason, what it freed, and what must be computed again.",
    """
    SELECT v.engine_id, v.step, v.ts, r.request_id, v.request, v.reason,
           TRY_CAST(v.detail->>'$.num_blocks' AS INTEGER) AS freed_blocks,
           TRY_CAST(v.detail->>'$.num_computed_tokens' AS INTEGER) AS discarded_tokens
    FROM event v LEFT JOIN request r USING (engine_id, request)
    WHERE v.kind = 'preempted'
    """,
)

MEMORY = View(
    "memory",
    "The framework's allocator after each step, on every rank.",
    """
    SELECT engine_id, step, 0 AS rank, allocated_bytes, reserved_bytes, peak_allocated_bytes, peak_reserved_bytes
    FROM step
    UNION ALL
    SELECT engine_id, step, rank, allocated_bytes, reserved_bytes, peak_allocated_bytes, peak_reserved_bytes
    FROM rank_memory
    """,
)

CALL_LAG = View(
    "call_lag",
    "How far each scheduling call that counted outputs was behind the forwards: the last step whose outputs it knew "
    "(seen_step, from what it counted of each decode), the step that its tasks entered, and how many lie between.",
    """
    SELECT engine_id, call, max(seen) OVER (PARTITION BY engine_id ORDER BY call) AS seen_step, first_step,
           first_step - seen_step - 1 AS num_unseen_steps
    FROM (SELECT k.engine_id, k.call, max(q.step) AS seen
          FROM call_request k ASOF JOIN (
              FROM step_request QUALIFY num_computed_tokens > coalesce(max(num_computed_tokens) OVER (
                  PARTITION BY engine_id, request ORDER BY step ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
              ), -1)  -- one that is prefilled anew passes here again
          ) q ON k.engine_id = q.engine_id AND k.request = q.request AND k.num_total_tokens > q.num_computed_tokens
          WHERE k.did IS NULL GROUP BY ALL)
    LEFT JOIN (SELECT engine_id, call, first_step FROM call) USING (engine_id, call)
    """,
)

WAITING = View("waiting", waiting_view.COMMENT, waiting_view.QUERY)

VIEWS = (EXCEEDED, BUDGET, REQUEST_TIMELINE, PREEMPTION, MEMORY, CALL_LAG, WAITING)
