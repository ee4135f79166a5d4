"""Distillation: one model learns to say what several say together."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.ops import checks, keys, optimizers
from fedjax_sim.ops.arguments import checked


class Distilled(NamedTuple):
    """params: the student. divergence: [num_steps], of every step's batch, before the step."""

    params: Params
    divergence: Array


@checked
def distil(
    key: Key,
    model: Model,
    teachers: Params,
    start: Params,
    inputs: Array | np.ndarray,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 1000,
    batch_size: int | None = 128,
    temperature: float | Array = 1.0,
    weights: Array | np.ndarray | None = None,
) -> Distilled:
    """Train a model on inputs without labels until it answers as the mean of others.

        min_w mean_x T^2 KL(softmax(mean_j f(w_j, x) / T) || softmax(f(w, x) / T))

    by steps on batches of inputs, drawn with replacement. A pure function for jit and vmap: fusion
    at one shot of models that were trained apart. Prefer it to `matching.pfnm` where there are
    inputs like those that will come, and to a mean of the params wherever that is bad: it knows
    only what the models say, not how they are made.

    Args:
        key: for batches and dropout.
        model: of all of them, of whose params all are trained.
        teachers: leaves [J, ...], J >= 1 models.
        start: where the student starts, such as the mean of the teachers.
        inputs: [M, ...], unlabelled.
        optimizer: of the student; Adam from a learning rate of 1e-3 that falls to 0 as a cosine, by
            default, as in FedDF.
        num_steps: >= 1, static.
        batch_size: B >= 1; None takes all inputs in every step.
        temperature: T > 0, may be traced.
        weights: [J], >= 0 with a positive sum, of the teachers' outputs; all alike by default.
            Teachers of weight 0 may hold anything.

    Returns:
        The student, and the objective step by step.

    Cost: a step is J forward passes over the batch, one after another, and one with its gradient.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015; Lin, Kong,
        Stich, Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning" (FedDF),
        NeurIPS 2020, algorithm 1.
    """
    checks.positive_int("num_steps", num_steps)
    checks.in_range("temperature", temperature, 0.0, open_low=True)
    if batch_size is not None:
        checks.positive_int("batch_size", batch_size, hint="None takes all inputs.")
    if model.kinds is not None:
        raise ValueError(
            "model must have trained leaves alone to be distilled, got one with kinds: statistics "
            "or frozen leaves. Use one without batch normalisation."
        )
    inputs = jnp.asarray(inputs)
    number = jax.tree.leaves(teachers)[0].shape[0]
    given = jnp.ones(number, jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32)
    share = jnp.where(given > 0, given, 0)
    share = share / jnp.where((given > 0).any(), share.sum(), 1)
    if optimizer is None:
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))

    def targets(x: Array) -> Array:
        def one(teacher: tuple[Params, Array]) -> Array:
            params, part = teacher
            return jnp.where(part > 0, part * model.apply(params, x), 0)

        return jax.lax.map(one, (teachers, share)).sum(axis=0)

    def objective(params: Params, x: Array, goal: Array, key: Key) -> Array:
        outputs, _ = model.train(params, x, key)
        goal, found = (jax.nn.log_softmax(z / temperature) for z in (goal, outputs))
        return temperature**2 * (jnp.exp(goal) * (goal - found)).sum(axis=-1).mean()

    # All inputs together are the same in every step.
    known = targets(inputs) if batch_size is None else None

    def step(
        carry: tuple[Params, optax.OptState], i: Array
    ) -> tuple[tuple[Params, optax.OptState], Array]:
        params, state = carry
        draw_key, own_key = keys.split(keys.fold_in(key, i))
        x, goal = inputs, known
        if batch_size is not None:
            draw_key = keys.written_out(draw_key)
            x = inputs[jax.random.randint(draw_key, (batch_size,), 0, inputs.shape[0])]
            goal = targets(x)
        divergence, gradient = jax.value_and_grad(objective)(params, x, goal, own_key)
        updates, state = optimizers.update("optimizer", optimizer, gradient, state, params)
        return (optax.apply_updates(params, updates), state), divergence

    first = (start, optimizers.init("optimizer", optimizer, start))
    (params, _), divergence = jax.lax.scan(step, first, jnp.arange(num_steps))
    return Distilled(params, divergence)
