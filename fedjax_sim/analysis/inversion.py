"""Gradient inversion: what the update of a client tells of its examples.

A server that is honest but curious knows the model it sent and what clients are asked to do with
it. It looks for inputs with which a client would have sent what the server received. How near it
comes, without a defence and with one, is what the defence buys.

    client_update                     what the server receives from a client
    deep_leakage, invert_gradients    inputs that explain it: two attacks
    infer_labels                      the labels, which they take
    matched                           how near the inputs are to the true ones
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from fedjax_sim.base import (
    Array,
    Batch,
    Client,
    ClientRule,
    Examples,
    Key,
    Message,
    Model,
    Params,
    PyTree,
    Uplink,
    screen,
    split,
)
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks, keys, optimizers, permutation, trees
from fedjax_sim.ops.arguments import checked

WHOLE = Batching(None)
"""One step on all examples, as in FedSGD."""


class Reconstruction(NamedTuple):
    """What an attack found.

    inputs: [n, ...], those of the start that explains best what was received.
    distance: scalar, how far the update that they would give is from it.
    distances: [T], the same of every start.
    """

    inputs: Array
    distance: Array
    distances: Array

    def __repr__(self) -> str:
        return screen(self)


@checked
def client_update(
    key: Key,
    rule: ClientRule,
    params: Params,
    examples: Examples,
    *,
    batching: Batching = WHOLE,
    uplink: Uplink | None = None,
) -> PyTree:
    """Give the update that the server receives from a client with these examples, in round 0.

    Pure, and differentiable in the examples where rule and uplink are.

    Args:
        key: of the client's round: the order of its batches, and what rule and uplink draw.
        rule: what the client does, for a server that shares params.
        params: the server's model, whole.
        examples: {"x" [n, ...], "y" [n]}, all that the client has.
        batching: its local steps; all examples at once by default.
        uplink: what its update goes through.

    Returns:
        The update, such as `client params - server params`, after `uplink.receive`.
    """
    size = len(examples["y"])
    num_steps = int(batching.steps(size, size))
    leaves = split(params, rule.kinds)
    message = Message(
        leaves.trained,
        round=jnp.int32(0),
        statistics=leaves.statistics,
        frozen=leaves.frozen,
    )
    client = Client(jnp.int32(0), jnp.int32(size), jnp.int32(num_steps))
    begin_key, steps_key, finish_key, uplink_key, order_key = keys.split(key, 5)
    words = permutation.words(order_key)

    def advance(work: PyTree, step: Array) -> tuple[PyTree, None]:
        rows, mask = batching.positions(words, size, step, size)
        batch = Batch({name: jnp.asarray(x)[rows] for name, x in examples.items()}, mask)
        return rule.step(keys.fold_in(steps_key, step), work, message, batch), None

    state = rule.init(params)
    work = rule.begin(begin_key, state, message, client)
    work, _ = jax.lax.scan(advance, work, jnp.arange(num_steps, dtype=jnp.int32))
    _, upload, _ = rule.finish(finish_key, state, message, client, work)
    if uplink is None:
        return upload.update
    kept = uplink.init(upload.update)
    _, sent, _, _ = uplink.apply(uplink_key, kept, message, upload.update, upload.weight)
    return sent if uplink.receive is None else uplink.receive(uplink_key, message, sent)


@checked
def deep_leakage(
    key: Key,
    rule: ClientRule,
    params: Params,
    received: PyTree,
    *,
    labels: Array,
    shape: Sequence[int],
    limits: tuple[float, float] = (0.0, 1.0),
    batching: Batching = WHOLE,
    uplink: Uplink | None = None,
    num_starts: int = 4,
    num_steps: int = 100,
    optimizer: optax.GradientTransformation | None = None,
) -> Reconstruction:
    """Look for inputs whose update is near the received one: "deep leakage from gradients".

    Minimises ||update(x) - received||^2 / ||received||^2 over x from random starts. It needs the
    size of the update, and a smooth model (tanh or sigmoid instead of ReLU), for it rests on second
    derivatives; few examples in a step. `invert_gradients` asks for less of either.

    Pure: jit it, or vmap it over `received` to attack several clients or defences in one program.

    Args:
        key: of the starts, and of what the attacker draws when it repeats the client's work.
        rule: what the attacker takes the client to do, such as `clients.local_sgd`.
        params: the model that the client got, whole.
        received: its update, see `client_update`.
        labels: [n] integers; see `infer_labels`.
        shape: of an input, static, such as (28, 28, 1).
        limits: between which the inputs lie; the result is cut to them.
        batching: the client's local steps. The attacker's order of batches is its own, which
            matters from the second epoch on, or if it knows which label is whose.
        uplink: what the attacker takes into account of the uplink, such as clipping or
            `uplink.top_k`. Rounding has no gradient, and what is drawn is not what the client drew:
            leave those out.
        num_starts: T >= 1, static.
        num_steps: of the optimizer, >= 1, static.
        optimizer: `optax.lbfgs()` by default, what the paper took.

    Returns:
        A Reconstruction, of the best iterate of the best start.

    References:
        Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, algorithm 1; with the labels
        given, as Zhao, Mopuri, Bilen, "iDLG", 2020, have it. The distance is relative, so that a
        learning rate does not change it.
    """
    _check_limits(limits)
    starts, simulate = _prepared(key, rule, params, labels, shape, num_starts, batching, uplink)
    scale = trees.norm(received)

    def objective(inputs: Array) -> Array:
        offset = trees.norm(trees.subtract(simulate(inputs), received)) / scale
        return offset**2

    best = optax.lbfgs() if optimizer is None else optimizer
    found = _searched(objective, starts, best, num_steps, lambda inputs: inputs)
    return found._replace(inputs=jnp.clip(found.inputs, *limits))


@checked
def invert_gradients(
    key: Key,
    rule: ClientRule,
    params: Params,
    received: PyTree,
    *,
    labels: Array,
    shape: Sequence[int],
    limits: tuple[float, float] = (0.0, 1.0),
    batching: Batching = WHOLE,
    uplink: Uplink | None = None,
    smoothness: float | Array = 1e-3,
    num_starts: int = 4,
    num_steps: int = 400,
    learning_rate: float | Array = 0.1,
) -> Reconstruction:
    """Look for smooth images whose update has the direction of the received one.

    Minimises 1 - cos(update(x), received) + smoothness * total variation of x, by Adam on the signs
    of the gradient, with the pixels kept within limits; the step is divided by ten after 3/8, 5/8
    and 7/8 of the steps. The size of the update does not matter, which makes it the stronger attack
    on updates that are clipped, and on models with ReLUs.

    Args:
        key, rule, params, received, labels, batching, uplink: as in `deep_leakage`.
        shape: of an image, static, (H, W) or (H, W, channels).
        limits: of the pixels.
        smoothness: weight of the total variation, >= 0, may be traced; more of it helps against
            noise.
        num_starts, num_steps: as in `deep_leakage`.
        learning_rate: of the first steps, > 0, may be traced; in units of `limits`.

    Returns:
        A Reconstruction; its distance has the total variation in it.

    References:
        Geiping, Bauermeister, Droege, Moeller, "Inverting Gradients - How easy is it to break
        privacy in federated learning?", NeurIPS 2020, eq. 4 and section 6 for several local steps.
    """
    if len(shape) not in (2, 3):
        raise ValueError(f"shape must be (H, W) or (H, W, channels), got {tuple(shape)}.")
    _check_limits(limits)
    checks.in_range("smoothness", smoothness, 0.0)
    checks.in_range("learning_rate", learning_rate, 0.0, open_low=True)
    starts, simulate = _prepared(key, rule, params, labels, shape, num_starts, batching, uplink)
    low, high = limits

    def objective(inputs: Array) -> Array:
        return _angle(simulate(inputs), received) + smoothness * total_variation(inputs)

    drops = {num_steps * eighths // 8: 0.1 for eighths in (3, 5, 7)}
    schedule = optax.piecewise_constant_schedule(1.0, drops)
    optimizer = optax.chain(
        optax.scale_by_sign(),
        optax.scale_by_adam(),
        optax.scale_by_schedule(lambda step: -learning_rate * (high - low) * schedule(step)),
    )
    starts = jnp.clip(low + (high - low) * starts, low, high)
    return _searched(
        objective, starts, optimizer, num_steps, lambda inputs: jnp.clip(inputs, low, high)
    )


def total_variation(images: Array) -> Array:
    """The mean absolute difference of neighbours, down and across, of images [n, H, W, ...]."""
    down = jnp.abs(images[:, 1:] - images[:, :-1]).mean()
    return down + jnp.abs(images[:, :, 1:] - images[:, :, :-1]).mean()


@checked
def infer_labels(
    model: Model, params: Params, gradient: PyTree, num_examples: int, *, shape: Sequence[int]
) -> np.ndarray:
    """Tell the labels of a batch from the gradient of the last layer's bias.

    The gradient of the mean cross-entropy with respect to the bias of a class is its mean
    probability less the share of the examples that have it. So the lowest entry is a class that is
    there: it is taken, 1 / n is added to the entry, and so on until there are n labels. With one
    example that is always right; with more while no class is much more probable than another, as
    before training.

    Args:
        model: with outputs [B, K] to whose last layer a bias is added.
        params: the model that the client got.
        gradient: shaped like the trained leaves: of a step of `optax.sgd(rate)`, -update / rate.
        num_examples: n >= 1.
        shape: of an input.

    Returns:
        [n] int32, ascending: which example has which cannot be told.

    Raises:
        ValueError: a model without such a bias.

    References:
        Zhao, Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020, for one example.
        Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", PoPETs
        2022, for more.
    """
    checks.positive_int("num_examples", num_examples)
    name = _output_bias(model, params, shape)
    known = trees.flat_dict(gradient)
    bias = np.array(known[name], np.float64)
    labels = []
    for _ in range(num_examples):
        labels.append(int(bias.argmin()))
        bias[labels[-1]] += 1 / num_examples
    return np.sort(np.array(labels, np.int32))


class Match(NamedTuple):
    """Reconstructed inputs beside the true ones.

    inputs: [n, ...], in the order of the true ones.
    mse: [n], the mean squared error of each.
    psnr: [n], the peak signal-to-noise ratio in dB; infinite where nothing is wrong.
    """

    inputs: np.ndarray
    mse: np.ndarray
    psnr: np.ndarray

    def __repr__(self) -> str:
        return screen(self)


@checked
def matched(inputs: ArrayLike, true: ArrayLike, *, span: float = 1.0) -> Match:
    """Put reconstructed inputs into the order of the true ones that makes their error least.

    Args:
        inputs, true: [n, ...]; the sum of squared errors is least in the order that is found.
        span: largest less smallest value that an input may have, for the PSNR, 10 log10(span^2 /
            mse). Above 20 dB or so a picture is recognised.

    Returns:
        A Match.

    Raises:
        ValueError: shapes that differ.
    """
    from scipy.optimize import linear_sum_assignment

    found, wanted = np.asarray(inputs, np.float64), np.asarray(true, np.float64)
    if found.shape != wanted.shape or not found.size:
        raise ValueError(
            f"inputs and true must have one shape, [n, ...], got {found.shape} and {wanted.shape}."
        )
    checks.in_range("span", span, 0.0, open_low=True)
    rows, targets = (x.reshape(len(x), -1) for x in (found, wanted))
    errors = np.stack([((rows - target) ** 2).mean(axis=1) for target in targets])
    _, order = linear_sum_assignment(errors)
    mse = errors[np.arange(len(errors)), order]
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(span**2 / mse)
    return Match(found[order], mse, psnr)


def _check_limits(limits: tuple[float, float]) -> None:
    if not limits[0] < limits[1]:
        raise ValueError(f"limits must be (lowest, highest), got {checks.shown(limits)}.")


def _prepared(
    key: Key,
    rule: ClientRule,
    params: Params,
    labels: Array,
    shape: Sequence[int],
    num_starts: int,
    batching: Batching,
    uplink: Uplink | None,
) -> tuple[Array, Callable[[Array], PyTree]]:
    """Random starts [T, n, ...], and the update that inputs would give."""
    checks.positive_int("num_starts", num_starts)
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"labels must be [n] integers, one an example, got shape {labels.shape}.")
    start_key, client_key = keys.split(key)
    starts = jax.random.normal(
        keys.written_out(start_key), (num_starts, labels.shape[0], *shape), jnp.float32
    )

    def simulate(inputs: Array) -> PyTree:
        examples = {"x": inputs, "y": labels}
        return client_update(client_key, rule, params, examples, batching=batching, uplink=uplink)

    return starts, simulate


def _searched(
    objective: Callable[[Array], Array],
    starts: Array,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    project: Callable[[Array], Array],
) -> Reconstruction:
    """Descend from every start, and keep the best that was seen."""
    checks.positive_int("num_steps", num_steps)
    look = jax.value_and_grad(objective)

    def descend(start: Array) -> tuple[Array, Array]:
        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            inputs, state, best, least = carry
            value, gradient = look(inputs)
            best = jnp.where(value < least, inputs, best)
            known = {"value": value, "grad": gradient, "value_fn": objective}
            moves, state = optimizers.update(
                "optimizer", optimizer, gradient, state, inputs, **known
            )
            inputs = project(optax.apply_updates(inputs, moves))
            return (inputs, state, best, jnp.fmin(value, least)), None

        state = optimizers.init("optimizer", optimizer, start)
        carry = (start, state, start, jnp.float32(jnp.inf))
        (inputs, _, best, least), _ = jax.lax.scan(step, carry, length=num_steps)
        value = objective(inputs)
        return jnp.where(value < least, inputs, best), jnp.fmin(value, least)

    inputs, distances = jax.vmap(descend)(starts)
    best = distances.argmin()
    return Reconstruction(inputs[best], distances[best], distances)


def _angle(a: PyTree, b: PyTree) -> Array:
    """1 - the cosine of the angle between two trees; 1 where one of them is zero."""
    product = sum(jax.tree.leaves(jax.tree.map(lambda x, y: (x * y).sum(), a, b)))
    size = trees.norm(a) * trees.norm(b)
    return 1 - product / jnp.where(size > 0, size, 1)


def _output_bias(model: Model, params: Params, shape: Sequence[int]) -> str:
    """The name of the leaf that is added to the outputs: what is added to it is added to them."""
    inputs = jnp.zeros((1, *shape))
    outputs = model.apply(params, inputs)[0]
    change = jnp.linspace(1, 2, outputs.size)
    leaves, structure = jax.tree.flatten(params)
    for i, (name, leaf) in enumerate(trees.flat_dict(params).items()):
        if leaf.shape != outputs.shape:
            continue
        moved = jax.tree.unflatten(structure, [*leaves[:i], leaf + change, *leaves[i + 1 :]])
        if np.allclose(model.apply(moved, inputs)[0] - outputs, change, rtol=1e-3):
            return name
    raise ValueError(
        "infer_labels needs a model whose last layer has a bias: no leaf of params "
        f"{[*trees.flat_dict(params)]} is added to its outputs."
    )
