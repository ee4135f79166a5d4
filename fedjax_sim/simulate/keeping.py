"""What a run keeps of every round's info: all of it, or what is named."""

import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

import jax

from fedjax_sim.base import PyTree

Keep = tuple[str, ...] | None
"""Dotted names of fields, such as "cohort.loss", or of groups of them, "cohort"; None for all."""


@jax.tree_util.register_pytree_node_class
class NotKept:
    """Stands in an info for a field that was not kept; whatever one does with it says so.

    It is a pytree without leaves, so that `jax.tree.map` and files pass it over.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"{self.name} was not kept: name it in run(keep=...)"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(repr(self))

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise ValueError(f"{self!r}.")

    __array__ = __bool__ = __getitem__ = __iter__ = __len__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __float__ = __int__ = __neg__ = __invert__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __and__ = __or__ = _refuse

    def tree_flatten(self) -> tuple[tuple[()], str]:
        """For JAX: no leaves, and the name."""
        return (), self.name

    @classmethod
    def tree_unflatten(cls, name: str, leaves: tuple[()]) -> "NotKept":
        """For JAX: the same again."""
        return cls(name)


def checked_keep(keep: str | Iterable[str], info: PyTree) -> Keep:
    """What `run(keep=...)` was given as a Keep, names checked against an info.

    The status of rounds is always kept.

    Raises:
        TypeError: it is a single name.
        ValueError: a name that the info does not have; says which it has.
    """
    if keep == "all":
        return None
    if keep != "nothing" and (isinstance(keep, str) or not isinstance(keep, Iterable)):
        raise TypeError(
            f'keep must be "all", "nothing" or a tuple of names such as ({keep!r},), got {keep!r}.'
        )
    wanted = () if keep == "nothing" else tuple(keep)
    known = _names(info)
    for name in wanted:
        if name not in known and not any(full.startswith(f"{name}.") for full in known):
            near = difflib.get_close_matches(str(name), known, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"keep names {name!r}, which a round's info does not have.{guess} It has: "
                f"{', '.join(known)}."
            )
    return tuple(sorted({"status", *wanted}))


def thinned(info: PyTree, keep: Keep, *also: str) -> PyTree:
    """An info with NotKept in the places of what is not named."""
    if keep is None:
        return info
    names = (*keep, *also)

    def pick(path: Any, leaf: Any) -> Any:
        name = _name(path)
        kept = any(name == each or name.startswith(f"{each}.") for each in names)
        return leaf if kept else NotKept(name)

    return jax.tree_util.tree_map_with_path(pick, info)


def _names(info: PyTree) -> list[str]:
    return [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(info)[0]]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
