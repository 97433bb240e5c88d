"""Writes a new file or directory: it appears at its path whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from fdtrace.recorder.errors import UsageError


def check_target(path: Path, *, force: bool, source: Path) -> None:
    """UsageError if a file must not be written to the path.

    Args:
        path: where to write.
        force: what is there may be replaced, unless it is a directory.
        source: what is read: it is never replaced.
    """
    try:
        same = path.samefile(source)
    except OSError:
        same = False
    if same:
        raise UsageError(f"{path} is what is read", why="-o would overwrite it", hint="another -o")
    if os.path.lexists(path) and (not force or path.is_dir()):
        hint = "another -o, or remove it" if path.is_dir() else "another -o, or --force to replace it"
        raise UsageError(f"{path} exists already", why="nothing is overwritten unasked", hint=hint)


def check_directory(path: Path, *, force: bool, names: Collection[str]) -> None:
    """UsageError if a directory with files of these names must not be written to the path.

    Args:
        path: where to write.
        force: a directory that is there may be replaced if it holds nothing but such files.
        names: of the files.
    """
    if not os.path.lexists(path):
        return
    if not force:
        raise UsageError(
            f"{path} exists already",
            why="nothing is overwritten unasked",
            hint="another -o, or --force to replace the files of an earlier export",
        )
    try:
        with os.scandir(path) as entries:
            others = [
                entry.name
                for entry in entries
                if entry.name not in names or not entry.is_file(follow_symlinks=False)
            ]
    except OSError as error:
        raise UsageError(
            f"{path} cannot be replaced", why=error.strerror or str(error), hint="another -o"
        ) from None
    if others or path.is_symlink():
        held = f"it holds {others[0]}, which this would not write" if others else "it is a link"
        raise UsageError(f"{path} is not replaced", why=held, hint="another -o, or remove it")


@contextmanager
def whole_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A path beside `path`, where a file or directory is to be made. It is moved to `path` when the block has ended,
    and removed if the block fails.

    Raises:
        UsageError: it cannot be written, or something came to the path in the meantime.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield half
        if half.is_dir():
            _put_directory(half, path)
        elif force:
            half.rename(path)
        else:
            os.link(half, path)  # unlike a rename, it replaces nothing that came in the meantime
    except OSError as error:
        raise UsageError(f"{path} cannot be written", why=error.strerror or str(error)) from None
    finally:
        if half.is_dir() and not half.is_symlink():
            shutil.rmtree(half, ignore_errors=True)
        else:
            half.unlink(missing_ok=True)


def _put_directory(half: Path, path: Path) -> None:
    """Move a directory to a path. One that is there, which `check_directory` allowed, is removed then."""
    old = half.with_name(f"{half.name}.old")
    if os.path.lexists(path):
        path.rename(old)
    try:
        half.rename(path)
    except OSError:
        if old.is_dir():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
