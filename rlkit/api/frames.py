"""Tables as people use them in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(table: pa.Table) -> DataFrame:
    """A pandas DataFrame; without pandas, the pyarrow table itself."""
    try:
        import pandas  # noqa: F401
    except ImportError:
        return table
    return table.to_pandas(maps_as_pydicts="strict")


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> DataFrame:
    """Of rows with the same keys; `columns` are those of a table without rows."""
    names = list(rows[0]) if rows else list(columns)
    values = {name: pa.array([row[name] for row in rows]) for name in names}
    # A column of nothing but None is one of numbers that are not there.
    return frame(pa.table({n: v.cast(pa.float64()) if pa.types.is_null(v.type) else v for n, v in values.items()}))
