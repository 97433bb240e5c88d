"""Writes docs/trace.md from the schema: `python -m fdtrace.recorder.schema_docs` prints it."""

from __future__ import annotations

import textwrap

from fdtrace.recorder import schema

HEAD = f"""\
# The trace

One DuckDB file (storage version {schema.STORAGE_VERSION}: DuckDB 1.5 and later read it), schema version
{schema.SCHEMA_VERSION}. This page is generated from `recorder/schema.py`.

Times are `TIMESTAMP_NS` in UTC. Sizes are in tokens, bytes, blocks or microseconds, as named. A value that an engine
does not provide is NULL, never 0. Token contents are never recorded. During a recording, any DuckDB client can read the
same tables and views; they are at most about two seconds old.
"""

MEETING = """\
## How a call and a forward meet

A **call** is one `schedule()` of the engine: table `call`. A **step** is one forward that ran tokens: table `step`.
In vLLM, transformers and the sandbox, each call that hands out tokens has its own forward. FastDeploy schedules in one
process and runs forwards in others, and its decodes go on without new tasks. So the tasks of a call may come too late
for the forward under way, one forward may take the tasks of several calls, and most calls hand out nothing:

    schedule()   0        1  2  3     4        5  6  7  8  9  10 …
                 │tasks   │  ·  ·     │tasks   ·  ·  ·  ·  ·  ·       · handed out nothing
                 ╰───╮    ╰────────╮  ╰────╮
    forwards         [ 0 ][ 1 ]    [ 2 ]   [ 3 ][ 4 ]                  nothing runs any more: it hangs

    call  num_calls  idle   first_step          step  its columns are those of call
       0          1  false           0             0  0
       1          1  false           2             1  0  (1 had not reached the workers)
       2          2  true         NULL             2  3  (the last call that had ended)
       4          1  false           3             3  4
       5       9312  true         NULL             4  9  (its row is that of 5)

- `call.first_step` is the first forward that could run what the call handed out: the next forward that began after the
  call's tasks had reached the workers. No clock decides that: the call's number travels with the tasks.
- `step.token_budget` to `step.new_token_ratio` and `step.schedule_us` come from one call: the last call whose tasks had
  reached the workers, or a later call that handed out nothing and had ended when the forward began. What a call did
  once (its time, its tokens, its preemptions) is only in its first forward.
- Equal calls that follow each other and hand out nothing share one row, with their number (`num_calls`) and times
  (`ts`, `last_ts`). Anything else that the process records ends such a run: another call, an event, a forward. During a
  recording, the last row of an idle engine grows.
- An engine **stands still** if only idle calls come after its last forward and its last call that handed something
  out. `fdtrace info` says since when, and what the head of the queue waits for.

```sql
-- since when does nothing move, and why?
FROM call WHERE idle AND ts > (SELECT max(ts) FROM step) ORDER BY call;
```
"""

ORDER = """\
## What a call knew

A call that runs during a forward cannot know the forward's outputs. So two calls with equal queues may decide
differently. If FastDeploy schedules ahead, a trace therefore keeps the order in which the engine
processed its events, by the holds of its scheduler's lock:

    outputs appended     a 101           a 103  a 104        a 106        (no lock needed)
                           │               │      │            │
    lock   ─[queued a]─[call 0]─[queued b]─[call 1]─[left a]─[call 2]─[freed a]─[call 3]─
                        a: 101              a: 103            b alone            a's blocks are free again
                                            (a 104 came after the call had looked at a)

- `event.call`: the change of the queues came before this call and after the call before. A request that ended leaves
  the running queue (`left`) and gives its blocks back (`freed`) in two holds of the lock. Calls between them see the
  request gone but its blocks taken.
- `call_request` has what each call did with each request. `num_total_tokens` is what the call knew of a decode's
  outputs; from it follow the forwards that the call had not seen. View `call_lag` counts them.
- `event.kind` = `found`, before the first call: what was there when the recording began. Its `detail` says the `place`:
  a request in the running queue, preempted, aborted or `preallocated`; `leaving`: one that had left but held its
  blocks, known only by its `number`, as in its `freed`; the reserve; or, with prefix caching, `cached`: the blocks in
  the cache, in parts. Each block is a list: the number of the block before it in its prefix (blocks are numbered
  through all parts), a hash as in `request.block_hashes`, the requests that use it, the order of its last use, whether
  it is on the device, whether requests find it behind the block before it, its place in the heap of blocks that can be
  evicted. A running request names its last block (`cache_block`). More than 16,384 blocks are not recorded; a note says
  so.
- `fdtrace replay` under the formula and policy of the recording processes all this in this order, and decides each call
  again by what the recorded call knew. Each call, and each forward, should come out as it was recorded.

```sql
-- how many forwards were the calls behind?
SELECT num_unseen_steps, count(*) FROM call_lag WHERE first_step IS NOT NULL GROUP BY ALL ORDER BY ALL;
```
"""


def document() -> str:
    """The page, as Markdown."""
    sections = [HEAD, MEETING, ORDER]
    for table in schema.TABLES:
        order = ", ".join(f"`{name}`" for name in table.order_by)
        sections.append(
            f"## {table.name}\n\n{table.comment} In the order of {order}.\n\n| column | type | |\n|---|---|---|"
        )
        sections += [
            f"| `{column.name}` | {column.type} | {column.comment.replace('|', '/')} |"
            for column in table.columns
        ]
        sections.append("")
    sections.append("## Views\n")
    for view in schema.VIEWS:
        sql = textwrap.dedent(view.query).strip()
        sections.append(f"### {view.name}\n\n{view.comment}\n\n```sql\n{sql}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    print(document(), end="")
