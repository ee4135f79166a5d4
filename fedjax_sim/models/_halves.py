"""Models that are a head on a body."""

from collections.abc import Callable

from fedjax_sim.base import Array, Key, Model, Params


def joined(
    init: Callable[[Key, Array], Params],
    features: Callable[[Params, Array, Key | None], Array],
    head: Callable[[Params, Array], Array],
) -> Model:
    """The model whose outputs are the head of the features, and which says so."""

    def body(params: Params, inputs: Array, key: Key | None = None) -> Array:
        return features(params, inputs, key)

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        return head(params, features(params, inputs, key))

    return Model(init, apply, body=Model(init, body), head=head)
