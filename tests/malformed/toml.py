"""Configuration files: wrong types, tables, unknown and doubled keys, damaged syntax, encodings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.experiments import options as options_of
from fedjax_sim.parts import spec
from malformed import Case

_KINDS = [
    *options_of.KINDS,
    *(name for name, _ in spec.options(options_of.resolve().parts, options_of.KINDS)),
    *(*spec.SLOTS, "aggregator.num_byzantine", "mu"),
]
_VALUES = [
    *("1", "0", "-1", "0.5", "1e308", "-1e308", "1e400", "5e-324", "inf", "-inf", "nan"),
    *("99999999999999999999999", "0x1F", "0b11", "1_000", "true", "false", '""', '"all"'),
    *('"auto"', '"1"', '"fedavg"', '"fedporx"', '"mlp"', "[]", "[1, 2]", "[[1]]", '["a", 1]'),
    *(
        "{a = 1}",
        '{part = "iid"}',
        '{part = "krum", num_byzantine = 1}',
        '"krum(',
        '"iid"',
        "1979-05-27",
        "07:32:00",
        "1979-05-27T07:32:00Z",
        "'C:\\d'",
        '"\\u0000"',
    ),
    *('"\\u001b[31m"', '"[/red]"', '"""\nmany\nlines"""', '"' + "x" * 5000 + '"', "[1, 1e3]"),
]
_BROKEN = ["= 1", "alpha 1", "alpha =", '"alpha', "[data", "[[data]]", "alpha = 1 2", "a.b.c = 1"]
_ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"]


def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Files that `from_file` reads; what it accepts survives being written and read again."""
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
    options = options_of.resolve(options_of.from_file(path))
    text = options_of.to_toml(options)
    path.write_text(text, encoding="utf-8")
    again = options_of.resolve(options_of.from_file(path))
    assert options_of.to_toml(again) == text
    assert options_of.flat(again) == options_of.flat(options) | {"output": None, "overwrite": False}
    for name in options_of.KINDS:
        _check(options_of.flat(options)[name], name)


def _check(value: Any, name: str) -> None:
    """What was read is of the option's type."""
    plain = value if isinstance(value, tuple) else (value,)
    assert all(isinstance(each, int | float | str | Path | None) for each in plain), name
