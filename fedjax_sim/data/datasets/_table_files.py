"""Tables as people have them: CSV of every usual form, Parquet, and frames in memory."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_sim.data._files import existing, read_bytes, read_parquet, reading
from fedjax_sim.ops import checks

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""The endings of compressed files."""

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins as UTF-16's does
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_DELIMITERS = (",", ";", "\t", "|")
_LINE_END = re.compile(rb"\r\n?|\n")


class Table(NamedTuple):
    """A table in memory.

    name: of the file, for messages.
    columns: all text for CSV; of any types otherwise.
    where: row of the file -> where that is, for messages.
    rows: [M] of the file, those that the columns hold.
    index_columns: those that are a pandas index.
    encoded: columns of text that are held as Arrow's categories are, but are none.
    """

    name: str
    columns: "pa.Table"
    where: Callable[[int], str]
    rows: np.ndarray
    index_columns: frozenset[str] = frozenset()
    encoded: frozenset[str] = frozenset()

    def filter(self, kept: np.ndarray) -> "Table":
        """The rows where `kept` [M] is true."""
        return self._replace(columns=self.columns.filter(kept), rows=self.rows[kept])

    def at(self, row: int) -> str:
        """Where row `row` of those that the columns hold is in the file."""
        return self.where(int(self.rows[row]))


def listed(names: Sequence[str]) -> str:
    """Names as messages list them, the first of many."""
    return ", ".join(map(checks.shown, names[:10])) + f", ... ({len(names):,} in all)" * (
        len(names) > 10
    )


def read(argument: str, source: Any, delimiter: str | None, encoding: str | None) -> Table:
    """Read a table from a path, or from anything that pyarrow takes for a table.

    A file is Parquet if it begins as Parquet does, else text; .gz, .bz2, .xz and .zst are
    decompressed. A `Table` is one already.
    """
    if isinstance(source, Table):
        return source
    if not isinstance(source, str | Path) and not hasattr(source, "__fspath__"):
        return _in_memory(argument, source)
    path = existing(argument, source)
    if path.is_dir():
        raise ValueError(f"{argument}: {path} is a folder. Name the file with the table")
    with reading(path), path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet:
        return _parquet(path)
    return _csv(path, read_bytes(path), delimiter, encoding)


def _in_memory(argument: str, source: Any) -> Table:
    import pyarrow as pa
    from pyarrow import interchange

    known = (pa.Table, pa.RecordBatch, Mapping)
    if not isinstance(source, known) and not any(
        hasattr(source, name) for name in ("__arrow_c_stream__", "__dataframe__", "iloc")
    ):
        raise TypeError(
            f"{argument} must be the path of a file, a data frame or a pyarrow.Table, got "
            f"{type(source).__name__}. For arrays use from_arrays"
        )
    try:
        if hasattr(source, "__dataframe__") and not hasattr(source, "__arrow_c_stream__"):
            table = interchange.from_dataframe(source)
        else:
            table = pa.table(source)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"{argument} is no table that Arrow can hold: {error}. Give every column its own name "
            "and values of one type"
        ) from error
    return _typed(f"the table given as {argument}", table)


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    with reading(path):
        fields = parquet.read_schema(path)
    is_text = (pa.types.is_string, pa.types.is_large_string)
    texts = [field.name for field in fields if any(each(field.type) for each in is_text)]
    table = read_parquet(path, texts)
    return _typed(path.name, table)._replace(encoded=frozenset(texts))


def _typed(name: str, table: "pa.Table") -> Table:
    if table.num_rows == 0:
        raise ValueError(f"{name} has no rows: its columns are {listed(table.column_names)}")
    _refuse_twins(name, table.column_names)
    index = (table.schema.pandas_metadata or {}).get("index_columns", ())
    return Table(
        name,
        table,
        lambda row: f"{name}, row {row} (the first is 0)",
        np.arange(table.num_rows),
        frozenset(column for column in index if isinstance(column, str)),
    )


def _refuse_twins(name: str, header: list[str]) -> None:
    twice = [column for column, times in Counter(header).items() if times > 1]
    if twice:
        raise ValueError(f"{name} has more than one column named {listed(twice)}: rename them")


def _csv(path: Path, content: bytes, delimiter: str | None, encoding: str | None) -> Table:
    content = _utf8(path, content, encoding)
    begin = _header_end(content)
    header = content[:begin].decode().strip("\r\n")
    delimiter = _delimiter(path, header, delimiter)
    try:
        (names,) = csv.reader([header], delimiter=delimiter, skipinitialspace=True)
    except (csv.Error, ValueError) as error:
        raise ValueError(
            f"{path}: the first line must name the columns, divided by {delimiter!r} ({error})"
        ) from error
    names = [name.strip() for name in names]
    _refuse_twins(str(path), names)

    def where(row: int) -> str:
        return f"{path}, line {_line(content, begin, row)}"

    columns = _rows(path, content, begin, names, delimiter, where)
    return Table(path.name, columns, where, np.arange(columns.num_rows))


def _utf8(path: Path, content: bytes, encoding: str | None) -> bytes:
    """The text of a file in UTF-8. A byte order mark says what it is in; `encoding` if none is."""
    if content.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path} is an Excel or zip file: save the sheet as CSV, or unpack it")
    mark = next((mark for mark in _BYTE_ORDER_MARKS if content.startswith(mark)), b"")
    encoding = _BYTE_ORDER_MARKS.get(mark, encoding or "utf-8")
    content = content.removeprefix(mark)
    if b"\0" in content and not encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32")):
        raise ValueError(
            f"{path} is no text in {encoding}: it holds zero bytes. UTF-16 without a byte order "
            'mark needs encoding "utf-16-le" or "utf-16-be"'
        )
    try:
        text = content.decode(encoding)
        content = content if encoding == "utf-8" else text.encode()
    except UnicodeDecodeError as error:
        line = 1 + sum(1 for _ in _LINE_END.finditer(content, 0, error.start))
        raise ValueError(
            f"{path}, line {line}: the byte 0x{content[error.start]:02x} is no text in {encoding}. "
            'Set encoding: "latin-1" or "cp1252" for most Western files, "gb18030" for Chinese '
            "ones; or save the file as UTF-8"
        ) from error
    except (LookupError, UnicodeError) as error:
        raise ValueError(
            f'encoding must name one of text, such as "utf-8", "latin-1", "utf-16", got '
            f"{checks.shown(encoding)} ({error})"
        ) from error
    return content


def _header_end(content: bytes) -> int:
    """Where the first line that is not empty ends; a quoted name may hold line ends."""
    start = len(content) - len(content.lstrip(b"\r\n"))
    quotes = 0
    for found in _LINE_END.finditer(content, start):
        quotes += content.count(b'"', start, found.start())
        start = found.end()
        if quotes % 2 == 0:
            return start
    return len(content)


def _delimiter(path: Path, header: str, given: str | None) -> str:
    """The delimiter; where none is given, the usual one that the header has most of."""
    if given is not None:
        given = given.replace("\\t", "\t")  # as a command line passes it
        if len(given) != 1 or not given.isascii() or given in '"\r\n':
            raise ValueError(
                f"delimiter must be one character such as ',' or ';', got {checks.shown(given)}"
            )
        return given
    names = re.sub('"[^"]*"', "", header)
    counts = {each: names.count(each) for each in _DELIMITERS}
    most = max(counts.values())
    found = [each for each in _DELIMITERS if counts[each] == most]
    if most and len(found) > 1:
        raise ValueError(
            f"{path}: {' or '.join(map(repr, found))} could divide the columns of the first line, "
            f"{checks.shown(names)}. Set delimiter"
        )
    return found[0]


def _rows(
    path: Path,
    content: bytes,
    begin: int,
    names: list[str],
    delimiter: str,
    where: Callable[[int], str],
) -> "pa.Table":
    import pyarrow as pa

    body = _without_spaces_before_quotes(memoryview(content)[begin:], delimiter.encode())
    ragged: list[Any] = []
    # A row must fit into a block.
    for block_size in (1 << 24, 1 << 30):
        try:
            rows = _parsed(body, names, delimiter, block_size, ragged)
            break
        except pa.ArrowInvalid as error:
            if ragged:
                raise ValueError(
                    f"{where(ragged[0].number - 1)}: {ragged[0].actual_columns} fields where the "
                    f"header has {len(names)}. Is the delimiter {delimiter!r} right, or the file "
                    "truncated?"
                ) from error
            if "straddling" not in str(error) or block_size > len(body):
                raise ValueError(f"cannot read {path}: {error}") from error
    if rows.num_rows == 0:
        raise ValueError(f"{path} needs a line of column names and at least one row")
    last = rows.column(rows.num_columns - 1)[-1].as_py()
    if content.count(b'"', begin) % 2 and re.search("[\r\n]", last):
        raise ValueError(f"{where(rows.num_rows - 1)}: a quote is opened here and never closed")
    return rows


def _without_spaces_before_quotes(body: Any, mark: bytes) -> Any:
    """`1, "a, b"` as `1,"a, b"`, which Arrow takes for a quoted field."""
    space = re.escape(mark) + b' +(?=")'
    if re.search(space, body) is None:
        return body
    # What is quoted is found first, and stays as it is.
    return re.sub(b'"[^"]*"|' + space, lambda f: f[0] if f[0].startswith(b'"') else mark, body)


def _parsed(
    body: Any, names: list[str], delimiter: str, block_size: int, ragged: list[Any]
) -> "pa.Table":
    """All fields as text; a row with another number of fields ends it, and goes into `ragged`."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    def note(row: Any) -> str:
        ragged.append(row)
        return "error"

    is_text = {name: pa.string() for name in names}
    if not re.search(rb"[^\r\n]", body):
        return pa.schema(is_text).empty_table()
    return arrow.read_csv(
        pa.py_buffer(body),
        # Row numbers are known to one thread only.
        arrow.ReadOptions(use_threads=False, block_size=block_size, column_names=names),
        arrow.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=re.search(b'"', body) is not None,
            invalid_row_handler=note,
        ),
        arrow.ConvertOptions(column_types=is_text, strings_can_be_null=False),
    )


def _line(content: bytes, begin: int, row: int) -> int:
    """The line of the file, from 1, in which a row begins: quoted fields may hold line ends."""
    line = 1 + sum(1 for _ in _LINE_END.finditer(content, 0, begin))
    start, quotes = begin, 0
    for found in _LINE_END.finditer(content, begin):
        if quotes % 2 == 0 and found.start() > start:
            if row == 0:
                break
            row -= 1
        quotes += content.count(b'"', start, found.start())
        start, line = found.end(), line + 1
    return line
