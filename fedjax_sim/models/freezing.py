"""Models of which a part does not learn."""

from collections.abc import Sequence

import jax

from fedjax_sim.base import Kind, Model, Params, PyTree
from fedjax_sim.ops import leaf_names, trees
from fedjax_sim.ops.arguments import checked


@checked
def freeze(model: Model, names: str | Sequence[str]) -> Model:
    """The same model with leaves that never change: a pretrained body, say, under a new head.

    Frozen leaves are one argument of a round, shared by all clients: they are not copied for each,
    not sent, and in no update, optimizer state, attack or count of bytes.

    Args:
        model: any model.
        names: of leaves, with wildcards, as `trees.flat_dict` names them: "params/body/*" are all
            leaves below body, "!params/head/*" all but those below head; see `ops.leaf_names`.
            Statistics may be named as well; they stand still then.

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

    def kinds(params: Params) -> PyTree:
        known = jax.tree.map(lambda _: Kind.TRAINED, params)
        if model.kinds is not None:
            known = model.kinds(params)
        frozen = leaf_names.is_chosen(names, params)
        if all(jax.tree.leaves(frozen)):
            raise ValueError(
                "names must match some leaves, but not all: then none learns. "
                f"Leaves: {list(trees.flat_dict(params))}."
            )
        return jax.tree.map(lambda f, kind: Kind.FROZEN if f else kind, frozen, known)

    body = None if model.body is None else model.body._replace(kinds=kinds)
    return model._replace(kinds=kinds, body=body)
