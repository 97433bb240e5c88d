"""The view `waiting`. `replayer/analysis/waiting.py` computes the same of replays; docs/waiting.md defines it."""

from __future__ import annotations

COMMENT = (
    "Each wait: a run of steps in which a request that was there ran nothing. Its kind: `queued` (to run for the first "
    "time; in the prefill and decode roles, to get its blocks), `preempted` (to run again after a preemption), "
    "`prefill` (for its next chunk), `decode` (for its next decode), `stopped` (it had not ended, and ran no more); "
    "in those roles `not_joined` (it held num_blocks KV blocks and had not joined) and `joined` (it had, and had not "
    "run). A request of the kinds `queued` and `preempted` was in the waiting queue: num_head_steps counts the steps "
    "in which it was the head itself, behind is who was the head in most of the others, not_admitted why the head was "
    "not admitted in most of them. docs/waiting.md has the definitions."
)

# Rows without a beginning are left out before the ASOF joins: DuckDB 1.5 joins a NULL there to the first step.
QUERY = """
    WITH ran AS (
        SELECT engine_id, request, step, kind = 'prefill' AS prefill, num_computed_tokens AS computed,
               computed + CASE WHEN prefill THEN num_tokens ELSE coalesce(num_accepted_tokens, 0) END AS past
        FROM step_request
    ), gap AS (
        SELECT engine_id, request, lag(step) OVER w + 1 AS since, step AS until, prefill,
               prefill AND (NOT lag(prefill) OVER w OR computed < lag(past) OVER w) AS again,
               greatest(lag(past) OVER w - computed, 0) AS discarded
        FROM ran WINDOW w AS (PARTITION BY engine_id, request ORDER BY step)
    ), life AS (
        SELECT r.engine_id, r.request, r.arrived_step, r.arrived_at, q.first, q.last, b.first AS begin, b.past,
               CASE WHEN r.arrived_step IS NULL
                     AND (q.kind = 'decode' OR q.computed > coalesce(r.num_cached_tokens, 0))
                    THEN q.kind ELSE 'queued' END AS waits_for,
               coalesce(v.finished, v.aborted) AS ended, v.held_from, v.held_to, v.held
        FROM request r
        JOIN (SELECT engine_id, min(step) AS first, max(step) + 1 AS past FROM step GROUP BY ALL) b USING (engine_id)
        LEFT JOIN (
            SELECT engine_id, request, min(step) AS first, max(step) AS last, arg_min(kind, step) AS kind,
                   arg_min(num_computed_tokens, step) AS computed
            FROM step_request GROUP BY ALL
        ) q USING (engine_id, request)
        LEFT JOIN (
            SELECT engine_id, request, min(step) FILTER (kind = 'finished') AS finished,
                   min(step) FILTER (kind = 'aborted') AS aborted,
                   min(step) FILTER (kind = 'preallocated') AS held_from,
                   min(step) FILTER (kind IN ('joined', 'discarded')) AS held_to,
                   min(TRY_CAST(detail->>'$.num_blocks' AS INTEGER)) FILTER (kind = 'preallocated') AS held
            FROM event WHERE request IS NOT NULL GROUP BY ALL
        ) v USING (engine_id, request)
    ), wait AS (
        SELECT engine_id, request, waits_for AS kind, coalesce(arrived_step, begin) AS since,
               least(first, ended, past, held_from) AS until, arrived_at, NULL AS discarded, NULL AS held FROM life
        UNION ALL BY NAME
        SELECT engine_id, request, since, until,
               CASE WHEN again THEN 'preempted' WHEN prefill THEN 'prefill' ELSE 'decode' END AS kind,
               CASE WHEN again THEN discarded END AS discarded
        FROM gap WHERE until > since OR (again AND discarded > 0)
        UNION ALL BY NAME
        SELECT engine_id, request, 'stopped' AS kind, last + 1 AS since, past AS until FROM life
        WHERE ended IS NULL AND last IS NOT NULL
        UNION ALL BY NAME
        SELECT engine_id, request, 'not_joined' AS kind, held_from AS since,
               least(held_to, first, ended, past) AS until, held FROM life WHERE held_from IS NOT NULL
        UNION ALL BY NAME
        SELECT engine_id, request, 'joined' AS kind, held_to AS since, least(first, ended, past) AS until FROM life
        WHERE held_to IS NOT NULL
    ), moment AS (
        SELECT s.engine_id, s.step, s.not_admitted, s.num_missing_blocks, c.head,
               epoch_ns(s.ts) - 1000 * coalesce(s.schedule_us, 0) AS began,
               row_number() OVER (PARTITION BY s.engine_id ORDER BY s.step) AS number
        FROM step s ASOF LEFT JOIN call c
            ON s.engine_id = c.engine_id AND coalesce(epoch_ns(s.ts), s.step) >= coalesce(epoch_ns(c.ts), c.first_step)
    ), numbered AS (
        SELECT w.*, a.began, a.number AS first_number
        FROM wait w ASOF LEFT JOIN moment a ON a.engine_id = w.engine_id AND w.since <= a.step
    ), spanned AS (
        SELECT w.*, coalesce(b.number, (SELECT count(*) + 1 FROM step s WHERE s.engine_id = w.engine_id))
                    - w.first_number AS num_steps
        FROM numbered w ASOF LEFT JOIN moment b ON b.engine_id = w.engine_id AND w.until <= b.step
    ), queue AS (
        SELECT w.engine_id, w.request, w.since,
               count(*) FILTER (a.head = w.request) AS num_head_steps,
               mode(a.head) FILTER (a.head <> w.request) AS behind, mode(a.not_admitted) AS not_admitted,
               max(a.num_missing_blocks) AS max_missing_blocks
        FROM spanned w JOIN moment a ON a.engine_id = w.engine_id AND a.step >= w.since AND a.step < w.until
        WHERE w.kind IN ('queued', 'preempted') AND w.num_steps > 0
        GROUP BY ALL
    )
    SELECT c.engine_id, r.request_id, c.request, c.kind, c.since AS since_step, u.step AS until_step, c.num_steps,
           (u.began - CASE WHEN c.kind = 'queued' THEN epoch_ns(c.arrived_at) ELSE c.began END) // 1000 AS wait_us,
           CASE WHEN c.kind IN ('queued', 'preempted') THEN coalesce(q.num_head_steps, 0) END AS num_head_steps,
           b.request_id AS behind, q.not_admitted, q.max_missing_blocks,
           c.discarded AS num_discarded_tokens, c.held AS num_blocks
    FROM spanned c
    JOIN request r ON r.engine_id = c.engine_id AND r.request = c.request
    LEFT JOIN queue q ON q.engine_id = c.engine_id AND q.request = c.request AND q.since = c.since
                     AND c.kind IN ('queued', 'preempted')
    LEFT JOIN request b ON b.engine_id = c.engine_id AND b.request = q.behind
    LEFT JOIN moment u ON u.engine_id = c.engine_id AND u.step = c.until AND c.kind <> 'stopped'
    WHERE c.num_steps > 0 OR c.discarded > 0
    ORDER BY c.engine_id, c.since, c.request
"""
