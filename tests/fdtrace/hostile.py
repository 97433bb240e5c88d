"""Traces as a stranger may send them: made by hand to harm or mislead, or damaged on their way. Made from a good one.

`secret` is a file of the victim's: nothing of it may ever be shown. `fifo` is a pipe that nobody writes to.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

SPOOF = "chr(27)||']0;OWNED'||chr(7)||chr(27)||'[31mSPOOF'||chr(155)||'2J'||chr(8238)||chr(127)||chr(13)"
"""SQL: sets a terminal's title, colours, a C1 control, a change of direction, DEL, a carriage return."""

NO_STEP = "0 step, 0 token_budget, 0 num_scheduled_tokens, 0 num_tokens"
TABLES = ("trace", "engine", "step", "step_request", "request", "event", "rank_memory")
EXTREMES = {"null": "NULL", "negative": "-5", "zero": "0", "huge": "2147483647"}
TIMES = {
    "null": "NULL",
    "negative": "make_timestamp_ns(-9000000000000000000)",
    "huge": "make_timestamp_ns(9000000000000000000)",
}

COLUMNS = {
    "engine": ["max_num_batched_tokens", "max_num_seqs", "num_speculative_tokens", "block_size", "num_blocks", "max_model_len"],
    "step": ["step", "ts", "num_tokens", "token_budget", "num_scheduled_tokens", "num_running_decodes", "peak_reserved_bytes", "reserved_bytes", "num_free_blocks", "num_blocks", "schedule_us", "new_token_ratio", "not_admitted", "num_prefill_tokens"],
    "step_request": ["request", "step", "num_tokens", "num_computed_tokens", "num_draft_tokens", "num_accepted_tokens", "num_blocks", "kind", "engine_id"],
    "request": ["request", "request_id", "num_prompt_tokens", "num_output_tokens", "arrived_step", "arrived_at", "max_tokens", "finished_at", "engine_id"],
    "event": ["step", "ts", "kind", "request", "reason", "detail", "engine_id"],
}  # fmt: skip


FEW = {
    "engine_block_size_zero", "engine_max_num_batched_tokens_null", "step_num_tokens_null", "step_step_null",
    "step_ts_null", "step_num_free_blocks_huge", "step_request_kind_text", "step_request_request_huge",
    "step_request_num_accepted_tokens_null", "request_request_id_null", "request_request_id_text",
    "request_arrived_at_huge", "event_request_huge", "event_kind_null", "step_new_token_ratio_nan",
}  # fmt: skip


def view(select: str) -> tuple[str, ...]:
    """Statements that put a view of one's own in the place of `exceeded`."""
    return ("DROP VIEW exceeded", f"CREATE VIEW exceeded AS SELECT 0 engine_id, {NO_STEP}, {select}")


def by_hand(secret: Path, fifo: Path) -> dict[str, tuple[str, ...]]:
    """Name -> the statements that make it."""
    deep = "repeat('[', 100000)||repeat(']', 100000)"
    made: dict[str, tuple[str, ...]] = {
        "view_reads_a_file": view(f"content limit_name, 1 excess_tokens FROM read_text('{secret}')"),
        "view_lists_files": view(f"file limit_name, 1 excess_tokens FROM glob('{secret.parent}/*')"),
        "view_reads_a_pipe": view(f"content limit_name, 1 excess_tokens FROM read_text('{fifo}')"),
        "view_endless": view("'x' limit_name, a.range excess_tokens FROM range(1000000000) a, range(1000000000) b"),
        "view_memory": view("'x' limit_name, len(repeat('x', 2000000000 + range)) excess_tokens FROM range(64)"),
        "trace_is_a_view": ("ALTER TABLE trace RENAME TO trace0", "CREATE VIEW trace AS SELECT * REPLACE ((SELECT "
                            f"json_array(content)::VARCHAR FROM read_text('{secret}')) AS notes) FROM trace0"),
        "step_is_a_view": ("ALTER TABLE step RENAME TO step0", "CREATE VIEW step AS FROM step0"),
        "macro_sum": ("CREATE MACRO sum(x) AS 7", "CREATE MACRO count(x) AS 7", "CREATE MACRO max(x) AS 7"),
        "macro_coalesce": ("CREATE MACRO coalesce(a, b) AS 7", "CREATE MACRO epoch_ns(a) AS 7"),
        "macro_table": (f"CREATE MACRO read_parquet(x) AS TABLE FROM read_text('{secret}')",),
        "generated_column": ("DROP VIEW exceeded", "ALTER TABLE rank_memory RENAME TO r0",
                             "CREATE TABLE rank_memory(engine_id INTEGER, step BIGINT, rank INTEGER, "
                             "allocated_bytes BIGINT, reserved_bytes BIGINT, peak_allocated_bytes BIGINT, "
                             "peak_reserved_bytes BIGINT GENERATED ALWAYS AS (len(repeat('x', 1000))))"),
        "text_engine": (f"UPDATE engine SET name = {SPOOF}, version = {SPOOF}, host = {SPOOF}, spec_method = {SPOOF}",),
        "text_notes": (f"UPDATE trace SET notes = json_array({SPOOF}, '[b]x[/]')",),
        "text_requests": (f"UPDATE request SET request_id = {SPOOF} || request",),
        "text_events": (f"UPDATE event SET detail = {SPOOF}, reason = {SPOOF}, "
                        "kind = CASE kind WHEN 'extended' THEN 'lost' ELSE kind END",),
        "text_event_kinds": (f"UPDATE event SET kind = {SPOOF}",),
        "text_reasons": (f"UPDATE step SET not_admitted = {SPOOF}",),
        "text_version": (f"UPDATE trace SET fdtrace_version = {SPOOF}, schema_version = 99",),
        "text_role": (f"UPDATE engine SET role = {SPOOF}",),
        "text_state": (f"UPDATE trace SET state = {SPOOF}, ended_by = {SPOOF}, fdtrace_version = {SPOOF}",),
        "text_long": ("UPDATE engine SET name = repeat('x', 3000000)", "UPDATE request SET request_id = repeat('y', 100000) || request"),
        "markup_engine": ("UPDATE engine SET name = '[red]x[/b]', version = '[/]', host = '[link=file:///etc/passwd]x[/]'",),
        "markup_requests": ("UPDATE request SET request_id = '[/b]' || request",),
        "config_is_no_json": ("UPDATE engine SET config = '{', env = 'nope'",),
        "config_is_a_list": ("UPDATE engine SET config = '[1, 2]', env = '[1]'",),
        "config_is_deep": (f"UPDATE engine SET config = {deep}",),
        "config_other_shapes": ("""UPDATE engine SET config = '{"scheduler": 5, "not_told": 7}', env = '{"FD_X": [1]}'""",),
        "config_huge_number": ("UPDATE engine SET config = '{\"a\": ' || repeat('9', 5000) || '}'",),
        "notes_are_no_json": ("UPDATE trace SET notes = '{'",),
        "notes_are_a_number": ("UPDATE trace SET notes = '5'",),
        "notes_are_an_object": ("UPDATE trace SET notes = '{\"a\": 1}'",),
        "notes_are_deep": (f"UPDATE trace SET notes = {deep}",),
        "notes_are_many": ("UPDATE trace SET notes = (SELECT to_json(list('n' || range))::VARCHAR FROM range(100000))",),
        "steps_twice": ("INSERT INTO step FROM step",),
        "requests_twice": ("INSERT INTO request FROM request",),
        "rows_twice": ("INSERT INTO step_request FROM step_request",),
        "rows_missing": ("DELETE FROM step_request WHERE step % 2 = 0",),
        "steps_missing": ("DELETE FROM step WHERE step % 3 = 0",),
        "steps_and_rows_missing": ("DELETE FROM step WHERE step % 3 = 0", "DELETE FROM step_request WHERE step % 3 = 0"),
        "one_step_far": ("UPDATE step SET step = 2000000000 WHERE step = (SELECT max(step) FROM step)",),
        "one_step_and_its_rows_far": tuple(
            f"UPDATE {table} SET step = 2000000000 WHERE step = (SELECT max(step) FROM step_request)"
            for table in ("step", "step_request")
        ),
        "one_arrival_far": ("UPDATE request SET arrived_step = 2000000000 WHERE request = 20",),
        "one_arrival_rather_far": ("UPDATE request SET arrived_step = 5000000 WHERE request = 20",),
        "one_prompt_huge": ("UPDATE request SET num_prompt_tokens = 2000000000 WHERE request = 20",),
        "one_prompt_large": ("UPDATE request SET num_prompt_tokens = 200000000 WHERE request = 20",),
        "type_text": ("DROP VIEW exceeded", "ALTER TABLE step ALTER num_tokens TYPE VARCHAR"),
        "type_double": ("DROP VIEW exceeded", "ALTER TABLE step ALTER num_tokens TYPE DOUBLE", "UPDATE step SET num_tokens = 'nan'::DOUBLE"),
        "type_list": ("DROP VIEW exceeded", "ALTER TABLE step DROP num_tokens", "ALTER TABLE step ADD num_tokens INTEGER[]"),
        "type_json": ("ALTER TABLE trace ALTER notes TYPE JSON",),
        "column_missing": ("DROP VIEW exceeded", "ALTER TABLE step DROP forward_us"),
        "column_more": ("ALTER TABLE step ADD more INTEGER",),
        "engines_many": ("INSERT INTO engine SELECT e.* REPLACE (range + 1 AS engine_id) FROM engine e, range(2000)",),
        "engines_of_one_id": ("INSERT INTO engine FROM engine",),
        "engine_id_null": ("UPDATE engine SET engine_id = NULL",),
        "engine_id_other": ("UPDATE engine SET engine_id = 7",),
        "engine_name_null": ("UPDATE engine SET name = NULL, role = NULL, pid = NULL, host = NULL",),
        "role_unknown": ("UPDATE engine SET role = 'x'",),
        "role_prefill": ("UPDATE engine SET role = 'prefill'",),
        "role_decode": ("UPDATE engine SET role = 'decode'",),
        "engine_is_vllm": ("UPDATE engine SET name = 'vllm'",),
        "schema_null": ("UPDATE trace SET schema_version = NULL",),
        "schema_negative": ("UPDATE trace SET schema_version = -1",),
        "schema_newer": ("UPDATE trace SET schema_version = 1000000",),
        "trace_of_two_rows": ("INSERT INTO trace FROM trace",),
        "recording_for_ever": ("UPDATE trace SET state = 'recording', ended_at = NULL",),
        "parts_elsewhere": ("CREATE TABLE _collector(state VARCHAR)", "INSERT INTO _collector VALUES "
                            f"('{{\"parts\": {{\"step\": [[\"../../{secret.name}\"]]}}}}')"),
        "parts_no_json": ("CREATE TABLE _collector(state VARCHAR)", "INSERT INTO _collector VALUES ('{')"),
        "parts_gone": ("CREATE TABLE _collector(state VARCHAR)",
                       "INSERT INTO _collector VALUES ('{\"parts\": {\"step\": [[\"step-00000001.parquet\"]]}}')"),
        "decodes_alone": ("UPDATE step_request SET kind = 'decode'",),
        "not_fdtrace": tuple(f"DROP TABLE {table} CASCADE" for table in TABLES[2:]),
    }  # fmt: skip
    for table in TABLES:
        made[f"empty_{table}"] = (f"DELETE FROM {table}",)
        made[f"dropped_{table}"] = (f"DROP TABLE {table}",)
    return made


def extreme() -> dict[str, tuple[str, ...]]:
    """The same for NULL and numbers that no recording has, in each column that figures are made of."""
    return {
        f"{table}_{column}_{name}": (f"UPDATE {table} SET {column} = {value}",)
        for table, columns in COLUMNS.items()
        for column in columns
        for name, value in _extremes(column).items()
    }


def _extremes(column: str) -> dict[str, str]:
    if column in ("ts", "arrived_at", "finished_at"):
        return TIMES
    if column in ("kind", "request_id", "reason", "detail", "not_admitted"):
        return {"null": "NULL", "text": "'x'"}
    return {**EXTREMES, "nan": "'nan'::DOUBLE"} if column == "new_token_ratio" else EXTREMES


def make_by_hand(good: Path, directory: Path, *, extremes: bool) -> Iterator[Path]:
    """The hostile traces, made in `directory` one after the other; beside it a `secret.txt` and a pipe `fifo`.

    `extremes`: those with absurd values too, else a few of them.
    """
    made, more = by_hand(directory.parent / "secret.txt", directory.parent / "fifo"), extreme()
    names = more if extremes else [name for name in more if name in FEW]
    for name, statements in {**made, **{name: more[name] for name in names}}.items():
        path = directory / f"{name}.duckdb"
        shutil.copy(good, path)
        with duckdb.connect(str(path)) as db:
            for statement in statements:
                db.execute(statement)
        yield path


def damaged(good: bytes, seed: int) -> bytes:
    """A trace's bytes, damaged on their way: some flipped, some set to 0, or cut off."""
    draw = random.Random(seed)
    data = bytearray(good)
    kind = draw.choice(("flip", "flip", "zero", "cut", "shuffle", "head"))
    if kind == "flip":
        for _ in range(draw.choice((1, 10, 100, 10000))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "zero":
        for _ in range(draw.randint(1, 20)):
            at, size = draw.randrange(len(data)), draw.choice((8, 512, 4096, 262144))
            data[at : at + size] = bytes(len(data[at : at + size]))
    elif kind == "cut":
        del data[draw.randrange(len(data)) :]
    elif kind == "shuffle":
        size = draw.choice((512, 4096))
        a, b = (draw.randrange(len(data) // size) * size for _ in "ab")
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    else:
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(3 * 4096)] = draw.randrange(256)
    return bytes(data)
