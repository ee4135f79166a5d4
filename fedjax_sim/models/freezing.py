"""Models of which a part does not learn."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import jax

from fedjax_sim.base import Kind, Model, Params, PyTree
from fedjax_sim.ops import trees
from fedjax_sim.ops.arguments import checked


@checked
def freeze(model: Model, names: str | Sequence[str]) -> Model:
    """The same model with leaves that never change: a pretrained body, say, under a new head.

    Frozen leaves are one argument of a round, shared by all clients: they are not copied for each,
    not sent, and in no update, optimizer state, attack or count of bytes.

    Args:
        model: any model.
        names: of leaves, with wildcards, as `trees.flat_dict` names them: "params/body/*" are all
            leaves below body. Statistics may be named as well; they stand still then.

    Returns:
        A Model of the params of `model`.

    Raises:
        ValueError: when it is first used with params that have no such leaf, or no other.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim.base import split
    >>> from fedjax_sim.models import mlp
    >>> model = freeze(mlp(2, hidden=(3,)), "dense_0/*")
    >>> params = model.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> sorted(trees.flat_dict(split(params, model.kinds).trained))
    ['dense_1/bias', 'dense_1/kernel']
    """
    patterns = [names] if isinstance(names, str) else list(names)

    def kinds(params: Params) -> PyTree:
        known = jax.tree.map(lambda _: Kind.TRAINED, params)
        if model.kinds is not None:
            known = model.kinds(params)
        flat = trees.flat_dict(params)
        unused = [p for p in patterns if not any(fnmatchcase(name, p) for name in flat)]
        frozen = [any(fnmatchcase(name, p) for p in patterns) for name in flat]
        if unused or all(frozen):
            what = f"match none: {unused}" if unused else "match all leaves, so that none learns"
            raise ValueError(f"names must match some leaves, got {what}. Leaves: {list(flat)}.")
        leaves, structure = jax.tree.flatten(known)
        marked = [Kind.FROZEN if f else k for f, k in zip(frozen, leaves, strict=True)]
        return jax.tree.unflatten(structure, marked)

    body = None if model.body is None else model.body._replace(kinds=kinds)
    return model._replace(kinds=kinds, body=body)
