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


def document() -> str:
    """The page, as Markdown."""
    parts = [HEAD]
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
