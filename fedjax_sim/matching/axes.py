"""Which axes of a network's weights number the neurons of which layer.

Reordering the neurons of a hidden layer changes nothing if every axis that numbers them is
reordered alike. A description names these axes: for every array of the parameters one entry per
axis, the layer whose neurons it numbers, or None for what keeps its place (inputs, outputs, the
pixels of a window). The last axis is that of the neurons an array leads into, as usual in JAX.

    "conv_1/kernel": (None, None, "conv_0", "conv_1")   # [h, w, in, out]: a filter is a neuron
    "conv_1/bias":   ("conv_1",)
    "dense_0/kernel": ("conv_1", "dense_0")             # H W blocks of conv_1's channels
    "lstm_0/kernel": ("embedding", "lstm_0")            # 4 blocks of lstm_0's units, the gates
    "lstm_0/recurrent": ("lstm_0", "lstm_0")            # the same units on both sides

**An axis longer than its layer is wide holds blocks**, each of them all neurons of the layer in
their order. So images [H, W, C] flattened to H W C inputs need no word of their own, and neither do
the four gates of an LSTM: they are blocks that share one permutation. Layers whose outputs are
added up (residual connections) share one name.
"""

import graphlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_sim.base import Array, Params
from fedjax_sim.ops import trees

Axes = Mapping[str, Sequence[str | None]]
"""Name of an array, as `trees.flat_dict` gives it -> the layer of each of its axes, or None."""

_KINDS = ("embedding", "conv", "lstm", "dense")


def neuron_axes(params: Params) -> dict[str, tuple[str | None, ...]]:
    """Describe the package's own networks: embedding, conv_i, lstm_i, dense_i, one after another.

    For `models.mlp`, the CNNs and `models.char_lstm`, and all whose parameters are named and shaped
    like theirs. For another network write the description down: see `matching.axes`.

    Args:
        params: parameters of one network or of many; only the names matter.

    Returns:
        The description: name of an array -> the layer of each of its axes.

    Raises:
        ValueError: other names, or no hidden layer.

    >>> neuron_axes({"dense_0": {"kernel": 0, "bias": 0}, "dense_1": {"kernel": 0, "bias": 0}})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'dense_0/kernel': (None, 'dense_0'), 'dense_0/bias': ('dense_0',),
     'dense_1/kernel': ('dense_0', None), 'dense_1/bias': (None,)}
    """
    names = [str(name) for name in params] if isinstance(params, Mapping) else []

    def place(name: str) -> tuple[int, int]:
        kind, _, number = name.partition("_")
        if kind not in _KINDS or not (number or "0").isdecimal():
            raise ValueError(
                f"params must be named embedding, conv_0, lstm_0, dense_0 ..., got {names}: "
                "write down which axes number the neurons of which layer, and give it as axes."
            )
        return _KINDS.index(kind), int(number or 0)

    order = sorted(names, key=place)
    if len(order) < 2:
        raise ValueError(
            f"params must have a hidden layer whose neurons can be matched, got the layers {names}."
        )
    axes: dict[str, tuple[str | None, ...]] = {}
    previous: str | None = None
    for name in order:
        own = None if name == order[-1] else name
        kind = name.partition("_")[0]
        if kind == "embedding":
            axes[name] = (None, own)
        else:
            window = (None, None) if kind == "conv" else ()
            axes[f"{name}/kernel"] = (*window, previous, own)
            if kind == "lstm":
                axes[f"{name}/recurrent"] = (own, own)
            axes[f"{name}/bias"] = (own,)
        previous = own
    return axes


class Description(NamedTuple):
    """A checked description of stacked parameters.

    axes: name of an array -> the layer of each axis after the clients'.
    widths: layer -> number of neurons; every layer after those that lead into it.
    """

    axes: dict[str, tuple[str | None, ...]]
    widths: dict[str, int]

    def places(self, layer: str) -> list[tuple[str, int]]:
        """The arrays and axes that number a layer's neurons."""
        return [
            (name, axis)
            for name, labels in self.axes.items()
            for axis, label in enumerate(labels)
            if label == layer
        ]

    def likeness(self, layer: str) -> list[tuple[str, int]]:
        """Of these, those by which neurons can be compared: not weights from a layer to itself."""
        return [
            (name, axis) for name, axis in self.places(layer) if self.axes[name].count(layer) == 1
        ]

    def leads_into(self, name: str, axis: int) -> bool:
        """Whether an axis is the one of the neurons that an array leads into."""
        return axis == len(self.axes[name]) - 1


def described(params: Params, axes: Axes | None) -> Description:
    """Check a description against stacked parameters [J, ...]; by default that of `neuron_axes`.

    Raises:
        ValueError: what does not fit, by name.
    """
    given = {name: tuple(each) for name, each in (axes or neuron_axes(params)).items()}
    shapes = {name: jnp.shape(leaf)[1:] for name, leaf in trees.flat_dict(params).items()}
    if shapes.keys() != given.keys():
        missing, unknown = sorted(shapes.keys() - given.keys()), sorted(given.keys() - shapes)
        raise ValueError(
            f"axes must have an entry for every array of params, but {missing} have none and "
            f"{unknown} are no arrays. An array of which no axis is reordered has None for each."
        )
    sizes: dict[str, list[int]] = {}
    inputs: dict[str, set[str]] = {}
    outputs: set[str] = set()
    for name, shape in shapes.items():
        labels = given[name]
        if len(labels) != len(shape):
            raise ValueError(
                f"axes[{name!r}] must have an entry for each of the {len(shape)} axes {shape}, "
                f"got {labels}."
            )
        for label, size in zip(labels, shape, strict=True):
            if label is not None:
                sizes.setdefault(label, []).append(size)
        before = {label for label in labels[:-1] if label is not None}
        if labels and labels[-1] is not None:
            inputs.setdefault(labels[-1], set()).update(before - {labels[-1]})
            before -= {labels[-1]}
        outputs |= before
    if not sizes:
        raise ValueError("axes must name a layer whose neurons can be matched, got None for all.")
    for layer, found in sizes.items():
        if not any(each[-1:] == (layer,) and each.count(layer) == 1 for each in given.values()):
            raise ValueError(
                f"axes: layer {layer!r} is the last axis of no array, but for those from itself: "
                "what leads in?"
            )
        if layer not in outputs:
            raise ValueError(
                f"axes: nothing leads out of layer {layer!r}. The outputs of a network keep their "
                "order: give their axes None."
            )
        if any(size % min(found) for size in found):
            raise ValueError(
                f"axes: layer {layer!r} has axes of {found} entries; all must be multiples of the "
                "shortest, blocks of the layer's neurons."
            )
    try:
        order = list(graphlib.TopologicalSorter(inputs).static_order())
    except graphlib.CycleError as error:
        raise ValueError(
            f"axes: the layers {error.args[1]} lead into each other, so none can come first. Give "
            "them one name if their neurons correspond."
        ) from error
    return Description(given, {layer: min(sizes[layer]) for layer in order})


def split(leaf: Any, axis: int, width: int) -> Any:
    """[before..., blocks * L, after...] -> [L, blocks, before, after]: a row for every neuron.

    Of NumPy arrays and of JAX's, as all of these.
    """
    before, after = math.prod(leaf.shape[:axis]), math.prod(leaf.shape[axis + 1 :])
    return leaf.reshape(before, -1, width, after).transpose(2, 1, 0, 3)


def join(rows: Any, axis: int, shape: Sequence[int]) -> Any:
    """The way back to an array that was of `shape`, with as many neurons as there are rows."""
    length = rows.shape[0] * rows.shape[1]
    return rows.transpose(2, 1, 0, 3).reshape(*shape[:axis], length, *shape[axis + 1 :])


def chosen(leaf: Any, axis: int, width: int, neurons: Any) -> Any:
    """Some neurons along an axis, or all in another order: `neurons[i]` comes to place i."""
    return join(split(leaf, axis, width)[neurons], axis, leaf.shape)


def spread(leaf: Array, axis: int, slots: Array, budget: int) -> Array:
    """Move one client's neurons to the places `slots` [L] of `budget` ones, the others 0.

    Slots beyond the budget are dropped.
    """
    rows = split(leaf, axis, len(slots))
    empty = jnp.zeros((budget, *rows.shape[1:]), rows.dtype)
    return join(empty.at[slots].set(rows, mode="drop"), axis, leaf.shape)
