"""What holds of any engine's recording: an adapter is right where a trace of its engine under load breaks none of it.

Each rule is a query that finds what contradicts it.
"""

from __future__ import annotations

from fdtrace.recorder.trace.trace import Trace

ROWS = """
    rows AS (
        SELECT q.*, lead(num_computed_tokens) OVER w AS next_computed, lead(kind) OVER w AS next_kind,
               lead(step) OVER w AS next_step
        FROM step_request q WINDOW w AS (PARTITION BY engine_id, request ORDER BY step)
    ),
    taken_out AS (SELECT DISTINCT engine_id, request, step FROM event WHERE kind = 'preempted')
"""

RULES = {
    "an engine says its limit, its blocks and its name": """
        SELECT engine_id FROM engine
        WHERE name IS NULL OR max_num_batched_tokens IS NULL OR block_size IS NULL OR num_blocks IS NULL
           OR config IS NULL
    """,
    "steps are numbered without a gap where nothing was lost": """
        SELECT step FROM (SELECT *, lag(step) OVER (PARTITION BY engine_id ORDER BY step) AS before FROM step)
        WHERE step <> before + 1 AND NOT EXISTS (FROM event WHERE kind = 'lost')
    """,
    "a step's tokens are those of its requests": """
        SELECT s.step FROM step s JOIN (
            SELECT engine_id, step, sum(num_tokens) AS tokens,
                   sum(num_tokens) FILTER (kind = 'prefill') AS prefill, sum(num_draft_tokens) AS drafts
            FROM step_request GROUP BY ALL
        ) q USING (engine_id, step)
        WHERE s.num_tokens <> q.tokens OR s.num_prefill_tokens <> coalesce(q.prefill, 0)
           OR s.num_draft_tokens <> q.drafts OR s.num_decode_tokens <> s.num_tokens - s.num_prefill_tokens
    """,
    "a step ran tokens": "SELECT step FROM step WHERE num_tokens < 1",
    "a prefill goes on where it stopped, a decode past what it accepted, unless it was preempted": f"""
        WITH {ROWS}
        SELECT r.step, r.request FROM rows r LEFT JOIN taken_out t
            ON t.engine_id = r.engine_id AND t.request = r.request AND t.step BETWEEN r.step AND r.next_step
        WHERE next_computed IS NOT NULL AND t.step IS NULL AND next_computed <> num_computed_tokens + CASE
            WHEN kind = 'prefill' AND next_kind = 'decode' THEN num_tokens + 1
            WHEN kind = 'prefill' THEN num_tokens ELSE 1 + num_accepted_tokens END
    """,
    "a request's blocks hold what it has computed": """
        SELECT q.step, q.request FROM step_request q JOIN engine e USING (engine_id)
        WHERE q.num_blocks * e.block_size < q.num_computed_tokens - (q.kind = 'decode')::INTEGER
    """,
    "what a step's requests hold is not free, where no block is shared": """
        SELECT s.step FROM step s JOIN engine e USING (engine_id) JOIN (
            SELECT engine_id, step, sum(num_blocks) AS held FROM step_request GROUP BY ALL
        ) q USING (engine_id, step)
        WHERE NOT e.prefix_caching AND q.held > s.num_blocks - s.num_free_blocks
    """,
    "blocks that are free are blocks that there are": """
        SELECT step FROM step WHERE num_free_blocks NOT BETWEEN 0 AND num_blocks
    """,
    "what waits says why": "SELECT call FROM call WHERE num_waiting > 0 AND not_admitted IS NULL",
    "nothing that does not wait says why": "SELECT call FROM call WHERE num_waiting = 0 AND not_admitted IS NOT NULL",
    "an idle call handed out nothing": """
        SELECT call FROM call WHERE idle AND (num_chunks > 0 OR num_admitted > 0)
    """,
    "calls come in their order, and so do the forwards that they entered": """
        SELECT call FROM (SELECT *, max(first_step) OVER (PARTITION BY engine_id ORDER BY call
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM call) WHERE first_step < before
    """,
    "a request arrives before it runs": """
        SELECT r.request FROM request r JOIN (
            SELECT engine_id, request, min(step) AS first FROM step_request GROUP BY ALL
        ) q USING (engine_id, request) WHERE r.arrived_step > q.first
    """,
    "a request makes no more than it may": """
        SELECT request FROM request WHERE num_output_tokens > max_tokens
    """,
    "what an ended request generated came from its steps": """
        SELECT r.request FROM request r JOIN (
            SELECT engine_id, request, arg_max(num_computed_tokens + CASE WHEN kind = 'decode'
                THEN 1 + num_accepted_tokens ELSE num_tokens + 1 END, step) AS tokens
            FROM step_request GROUP BY ALL
        ) q USING (engine_id, request)
        WHERE finish_reason IN ('stop', 'length') AND num_prompt_tokens + num_output_tokens > q.tokens
    """,
    "every request that is named is known": """
        SELECT request FROM step_request ANTI JOIN request USING (engine_id, request)
    """,
    "an ended request says why": """
        SELECT request FROM request WHERE (finish_reason IS NULL) <> (finished_at IS NULL)
    """,
    "no count is negative": """
        SELECT step FROM step WHERE least(num_tokens, num_running, num_waiting, num_preempted, num_stalled,
            num_running_decodes, token_budget, schedule_us, forward_us, cache_read_budget) < 0
    """,
    "a second budget comes with what was counted of it": """
        SELECT call FROM call WHERE (input_budget IS NULL) <> (num_input_tokens IS NULL)
            OR num_input_tokens < num_scheduled_tokens OR num_input_tokens > input_budget
    """,
    "a request is sent before it arrives": "SELECT request FROM request WHERE sent_at > arrived_at",
    "preemptions are events": """
        SELECT 1 WHERE (SELECT coalesce(sum(num_preempted), 0) FROM call)
            <> (SELECT count(*) FROM event WHERE kind = 'preempted')
    """,
    "nothing failed in the agent": "SELECT reason FROM event WHERE kind = 'switched_off'",
}  # fmt: skip


def broken(trace: Trace) -> list[str]:
    """The rules that a trace breaks, each with where it does so first and how often."""
    found = []
    for rule, query in RULES.items():
        rows = trace.rows(query)
        if rows:
            found.append(f"{rule}: {len(rows)} times, first {rows[0]}")
    return found
