"""Documents the trace from its schema: `python -m fdtrace.recorder.document` prints docs/trace.md."""

from __future__ import annotations

import textwrap

from fdtrace.recorder import schema

HEAD = f"""\
# The trace

One DuckDB file (storage version {schema.STORAGE_VERSION}: DuckDB 1.5 and later read it), schema version
{schema.SCHEMA_VERSION}. This page is generated from `recorder/schema.py`.

Times are `TIMESTAMP_NS` in UTC; sizes are in tokens, bytes, blocks or microseconds, as named. What an engine cannot
tell is NULL, never 0. Token contents are never recorded. While it records, the same tables and views are there to be
read by any DuckDB client, at most about two seconds old.
"""

MEETING = """\
## How a call and a forward meet

A **call** is one `schedule()` of the engine: table `call`. A **step** is one forward that ran tokens: table `step`.
In vLLM, transformers and the sandbox each call that hands out tokens has its own forward. FastDeploy schedules in one
process and runs in others, and its decodes go on without a task. So a call may be late for the forward under way, a
forward may take in the tasks of several calls, and most calls hand out nothing:

    schedule()   0        1  2  3     4        5  6  7  8  9  10 …
                 │tasks   │  ·  ·     │tasks   ·  ·  ·  ·  ·  ·       · handed out nothing
                 ╰───╮    ╰────────╮  ╰────╮
    forwards         [ 0 ][ 1 ]    [ 2 ]   [ 3 ][ 4 ]                  nothing runs any more: it hangs

    call  num_calls  idle   first_step          step  its columns are those of call
       0          1  false           0             0  0
       1          1  false           2             1  0  (1 had not reached the workers)
       2          2  true         NULL             2  3  (the last one that had ended)
       4          1  false           3             3  4
       5       9312  true         NULL             4  9  (its row is that of 5)

- `call.first_step` is the first forward that could run what the call handed out: the one that began next after its
  tasks had reached the workers. No clock decides that; the call's number rides on the tasks.
- `step.token_budget` to `step.new_token_ratio` and `step.schedule_us` are of the last call whose tasks had reached
  the workers, or of a later one that handed out nothing and had ended when the forward began. What a call did once
  (its time, its tokens, its preemptions) stands with its first forward alone.
- Calls that follow each other, hand out nothing and find the same are one row, with their number (`num_calls`) and
  times (`ts`, `last_ts`). Whatever that process records in between ends the run: another call, an event, a forward of
  its own. While it records, the last row of an idle engine grows.
- An engine **stands still** where nothing is after its last forward and its last call that handed something out but
  idle calls: `fdtrace info` says since when, and what the head of the queue waits for.

```sql
-- since when does nothing move, and why?
FROM call WHERE idle AND ts > (SELECT max(ts) FROM step) ORDER BY call;
```
"""

ORDER = """\
## What a call knew

A call that runs while a forward does cannot know its outputs, so two calls that find the same queues may decide
otherwise. Where FastDeploy schedules ahead (in the mixed role), a trace therefore keeps the order in which the engine
met its events, by the holds of its scheduler's lock:

    outputs appended     a 101           a 103  a 104        a 106        (no lock needed)
                           │               │      │            │
    lock   ─[queued a]─[call 0]─[queued b]─[call 1]─[left a]─[call 2]─[freed a]─[call 3]─
                        a: 101              a: 103            b alone            a's blocks are free again
                                            (a 104 came after the call had looked at a)

- `event.call`: what changed the queues came before this call and after the one before it. A request that ended leaves
  the running queue (`left`) and gives its blocks back (`freed`) in two holds: calls in between see it gone and its
  blocks taken.
- `call_request` is what each call did with each request, and `num_total_tokens` what it had learned of a decode's
  outputs: with it come the forwards that it had not seen. View `call_lag` counts them.
- `fdtrace replay` under the formula and policy that recorded takes all this in this order, so that each call is decided
  anew by what the recorded one knew: each should come out as it was recorded, and each forward with it.

```sql
-- how many forwards were the calls behind?
SELECT num_unseen_steps, count(*) FROM call_lag WHERE first_step IS NOT NULL GROUP BY ALL ORDER BY ALL;
```
"""


def document() -> str:
    """The page, as Markdown."""
    parts = [HEAD, MEETING, ORDER]
    for table in schema.TABLES:
        order = ", ".join(f"`{name}`" for name in table.order_by)
        parts.append(
            f"## {table.name}\n\n{table.comment} In the order of {order}.\n\n| column | type | |\n|---|---|---|"
        )
        parts += [
            f"| `{column.name}` | {column.type} | {column.comment.replace('|', '/')} |"
            for column in table.columns
        ]
        parts.append("")
    parts.append("## Views\n")
    for view in schema.VIEWS:
        sql = textwrap.dedent(view.query).strip()
        parts.append(f"### {view.name}\n\n{view.comment}\n\n```sql\n{sql}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
