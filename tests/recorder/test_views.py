"""The database of views that is published while a recording goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.collector.store import Store, identity_of
from fdtrace.recorder.collector.tables import columns_of
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.trace.column_values import ColumnArrays


def rows(table: Table, count: int, **known: Any) -> ColumnArrays:
    """So many rows that are alike but for their first number."""
    number = {schema.REQUEST: "request", schema.CALL: "call"}.get(table, "step")
    made = [
        tuple(i if column.name == number else known.get(column.name) for column in table.columns)
        for i in range(count)
    ]
    return columns_of(table, made)


def small(live: int, state: str = "recording") -> dict[str, ColumnArrays]:
    return {
        "trace": rows(schema.TRACE, 1, state=state),
        "engine": rows(schema.ENGINE, 1, engine_id=0),
        "_live_request": rows(schema.REQUEST, live, engine_id=0),
        "_live_call": rows(schema.CALL, 1, engine_id=0),
    }


def counted(path: Path) -> tuple[Any, ...]:
    with duckdb.connect(str(path), read_only=True) as db:
        (found,) = db.execute(
            "SELECT (SELECT count(*) FROM step), (SELECT count(*) FROM request), "
            "(SELECT state FROM trace), (SELECT count(*) FROM engine)"
        ).fetchall()
        for view in schema.VIEWS:
            db.execute(f"FROM {view.name}")
        return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "t.duckdb")


def test_each_publication_holds_what_has_come_and_gone_since(store: Store) -> None:
    store.publish(small(live=3), {})
    assert counted(store.path) == (0, 3, "recording", 1)
    store.add(schema.STEP, rows(schema.STEP, 5, engine_id=0))
    store.publish(small(live=3), {})
    assert counted(store.path) == (5, 3, "recording", 1)
    store.add(schema.STEP, rows(schema.STEP, 2, engine_id=0))
    store.add(schema.REQUEST, rows(schema.REQUEST, 2, engine_id=0))
    store.publish(small(live=1, state="complete"), {})
    assert counted(store.path) == (7, 3, "complete", 1)


def test_one_client_asks_two_recordings_in_progress(tmp_path: Path) -> None:
    """Each one's views read its own parts, whatever name it has there."""
    for name, count in (("x", 5), ("y", 7)):
        store = Store(tmp_path / f"{name}.duckdb")
        store.add(schema.STEP, rows(schema.STEP, count, engine_id=0))
        store.publish(small(live=count - 1), {})
    with duckdb.connect() as db:
        for name in ("x", "y"):
            db.execute(f"ATTACH '{tmp_path / name}.duckdb' AS one_{name} (READ_ONLY)")
        for name, other, count in (("one_x", "one_y", 5), ("one_y", "one_x", 7)):
            db.execute(f"USE {other}")
            for table, num_rows in (("step", count), ("request", count - 1), ("exceeded", 0)):
                assert db.execute(f"SELECT count(*) FROM {name}.{table}").fetchall() == [(num_rows,)]


def test_a_state_of_any_length_is_published(store: Store) -> None:
    """DuckDB 1.5.0 cannot compress a text that just fits into a block."""
    for length in range((1 << 14) - 400, 1 << 14, 12):
        store.publish(small(live=0), {"rings": "x" * length})
    assert counted(store.path) == (0, 0, "recording", 1)


def test_what_is_published_needs_no_file_but_the_parts(store: Store) -> None:
    store.add(schema.STEP, rows(schema.STEP, 5, engine_id=0))
    store.publish(small(live=2), {})
    store.close()
    for file in store.directory.iterdir():
        if file.suffix != ".parquet":
            file.unlink()
    assert counted(store.path) == (5, 2, "recording", 1)


def test_an_earlier_publication_stays_as_it_was_for_who_has_it_open(store: Store) -> None:
    store.publish(small(live=3), {})
    with duckdb.connect(str(store.path), read_only=True) as reader:
        store.publish(small(live=8), {})
        assert reader.execute("SELECT count(*) FROM request").fetchall() == [(3,)]
    assert counted(store.path)[1] == 8


def test_if_nothing_changed_nothing_is_written(store: Store) -> None:
    store.publish(small(live=3), {"offset": 1})
    published = identity_of(store.path)
    store.publish(small(live=3), {"offset": 1})
    assert identity_of(store.path) == published
    store.publish(small(live=3), {"offset": 2})
    assert identity_of(store.path) != published


def test_what_could_not_be_published_is_published_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(small(live=3), {})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "put", full)
        with pytest.raises(OSError, match="No space left"):
            store.publish(small(live=8), {})
    assert counted(store.path)[1] == 3
    store.publish(small(live=8), {})
    assert counted(store.path)[1] == 8


def test_numbers_that_are_not_known_are_null_in_every_mix(store: Store) -> None:
    numbers = np.array([[5, 6], [-1, 7], [-1, -1]], np.int64)
    for known in numbers:
        columns = rows(schema.STEP, 2, engine_id=0)
        store.add(schema.STEP, {**columns, "num_tokens": known, "ts": known})
    store.publish(small(live=0), {})
    with duckdb.connect(str(store.path), read_only=True) as db:
        found = db.execute("SELECT num_tokens, epoch_ns(ts), num_waiting FROM step").fetchall()
    assert found == [(5, 5, None), (6, 6, None), (None, None, None), (7, 7, None), (None,) * 3, (None,) * 3]


def test_a_recording_goes_on_after_its_collector_was_killed_in_the_middle_of_a_publication(
    store: Store,
) -> None:
    store.add(schema.STEP, rows(schema.STEP, 5, engine_id=0))
    store.publish(small(live=2), {})
    store.close()
    (store.directory / "views.duckdb").write_bytes(b"half of it")
    (store.directory / "next.duckdb").write_bytes(b"half of it")
    again = Store(store.path, store.parts, store.serial)
    again.add(schema.STEP, rows(schema.STEP, 1, engine_id=0))
    again.publish(small(live=4), {})
    assert counted(store.path) == (6, 4, "recording", 1)


def test_it_does_not_grow_with_the_number_of_publications(store: Store) -> None:
    sizes = []
    for number in range(60):
        store.publish(small(live=10 + number % 7), {"number": number})
        sizes.append(store.path.stat().st_size)
    assert max(sizes[30:]) <= max(sizes[:30])
