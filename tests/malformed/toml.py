"""Configuration files: wrong types, tables, unknown and doubled keys, damaged syntax, encodings."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.cli import train_options
from malformed import Case

_KINDS = {
    name: kind
    for group in typing.get_type_hints(train_options.TrainOptions).values()
    for name, kind in typing.get_type_hints(group).items()
}
_VALUES = [
    *("1", "0", "-1", "0.5", "1e308", "-1e308", "1e400", "5e-324", "inf", "-inf", "nan"),
    *("99999999999999999999999", "0x1F", "0b11", "1_000", "true", "false", '""', '"all"'),
    *('"auto"', '"1"', '"fedavg"', '"fedporx"', '"mlp"', "[]", "[1, 2]", "[[1]]", '["a", 1]'),
    *("{a = 1}", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "'C:\\d'", '"\\u0000"'),
    *('"\\u001b[31m"', '"[/red]"', '"""\nmany\nlines"""', '"' + "x" * 5000 + '"', "[1, 1e3]"),
]
_BROKEN = ["= 1", "alpha 1", "alpha =", '"alpha', "[data", "[[data]]", "alpha = 1 2", "a.b.c = 1"]
_ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"]


def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Files that `load_toml` reads; what it accepts survives being written and read again."""
    path = folder / "options.toml"
    while True:
        content = _content(rng)
        yield Case(f"{content[:200]!r}", lambda content=content: _read(path, content))


def _content(rng: np.random.Generator) -> bytes:
    lines = [_line(rng) for _ in range(rng.integers(0, 4))]
    if rng.random() < 0.2:
        lines.insert(rng.integers(0, len(lines) + 1), str(rng.choice(_BROKEN)))
    text = "\n".join(lines)
    if rng.random() < 0.1:
        text += chr(rng.integers(1, 0x2000))
    content = bytearray(text.encode(str(rng.choice(_ENCODINGS)), "replace"))
    while content and rng.random() < 0.2:
        content[rng.integers(len(content))] = rng.integers(256)
    return bytes(content)


def _line(rng: np.random.Generator) -> str:
    name = str(rng.choice([*_KINDS]))
    match rng.integers(12):
        case 0:
            name = name.replace("_", "-")
        case 1:
            at = rng.integers(len(name))
            name = name[:at] + str(rng.choice(["", "x", "_", "."])) + name[at + 1 :]
        case 2:
            name = f'"{name} "'
        case 3:
            return f"[{name}]"
    return f"{name} = {rng.choice(_VALUES)}"


def _read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    options = train_options.load_toml(path)
    text = train_options.dump_toml(options)
    path.write_text(text, encoding="utf-8")
    again = train_options.load_toml(path)
    assert train_options.dump_toml(again) == text
    for group in dataclasses.fields(options):
        for field in dataclasses.fields(getattr(options, group.name)):
            _check(getattr(getattr(options, group.name), field.name), field.name)


def _check(value: Any, name: str) -> None:
    """What was read is of the option's type."""
    plain = value if isinstance(value, tuple) else (value,)
    assert all(isinstance(each, int | float | str | Path | None) for each in plain), name
