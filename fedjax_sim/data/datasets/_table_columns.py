"""What a column of a table holds: quantities however they are written, or names of things."""

import datetime
import decimal
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_sim.data.datasets._table_files import Table
from fedjax_sim.ops import checks

if TYPE_CHECKING:
    import pyarrow as pa


class Written(NamedTuple):
    """How values are written in text; see `from_table`."""

    missing: tuple[str, ...]
    decimal: str
    thousands: str | None
    date_format: str | None


class Column(NamedTuple):
    """A column: which of its distinct values stands in each row.

    table, name: whose it is.
    codes: [M] into `distinct`; -1 where the value is missing.
    distinct: [D] values that occur; of text without the spaces around it.
    is_category: whether its type says that it holds categories.
    """

    table: Table
    name: str
    written: Written
    codes: np.ndarray
    distinct: "pa.Array"
    is_category: bool

    @property
    def title(self) -> str:
        """What it is called, for messages."""
        return f"{self.table.name}: column {checks.shown(self.name)}"

    def rows(self, of_distinct: np.ndarray, missing: Any) -> np.ndarray:
        """[D] values of the distinct values to [M] of the rows."""
        return np.append(of_distinct, missing)[self.codes]

    def text(self, code: int) -> str:
        """A distinct value as a message shows it."""
        return checks.shown(str(self.distinct[code].as_py()))

    def at(self, code: int) -> str:
        """Where the first row with a distinct value (-1: a missing one) is, for messages."""
        return self.table.at(int(np.argmax(self.codes == code)))

    def place(self, code: int) -> str:
        """The same, with the column."""
        return f"{self.at(code)}: column {checks.shown(self.name)}"


def column(table: Table, name: str, written: Written) -> Column:
    """Find the distinct values of a column.

    Raises:
        ValueError: it holds lists or other things that are neither text nor numbers nor times.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values = table.columns[name]
    is_encoded = pa.types.is_dictionary(values.type)
    kind = values.type.value_type if is_encoded else values.type
    known = (
        *(pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
        *(pa.types.is_temporal, pa.types.is_null, _is_text),
    )
    if not any(each(kind) for each in known) or pa.types.is_interval(kind):
        raise ValueError(
            f"{table.name}: column {checks.shown(name)} holds {kind!s:.60}, which is "
            "neither text nor numbers nor times. Leave it out by ignore_columns, or stack arrays "
            "for from_arrays"
        )
    if pa.types.is_null(kind):
        values, kind = values.cast(pa.large_string()), pa.large_string()
    encoded = values.unify_dictionaries() if is_encoded else values.dictionary_encode()
    encoded = encoded.combine_chunks()
    codes = _codes(encoded.indices)
    distinct = encoded.dictionary
    if _is_text(kind):
        distinct = pc.utf8_trim_whitespace(distinct.cast(pa.large_string()))
        absent = pc.is_in(distinct, value_set=pa.array(written.missing, pa.large_string()))
        distinct = pc.if_else(absent, None, distinct)
    elif pa.types.is_floating(kind):
        distinct = distinct.cast(pa.float64())
        distinct = pc.if_else(pc.is_nan(distinct), None, distinct)
    # Values that are equal now become one; those that occur nowhere (in a file without nulls, a
    # data frame after a selection) go.
    merged = distinct.dictionary_encode()
    codes = np.append(_codes(merged.indices), -1)[codes]
    is_used = np.zeros(len(merged.dictionary) + 1, bool)  # with one more, of -1
    is_used[codes] = True
    renumbered = np.cumsum(is_used, dtype=np.int32) - 1
    is_used[-1], renumbered[-1] = False, -1
    return Column(
        table,
        name,
        written,
        renumbered[codes],
        merged.dictionary.filter(pa.array(is_used[:-1])),
        is_encoded and name not in table.encoded,
    )


def _codes(indices: "pa.Array") -> np.ndarray:
    import pyarrow as pa

    return indices.cast(pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(each(kind) for each in is_text)


# ---------------------------------------------------------------- quantities

Parse = Callable[["pa.Array", Written], np.ndarray]
"""[D] values to [D] float64, NaN for what is not written as the quantity is."""

_LARGEST = float(np.finfo(np.float32).max)
_DAY = 86_400_000_000  # in microseconds
_HOUR = 3_600_000_000
_SPACES = "[ \u00a0\u2009\u202f]"  # with those that are not broken
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?$"
_TIME = re.compile(r"(\d{1,4}):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?")


def _numbers(values: "pa.Array", written: Written) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if _is_text(values.type):
        point = re.escape(written.decimal)
        whole, plain = r"\d+", values
        if written.thousands is not None:
            mark = _SPACES if written.thousands.isspace() else re.escape(written.thousands)
            whole = rf"(?:\d{{1,3}}(?:{mark}\d{{3}})+|\d+)"
            plain = pc.replace_substring_regex(plain, mark, "")
        pattern = rf"^[+-]?(?:{whole}(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?$"
        plain = pc.replace_substring(plain, written.decimal, ".")
        values = pc.if_else(pc.match_substring_regex(values, pattern), plain, None)
    elif pa.types.is_boolean(values.type) or pa.types.is_temporal(values.type):
        return np.full(len(values), np.nan)
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.abs(numbers) <= _LARGEST, numbers, np.nan)


def _percentages(values: "pa.Array", written: Written) -> np.ndarray:
    import pyarrow.compute as pc

    if not _is_text(values.type):
        return np.full(len(values), np.nan)
    is_percentage = pc.match_substring(values, "%")
    numbers = pc.replace_substring_regex(values, r"\s*%$", "")
    return _numbers(pc.if_else(is_percentage, numbers, None), written) / 100


def _days(values: "pa.Array", written: Written) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        return _microseconds(values, pa.timestamp("us", zone)) / _DAY
    if pa.types.is_duration(kind):
        return _microseconds(values, pa.duration("us")) / _DAY
    if not (_is_text(kind) or pa.types.is_integer(kind)):
        return np.full(len(values), np.nan)
    texts = values.cast(pa.large_string())
    is_iso = pc.match_substring_regex(texts, _ISO_DATE)
    days = _each_day(pc.if_else(is_iso, texts, None), datetime.datetime.fromisoformat)
    date_format = written.date_format
    if date_format is None:
        return days
    others = pc.if_else(is_iso, None, texts)
    return np.where(
        np.isnan(days),
        _each_day(others, lambda text: datetime.datetime.strptime(text, date_format)),
        days,
    )


def _each_day(values: "pa.Array", parse: Callable[[str], datetime.datetime]) -> np.ndarray:
    """Days since 1970-01-01, in UTC where a zone is given."""

    def days(text: str) -> float:
        when = parse(text)
        if when.tzinfo is not None:
            when = when.astimezone(datetime.UTC).replace(tzinfo=None)
        return (when - datetime.datetime(1970, 1, 1)) / datetime.timedelta(days=1)

    return _each(values, days)


def _hours(values: "pa.Array", written: Written) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_time(values.type):
        return _microseconds(values, pa.time64("us")) / _HOUR
    if not _is_text(values.type):
        return np.full(len(values), np.nan)
    times = pc.if_else(pc.match_substring_regex(values, f"^{_TIME.pattern}$"), values, None)
    return _each(times, _hours_of)


def _hours_of(text: str) -> float:
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(text)
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return (hours * _HOUR + minutes * _HOUR / 60 + round(seconds * 1_000_000)) / _HOUR


def _microseconds(values: "pa.Array", kind: "pa.DataType") -> np.ndarray:
    import pyarrow as pa

    return values.cast(kind, safe=False).cast(pa.int64()).to_numpy(zero_copy_only=False)


def _each(values: "pa.Array", parse: Callable[[str], float]) -> np.ndarray:
    def parsed(text: str | None) -> float:
        try:
            return np.nan if text is None else parse(text)
        except (ValueError, OverflowError):
            return np.nan

    return np.array([parsed(text) for text in values.to_pylist()], np.float64)


_TRUTHS = {"true": 1.0, "yes": 1.0, "t": 1.0, "y": 1.0, "false": 0.0, "no": 0.0, "f": 0.0, "n": 0.0}
_TRUTH_PAIRS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})


def _truths(values: "pa.Array", written: Written) -> np.ndarray:
    import pyarrow as pa

    if not (pa.types.is_boolean(values.type) or _is_text(values.type)):
        return np.full(len(values), np.nan)
    texts = values.cast(pa.large_string()).to_pylist()
    return np.array([_TRUTHS.get(text.lower(), np.nan) for text in texts], np.float64)


class Quantity(NamedTuple):
    """A way to write quantities: its name in messages, its unit, and its reader."""

    what: str
    unit: str
    parse: Parse

    def read(self, values: Column) -> np.ndarray:
        """[M] float64, NaN where a value is missing.

        Raises:
            ValueError: a value that is not written so; with its place.
        """
        found = self.parse(values.distinct, values.written)
        wrong = np.flatnonzero(np.isnan(found))
        if len(wrong):
            raise stray(values, self.what, int(wrong[0]))
        return values.rows(found, np.nan)


_DATES = Quantity("dates", " [days]", _days)
_USUAL = (
    Quantity("numbers", "", _numbers),
    Quantity("percentages", "", _percentages),
    _DATES,
    Quantity("times", " [hours]", _hours),
)
_TRUTH = Quantity("truths", "", _truths)


def quantity(values: Column, *, declared: bool = False) -> Quantity | None:
    """How all values are written as quantities; None if none is.

    Args:
        values: the column.
        declared: whether the user says that they are quantities.

    Raises:
        ValueError: some are quantities and others not, or what they are cannot be known.
    """
    for each in (*_USUAL, _TRUTH) if declared else _USUAL:
        found = each.parse(values.distinct, values.written)
        good = np.isfinite(found)
        if not good.any():
            continue
        if not good.all():
            is_good = good[values.codes[values.codes >= 0]]
            if declared or 2 * np.count_nonzero(is_good) >= len(is_good):
                raise stray(values, each.what, int(np.argmin(good)))
            code = int(np.argmax(good))
            raise ValueError(
                f"{values.place(code)} holds text, but here {values.text(code)}, which is written "
                f"as {each.what} are. Correct it, add it to missing, or list the column in "
                "categorical_columns or ignore_columns"
            )
        if each.what != "numbers" or declared or not _are_compact_dates(found):
            return each
        if np.isfinite(_days(values.distinct, values.written)).all():
            return _DATES
        raise ValueError(
            f"{values.place(0)} holds what may be dates or numbers, such as {values.text(0)}. Set "
            "date_format to '%Y%m%d', or list the column in numeric_columns"
        )
    if declared:
        raise stray(values, "quantities", 0)
    return None


def stray(values: Column, what: str, code: int) -> ValueError:
    """The error for a value that is not written as the others are."""
    holds = "must hold" if what == "quantities" else "holds"
    ways = "" if what != "numbers" else "set decimal or thousands if it is a number, "
    return ValueError(
        f"{values.place(code)} {holds} {what}, but here {values.text(code)}. Correct it, {ways}add "
        "it to missing, or list the column in categorical_columns or ignore_columns"
    )


def _are_compact_dates(numbers: np.ndarray) -> bool:
    """Whether all are dates such as 20240531."""
    if not (numbers.min() >= 19_000_101 and numbers.max() < 21_010_101):
        return False
    month, day = numbers // 100 % 100, numbers % 100
    is_date = (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31) & (numbers % 1 == 0)
    return bool(is_date.all())


def leading_zeros(values: Column) -> int | None:
    """The first text with zeros in front, as codes have and quantities have not; None if none."""
    import pyarrow.compute as pc

    if not _is_text(values.distinct.type):
        return None
    found = pc.match_substring_regex(values.distinct, r"^[+-]?0\d")
    code = pc.index(found, True).as_py()
    return None if code < 0 else code


_DATE_LIKE = re.compile(
    r"\d{1,4}[-/.]\s?\d{1,2}[-/.]\s?\d{1,4}\b.*|\d{4}[-/](0[1-9]|1[0-2])|(0[1-9]|1[0-2])/\d{4}"
    r"|\d{1,2}:\d{2}.*|.*\d.*\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b.*"
    r"|.*\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b.*\d.*",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER_LIKE = re.compile(r"([^\w\d]*?)[+-]?\d+(?:[.,'\s_]\d+)*(\D*)", re.DOTALL)


def refuse_disguised(values: Column) -> None:
    """Raise if text is quantities that are written in another way than is read."""
    if not _is_text(values.distinct.type):
        return
    texts = values.distinct.slice(0, 1_000).to_pylist()
    if texts and all(_DATE_LIKE.fullmatch(text[:_LOOKED_AT]) for text in texts):
        raise ValueError(
            f"{values.place(0)} holds what looks like dates or times, such as {values.text(0)}. "
            "Set date_format, for example to '%d.%m.%Y' or '%m/%d/%Y %H:%M', or list the column in "
            "categorical_columns or ignore_columns"
        )
    shapes = [_NUMBER_LIKE.fullmatch(text[:_LOOKED_AT]) for text in texts]
    around = {shape.groups() if shape else None for shape in shapes}
    if len(around) != 1 or None in around:
        return
    if around == {("", "")}:
        raise ValueError(
            f"{values.place(0)} holds what looks like numbers, such as {values.text(0)}. Set "
            "decimal or thousands as they are written, or list the column in categorical_columns"
        )
    if len(texts) > 1:
        raise ValueError(
            f"{values.place(0)} holds numbers with the same text around them, such as "
            f"{values.text(0)}. Take it away, and leave the numbers, or list the column in "
            "categorical_columns or ignore_columns"
        )


_LOOKED_AT = 80  # characters of a text


# ---------------------------------------------------------------- names


def naming(values: Column) -> Callable[[Column], list[str]]:
    """How the distinct values of this column, and of the same one of test rows, are called.

    Numbers are called by value, so that 1 and 1.0 are one category; so are true and TRUE.
    """
    numbers = _numbers(values.distinct, values.written)
    texts = _texts(values)
    if np.isfinite(numbers).all() and leading_zeros(values) is None:
        _refuse_two_ways(values, texts, numbers)
        return _by_value
    lower = {text.lower() for text in texts}
    if any(lower <= pair for pair in _TRUTH_PAIRS) and (
        len(lower) < len(set(texts)) or lower <= {"true", "false"}
    ):
        return lambda column: [text.lower() for text in _texts(column)]
    return _texts


def in_order(names: set[str]) -> list[str]:
    """Names in order: by value if all are numbers, else as text."""
    are_numbers = all(re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?", name) for name in names)
    return sorted(names, key=(lambda name: (decimal.Decimal(name), name)) if are_numbers else None)


def longest(values: Column) -> int:
    """The number of characters of the longest text; 0 for other columns."""
    import pyarrow.compute as pc

    if not _is_text(values.distinct.type):
        return 0
    return pc.max(pc.utf8_length(values.distinct)).as_py() or 0


def _texts(values: Column) -> list[str]:
    import pyarrow as pa

    return values.distinct.cast(pa.large_string()).to_pylist()


def _by_value(values: Column) -> list[str]:
    numbers = _numbers(values.distinct, values.written)
    return [
        text if np.isnan(number) or re.fullmatch(r"-?[1-9]\d*|0", text) else _number_name(number)
        for text, number in zip(_texts(values), numbers.tolist(), strict=True)
    ]


def _number_name(number: float) -> str:
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def _refuse_two_ways(values: Column, texts: list[str], numbers: np.ndarray) -> None:
    """Raise for 1.1 and 1.10: one number, but two versions or codes."""
    first: dict[float, int] = {}
    for code, number in enumerate(numbers.tolist()):
        other = first.setdefault(number, code)
        if other != code and not number.is_integer():
            raise ValueError(
                f"{values.place(code)} holds {texts[other]!r} and {texts[code]!r}: one number, but "
                "two texts, and so two categories or one. Write them alike"
            )
