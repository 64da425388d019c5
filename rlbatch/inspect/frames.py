"""Logs as tables for other programs: pandas, CSV, Parquet."""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlbatch.errors import MissingExtraError
from rlbatch.files import replacing
from rlbatch.inspect.columns import COLUMNS, Column
from rlbatch.inspect.reading import RunLog, read_logs
from rlbatch.inspect.series import points

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]


def rows(logs: Sequence[RunLog]) -> Iterator[list[Any]]:
    """Yield the values of every line of every log, in the order of `COLUMNS`."""
    for log in logs:
        for point in points(log):
            yield [column.value(log, point) for column in COLUMNS]


def load(*folders: str | Path) -> pd.DataFrame:
    """Return the logs in folders as one pandas table, a row a line.

    Columns are those of `COLUMNS`; `frame.attrs["units"]` and `frame.attrs["meanings"]` map their
    names to units and meanings, `frame.attrs["problems"]` runs to what could not be read.

    Raises:
        EpisodeLogError: A folder holds no log.
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingExtraError("pandas", "data") from error
    logs = read_logs(folders)
    found = list(rows(logs))
    frame = pd.DataFrame(
        {column.name: _typed(column, [row[i] for row in found]) for i, column in enumerate(COLUMNS)}
    )
    frame.attrs["units"] = {column.name: column.unit for column in COLUMNS}
    frame.attrs["meanings"] = {column.name: column.meaning for column in COLUMNS}
    frame.attrs["problems"] = {log.name: list(log.problems) for log in logs if log.problems}
    return frame


def write_csv(logs: Sequence[RunLog], path: Path) -> None:
    """Write a CSV file: a heading, then a row a line; unknown numbers are empty.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    with (
        replacing(path) as new,
        new.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([column.name for column in COLUMNS])
        writer.writerows([_csv_cell(value) for value in row] for row in rows(logs))


def write_parquet(logs: Sequence[RunLog], path: Path) -> None:
    """Write a Parquet file whose columns carry `unit` and `meaning` as metadata.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:  # by name: pyarrow has neither annotations nor stubs
        pa: Any = importlib.import_module("pyarrow")
        pq: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    kinds: dict[str, Any] = {
        "int": pa.int64(),
        "float": pa.float64(),
        "text": pa.string(),
        "bool": pa.bool_(),
    }
    found = list(rows(logs))
    schema = pa.schema(
        [
            pa.field(c.name, kinds[c.kind], metadata={"unit": c.unit, "meaning": c.meaning})
            for c in COLUMNS
        ]
    )
    columns = [
        pa.array(_typed(column, [row[i] for row in found]), kinds[column.kind])
        for i, column in enumerate(COLUMNS)
    ]
    with replacing(path) as new:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), new)


def _typed(column: Column, values: list[Any]) -> list[Any]:
    if column.kind == "int":
        return [max(min(int(value), 2**63 - 1), -(2**63)) for value in values]
    if column.kind == "text":
        return [str(value).encode("utf-8", "backslashreplace").decode() for value in values]
    return [bool(value) if column.kind == "bool" else float(value) for value in values]


def _csv_cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    if isinstance(value, str):
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return value
