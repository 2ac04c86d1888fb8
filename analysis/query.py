"""Read-only SQL over the tables of a results folder.

Every CSV and parquet file that lies directly in the folder becomes a table named after the file (``runs.csv`` → ``runs``). The tables
are loaded into memory first; then DuckDB's access to files and to the network is switched off and its configuration locked, so that a
statement can read the loaded tables and nothing else. Its time is limited, and so is the memory of the process while it runs (DuckDB's own
limit does not count every string that a function makes).
"""

from __future__ import annotations

import csv
import json
import math
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from analysis.errors import UserError, printable
from analysis.limits import at_most_more

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 1_000_000  # rows a statement may return
TIME_LIMIT = 30.0  # seconds a statement may take
GRACE = 1.0  # seconds that DuckDB may take to notice that time is up
MEMORY_LIMIT = "1GB"
ADDRESS_SPACE = 2 << 30  # bytes that the process may take for a statement, with what DuckDB does not count
TABLE_ROWS_SHOWN = 200  # rows that `render(frame, "table")` prints
FORMATS = ("table", "csv", "json")
_CONFIG: dict[str, Any] = {
    "memory_limit": MEMORY_LIMIT,
    "max_temp_directory_size": "0B",  # nothing is spilled to disk
    "threads": "1",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",  # SQL cannot name Python variables
}


def query(folder: str | Path, sql: str, *, max_rows: int = MAX_ROWS, time_limit: float = TIME_LIMIT) -> pd.DataFrame:
    """Run one reading statement over the tables of a results folder.

    Parameters
    ----------
    folder : str or Path
        A results folder; each ``*.csv`` and ``*.parquet`` directly in it is a table.
    sql : str
        One SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW or SUMMARIZE statement in DuckDB's dialect.
    max_rows : int
        Rows the result may have. A longer result is refused, not cut.
    time_limit : float
        Seconds the statement may take.

    Returns
    -------
    pandas.DataFrame
        The result; columns as selected.

    Raises
    ------
    UserError
        When the folder has no tables, a file cannot be read, the statement is wrong, does anything but read, returns more than `max_rows`
        rows, needs more than 1 GB or takes longer than `time_limit`.

    Examples
    --------
    >>> query("results/quickstart", "SELECT d_model, min(loss) FROM runs GROUP BY d_model")  # doctest: +SKIP
    """
    connection = duckdb.connect(":memory:", config=_CONFIG)
    connection.execute("ATTACH ':memory:' AS tables (COMPRESS)")  # ten million points in some hundred MB
    connection.execute("USE tables")
    names = _load_tables(connection, Path(folder))
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    _check_statement(connection, sql, names)

    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["frame"] = _fetch(connection, sql, max_rows)
        except Exception as error:
            outcome["error"] = error

    # A daemon thread, because a call inside DuckDB may not notice an interrupt: the caller goes on when time is up, whatever happens.
    thread = threading.Thread(target=work, daemon=True)
    with at_most_more(ADDRESS_SPACE):
        try:
            thread.start()
        except RuntimeError as error:  # no room for its stack
            raise UserError("query: this process has no memory left for a statement; start it anew") from error
        thread.join(time_limit)
        late = thread.is_alive()
        if late:
            connection.interrupt()
            thread.join(GRACE)
    if late:
        raise UserError(
            f"query: the statement took longer than {time_limit:g} s and was stopped; "
            "select fewer rows or aggregate, or read the CSV files with your own tools"
        )
    error = outcome.get("error")
    if isinstance(error, UserError):
        raise error
    if isinstance(error, duckdb.OutOfMemoryException | MemoryError):
        raise UserError(f"query: the statement needs more than {MEMORY_LIMIT}; select fewer rows or aggregate") from error
    if isinstance(error, duckdb.Error):
        raise UserError(_describe(error, names)) from error
    if error is not None:
        raise error
    return outcome["frame"]


def render(frame: pd.DataFrame, format: str = "table") -> str:
    """Write a frame as text.

    Parameters
    ----------
    frame : pandas.DataFrame
        What `query` returned.
    format : {"table", "csv", "json"}
        ``table``: aligned columns, at most 200 rows, numbers to 6 digits. ``csv`` and ``json`` (a list of objects): every row, full
        precision, missing values empty or null.

    Returns
    -------
    str
        Ends with a newline.

    Raises
    ------
    UserError
        When `format` is none of the three.
    """
    if format == "csv":
        return frame.to_csv(index=False, lineterminator="\n")
    if format == "json":
        rows = [dict(zip(frame.columns, map(_plain, row), strict=True)) for row in frame.itertuples(index=False, name=None)]
        return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    if format != "table":
        raise UserError(f"--format {format!r} is unknown; allowed: {', '.join(FORMATS)}")
    return _render_table(frame)


def _load_tables(connection: duckdb.DuckDBPyConnection, folder: Path) -> list[str]:
    """Load every CSV and parquet file of a folder; return the table names."""
    if not folder.is_dir():
        raise UserError(f"query: {folder} is not a folder; give a results folder, for example results/quickstart, that holds runs.csv")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".parquet") and path.is_file())
    if not files:
        raise UserError(
            f"query: no tables (*.csv, *.parquet) in {folder}; give a results folder that holds runs.csv, or run `scaling fit` there first"
        )
    names: list[str] = []
    for path in files:
        name = path.stem
        if name in names:
            raise UserError(f"query: two files in {folder} are named {name}; rename one of {name}.csv and {name}.parquet")
        try:
            if path.suffix == ".csv":
                columns = _csv_header(path)
                # Identifiers stay text, even when every one of them happens to look like a number.
                types = {column: "VARCHAR" for column in columns if column.endswith(("_id", "_hash")) or column == "reason"}
                connection.execute(
                    f"CREATE TABLE {_quote(name)} AS SELECT * FROM read_csv($path, header = true, delim = ',', "
                    "quote = '\"', escape = '\"', sample_size = -1, auto_type_candidates = ['BOOLEAN', 'BIGINT', 'DOUBLE', 'VARCHAR']"
                    + (", types = $types)" if types else ")"),
                    {"path": _literal(path)} | ({"types": types} if types else {}),
                )
            else:
                connection.execute(f"CREATE TABLE {_quote(name)} AS SELECT * FROM read_parquet($path)", {"path": _literal(path)})
        except (duckdb.Error, UnicodeDecodeError, csv.Error) as error:
            detail = _first_line(error)
            raise UserError(f"query: {path} is not a readable {path.suffix[1:]} table ({detail}); rebuild it or move it away") from error
        names.append(name)
    return names


def _csv_header(path: Path) -> list[str]:
    """Return the column names of a CSV; UserError when it has none."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    if not header:
        raise UserError(f"query: {path} is empty; rebuild it or move it away")
    return header


def _literal(path: Path) -> str:
    """Escape a path's glob characters, so that DuckDB opens that one file."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in str(path.resolve()))


def _quote(name: str) -> str:
    """Quote an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _check_statement(connection: duckdb.DuckDBPyConnection, sql: str, names: list[str]) -> None:
    """Refuse anything but one reading statement."""
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(_describe(error, names)) from error
    if not statements:
        raise UserError(f"query: the statement is empty; try SELECT * FROM runs; tables: {', '.join(names)}")
    if len(statements) > 1:
        raise UserError(f"query: {len(statements)} statements given; one at a time")
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        raise UserError(
            f"query: only reading statements are allowed (SELECT, WITH, DESCRIBE, SHOW, SUMMARIZE), not {kind.name}; "
            f"tables: {', '.join(names)}"
        )


def _fetch(connection: duckdb.DuckDBPyConnection, sql: str, max_rows: int) -> pd.DataFrame:
    """Execute and fetch in chunks, giving up beyond `max_rows` rows."""
    import pandas as pd

    warnings.filterwarnings("ignore", category=DeprecationWarning)  # DuckDB's way to hand over times, not ours
    result = connection.execute(sql)
    chunks: list[pd.DataFrame] = []
    rows = 0
    while True:
        chunk = result.fetch_df_chunk(16)
        if chunks and not len(chunk):
            break
        chunks.append(chunk)
        rows += len(chunk)
        if rows > max_rows:
            raise UserError(f"query: the result has more than {max_rows} rows; add a LIMIT or aggregate")
        if not len(chunk):
            break
    frame = chunks[0] if len(chunks) == 1 else pd.concat(chunks, ignore_index=True)
    frame.columns = _distinct([str(column) for column in frame.columns])
    return frame


def _distinct(columns: list[str]) -> list[str]:
    """Give repeated column names a number, so that no value is lost in JSON."""
    seen: dict[str, int] = {}
    names: list[str] = []
    for column in columns:
        seen[column] = seen.get(column, 0) + 1
        names.append(column if seen[column] == 1 else f"{column}_{seen[column]}")
    return names


def _first_line(error: BaseException) -> str:
    """Reduce a message to its first line, without DuckDB's error class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("Invalid Input Error: ") if lines else type(error).__name__


def _describe(error: duckdb.Error, names: list[str]) -> str:
    """One line about a failed statement."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hint = [line for line in lines[1:] if line.startswith(("Did you mean", "Candidate bindings"))]
    return f"query: {' '.join([lines[0] if lines else type(error).__name__, *hint])}; tables: {', '.join(names)}"


def _plain(value: Any) -> Any:
    """Turn a cell into what JSON can hold; NaN and missing become None."""
    import numpy as np
    import pandas as pd

    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else (None if math.isnan(value) else str(value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    return value if isinstance(value, bool | int | str) else str(value)


def _cell(value: Any) -> str:
    """Write one cell of the text table."""
    plain = _plain(value)
    if plain is None:
        return ""
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, float):
        # Whole numbers (counts read back as float because some are missing) stay whole.
        return f"{plain:.0f}" if plain == int(plain) and abs(plain) < 1e12 else f"{plain:.6g}"
    return printable(str(plain))


def _render_table(frame: pd.DataFrame) -> str:
    """Align columns: text to the left, numbers to the right."""
    shown = frame.head(TABLE_ROWS_SHOWN)
    columns: list[list[str]] = []
    for position, name in enumerate(frame.columns):
        values = shown.iloc[:, position].tolist()
        cells = [_cell(value) for value in values]
        head = printable(str(name))
        width = max(map(len, [head, *cells]))
        numeric = any(isinstance(value, int | float) for value in values) and not any(isinstance(value, str) for value in values)
        align = str.rjust if numeric else str.ljust
        columns.append([align(head, width), "-" * width, *(align(cell, width) for cell in cells)])
    lines = ["  ".join(parts).rstrip() for parts in zip(*columns, strict=True)]
    if len(frame) > len(shown):
        lines.append(f"({len(shown)} of {len(frame)} rows shown; csv and json give all)")
    elif not len(frame):
        lines.append("(no rows)")
    return "\n".join(lines) + "\n"
