"""Whole columns of a query over a trace, as numpy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fdtrace.recorder.trace.trace import Trace


def trace_columns(trace: Trace, query: str, *parameters: Any) -> dict[str, Any]:
    """The result's columns by name; whole numbers and truth values as int64. The query gives no NULL in these."""
    found = trace.db.execute(query, list(parameters)).fetchnumpy()
    return {
        name: np.ma.getdata(values).astype(np.int64) if values.dtype.kind in "iub" else values
        for name, values in found.items()
    }
