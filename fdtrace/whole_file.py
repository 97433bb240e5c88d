"""Writes a new file or directory: it appears at its path whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
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
        if force or half.is_dir():
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
