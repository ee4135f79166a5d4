"""Models of `flax.nnx` modules."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.models._adapting import (
    can_call,
    check_floating,
    check_halves,
    mode_arguments,
    mode_of,
    rows_that_count,
    scaled,
    statistics_beside,
)
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def from_nnx(
    module: Any,
    *,
    train_argument: str | None = None,
    scale_images: bool = True,
    body: str | None = None,
    head: str | None = None,
) -> Model:
    """Make a model of a `flax.nnx` module.

    Modes, keys and statistics are handled as in `from_linen`: the module's own `train()`
    and `eval()` set them, and so do the call arguments named there. The random streams inside the
    module are replaced by the key of each call.

    Args:
        module: a function of `nnx.Rngs` that builds the module, or a built module, whose values are
            then what `init` returns for every key (to start from pretrained parameters).
        train_argument: as for `from_linen`.
        scale_images: give uint8 images to the module as float32 in [0, 1], as `as_float` does;
            keep tokens in int32.
        body, head: as for `from_linen`; the name of a layer will do as well.

    Returns:
        Model of params {"params": every nnx.Param, "state": every other variable}, nested dicts.

    Raises:
        TypeError: if `module` is neither, or if it has variables that are not floating.
        ValueError: if it does not take `train_argument`, or has no such body and head.

    >>> from flax import nnx
    >>> model = from_nnx(lambda rngs: nnx.Linear(4, 2, rngs=rngs))
    >>> sorted(model.init(jax.random.key(0), jnp.zeros((1, 4)))["params"])
    ['bias', 'kernel']
    """
    from flax import nnx

    built = isinstance(module, nnx.Module)
    if not built and not (callable(module) and can_call(module, 1)):
        raise TypeError(
            "module must be a flax.nnx module or a function of nnx.Rngs that builds one, for "
            f"example lambda rngs: Net(rngs=rngs), got {checks.shown(module)}."
        )

    def build() -> nnx.Module:
        made = nnx.clone(module) if built else module(nnx.Rngs(0))
        if not isinstance(made, nnx.Module):
            raise TypeError(f"module must build a flax.nnx module, got {checks.shown(made)}.")
        return made

    abstract: Any = nnx.eval_shape(build)
    mode = mode_arguments(abstract, train_argument)
    check_halves(abstract, body, head)

    def split(node: Any) -> Any:
        # Random streams are replaced at every call, and what a module sows is not kept.
        return nnx.split(node, nnx.Param, (nnx.RngState, nnx.Intermediate), ...)

    graphs = {}
    for training in (True, False):
        abstract.train() if training else abstract.eval()
        graphs[training], *shapes = split(abstract)
    streams, stream_tree = jax.tree.flatten(shapes[1])

    def values(node: Any) -> Params:
        _, params, _, state = split(node)
        return {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(state)}

    def filled(shape: Any, numbers: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf, shape)
        nnx.replace_by_pure_dict(state, numbers)
        return state

    def stream_values(key: Key) -> Any:
        def fresh(i: int, leaf: Any) -> Array:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.split(jax.random.fold_in(key, i), leaf.shape)
            return jnp.zeros(leaf.shape, leaf.dtype)

        return jax.tree.unflatten(stream_tree, [fresh(i, s) for i, s in enumerate(streams)])

    def call(
        part: str,
        mode: Callable[[bool], dict[str, bool]],
        params: Params,
        inputs: Array,
        key: Key,
        training: bool,
        mask: Array | None = None,
    ) -> tuple[Array, Params]:
        node = nnx.merge(
            graphs[training],
            filled(shapes[0], params["params"]),
            stream_values(key),
            filled(shapes[2], params["state"]),
        )
        if mask is not None:
            _mask_batch_norms(node, mask)
        outputs = getattr(node, part)(scaled(inputs, scale_images), **mode(training))
        return outputs, {**params, "state": values(node)["state"]}

    def init(key: Key, inputs: Array) -> Params:
        del inputs
        params = values(module if built else module(nnx.Rngs(key)))
        check_floating(params)
        # A copy, so that whoever donates the parameters does not delete the module's own.
        return jax.tree.map(jnp.copy, params)

    def part(method: str, mode: Callable[[bool], dict[str, bool]]) -> Model:
        called = functools.partial(call, method, mode)

        def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
            if key is None:
                return called(params, inputs, jax.random.key(0), training=False)[0]
            return called(params, inputs, key, training=True)[0]

        def apply_train(
            params: Params, inputs: Array, key: Key, mask: Array
        ) -> tuple[Array, Params]:
            return called(params, inputs, key, training=True, mask=mask)

        return Model(init, apply, apply_train, statistics_beside("params"))

    model = part("__call__", mode)
    if body is None or head is None:
        return model
    features, outputs = (mode_of(getattr(abstract, name), train_argument) for name in (body, head))
    return model._replace(body=part(body, features), head=part(head, outputs).apply)


def _mask_batch_norms(node: Any, mask: Array) -> None:
    """Let every batch norm of a module that is thrown away see the rows that count alone."""
    from flax import nnx

    def masked(norm: type) -> type:
        class Masked(norm):
            def __call__(self, inputs: Array, *args: Any, **kwargs: Any) -> Array:
                own = {"mask": rows_that_count(mask, inputs)}
                return super().__call__(inputs, *args, **own | kwargs)

        return Masked

    for _, child in nnx.iter_graph(node):
        if isinstance(child, nnx.BatchNorm):
            child.__class__ = masked(type(child))
