"""Leaves of a model, chosen by their names."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

import jax

from fedjax_sim.base import PyTree
from fedjax_sim.ops import checks, trees

Choice: TypeAlias = str | Sequence[str]
"""Names of leaves with wildcards, as `trees.flat_dict` has them: "dense_1/*".

Of several patterns the last that matches a name decides. One that begins with "!" takes out again
what it matches, "!dense_1/*" alone leaves all others, and "last_layer" stands for the dense layer
of the highest number.
"""
LAST_LAYER = "last_layer"


def is_chosen(choice: Choice, tree: PyTree) -> PyTree:
    """Whether each leaf is meant, in a tree shaped like `tree`.

    Raises:
        ValueError: a pattern that matches no leaf.

    >>> is_chosen(["*", "!b/*"], {"a": 0.0, "b": {"c": 1.0}})
    {'a': True, 'b': {'c': False}}
    """
    names, patterns = list(trees.flat_dict(tree)), _listed(choice)
    meant = dict.fromkeys(names, bool(patterns) and patterns[0].startswith("!"))
    for pattern in patterns:
        matched = _matched(pattern.removeprefix("!"), names)
        meant |= dict.fromkeys(matched, not pattern.startswith("!"))
    return jax.tree.unflatten(jax.tree.structure(tree), list(meant.values()))


def others(choice: Choice) -> list[str]:
    """All leaves but those that a choice means.

    >>> others("dense_1/*")
    ['*', '!dense_1/*']
    """
    patterns = _listed(choice)
    turned = [p[1:] if p.startswith("!") else f"!{p}" for p in patterns]
    return turned if patterns and patterns[0].startswith("!") else ["*", *turned]


def _listed(choice: Choice) -> list[str]:
    return [choice] if isinstance(choice, str) else list(choice)


def _matched(pattern: str, names: list[str]) -> list[str]:
    if pattern == LAST_LAYER:
        return _last_layer(names)
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise ValueError(f"names must match some leaves, got {pattern!r}. Leaves: {names}.")
    return found


def _last_layer(names: list[str]) -> list[str]:
    layer = re.compile(r"(?:params/)?dense(?:_(\d+))?/[^/]+", re.IGNORECASE)
    numbers = {name: int(found[1] or 0) for name in names if (found := layer.fullmatch(name))}
    if not numbers or (len(numbers) == len(names) and len({*numbers.values()}) == 1):
        raise ValueError(
            "there is no last layer to tell from others, which would be the dense one of the "
            f'highest number: name its leaves, such as "dense_1/*". Leaves: {checks.shown(names)}.'
        )
    return [name for name, number in numbers.items() if number == max(numbers.values())]
