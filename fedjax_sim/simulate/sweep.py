"""Many runs as one program: seeds and hyperparameters along a leading axis [G]."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_sim.base import Algorithm, Array, Key, Mean, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.engine import Evaluator
from fedjax_sim.engine.width import batched_runs, plain
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked
from fedjax_sim.simulate.result import Evaluate, Result
from fedjax_sim.simulate.run import run


@checked
def vmapped(
    make: Callable[..., Algorithm],
    hyperparameters: Mapping[str, Array | np.ndarray],
    *,
    mesh: Mesh | None = None,
) -> Algorithm:
    """G runs as one algorithm: every state, parameter and info gets a leading axis [G].

    Args:
        make: make(**hyperparameters of one run) -> Algorithm. It is traced: hyperparameters are
            scalars known only to the compiled program, so they may be numbers in formulas (learning
            rates, mu, lambda) but not sizes or choices.
        hyperparameters: name -> [G, ...] values, one row a run; none for runs that differ by their
            keys alone.
        mesh: devices with one named axis over which the runs are dealt out (`devices.mesh`); G must
            be a multiple of their number. Runs need nothing from each other, so this fills several
            devices, or the cores of a CPU, better than dealing out the clients of every run.

    Returns:
        An Algorithm for keys [G] and params with leaves [G, ...]; the data is shared.
    """
    _check_rows(hyperparameters)
    values = {name: jnp.asarray(value) for name, value in hyperparameters.items()}

    def init(key: Key, params: Params, data: FederatedData) -> PyTree:
        def runs(hyper: PyTree, key: Key, params: Params, data: FederatedData) -> PyTree:
            state = jax.vmap(lambda h, k, p: make(**h).init(k, p, data))(hyper, key, params)
            return hyper, state

        return _dealt_out(runs, mesh)(values, key, params, data)

    def step(key: Key, state: PyTree, data: FederatedData) -> tuple[PyTree, PyTree]:
        hyper, inner = state

        def runs(hyper: PyTree, key: Key, state: PyTree, data: FederatedData) -> PyTree:
            with batched_runs(key.shape[0]):
                return jax.vmap(lambda h, k, s: make(**h).step(k, s, data))(hyper, key, state)

        inner, info = _dealt_out(runs, mesh)(hyper, key, inner, data)
        return (hyper, inner), info

    def params(state: PyTree) -> Params:
        return jax.vmap(lambda h, s: make(**h).params(s))(*state)

    def personal_params(state: PyTree) -> PyTree | None:
        return jax.vmap(lambda h, s: make(**h).personal_params(s))(*state)

    def adapted(key: Key, state: PyTree, data: FederatedData) -> PyTree:
        hyper, inner = state

        def one(hyper: PyTree, key: Key, state: PyTree) -> PyTree:
            return made(hyper).adapted(key, state, data)

        with batched_runs(key.shape[0]):
            return jax.vmap(one)(hyper, key, inner)

    def made(hyper: PyTree) -> Any:
        return make(**hyper)

    adapts = made({name: value[0] for name, value in values.items()}).adapted is not None
    return Algorithm(
        init,
        step,
        params,
        personal_params=personal_params,
        adapted=adapted if adapts else None,
    )


def _dealt_out(function: Callable, mesh: Mesh | None) -> Callable:
    """`function` of arguments [G, ...] and, last, shared data; the runs dealt out to devices."""
    if mesh is None:
        return function
    ours = P(*mesh.axis_names)

    def dealt(*args: Any) -> PyTree:
        if plain():
            return function(*args)
        specs = (*[ours] * (len(args) - 1), P())
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=ours, check_vma=False)(
            *args
        )

    return dealt


def _check_rows(values: Mapping[str, Array | np.ndarray]) -> None:
    for name, value in values.items():
        if not isinstance(value, jax.Array) and np.asarray(value).dtype.kind not in "biufV":
            got = checks.shown(value)
            raise TypeError(f"hyperparameters[{name!r}] must be an array of numbers, got {got}.")
    shapes = {name: np.shape(value) for name, value in values.items()}
    if len({shape[:1] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise ValueError(
            f"hyperparameters must share their leading axis [G], one row a run, got {shapes}."
        )


@checked
def sweep(
    make: Callable[..., Algorithm],
    points: Mapping[str, Array | np.ndarray],
    init_params: Callable[[Key], Params],
    data: FederatedData,
    *,
    num_rounds: int,
    evaluate: Evaluate | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Result:
    """Run G whole runs, seeds x hyperparameters, as one compiled program.

    Args:
        make: make(**hyperparameters of one run) -> Algorithm; see `vmapped`.
        points: name -> [G, ...] values, one row a run, as `product` makes them: "seed", integers,
            and the hyperparameters that `make` takes. Run g is what `run` gives alone with the keys
            `init_key, run_key = jax.random.split(jax.random.key(seed[g]))`.
        init_params: init_params(init_key) -> params.
        data: the training population, shared.
        num_rounds, evaluate, **options: as in `run`.
        mesh: devices over which the runs are dealt out, as in `vmapped`.

    Returns:
        One Result whose params and states have a leading axis [G], infos [R, G, ...] and
        evaluations [E, G, N]. Run g equals `run` with its seed and hyperparameters, to rounding.

    Raises:
        ValueError: no "seed", values of different lengths, or runs that the mesh does not divide.

    Cost: G times the memory of a run's state; on small models far less than G times the time.

    Example:
        >>> points = product(seed=range(2), learning_rate=[0.1, 0.3])
        >>> points["learning_rate"]
        array([0.1, 0.3, 0.1, 0.3])
    """
    if "seed" not in points:
        raise ValueError(
            f"points must name the runs' seeds under 'seed', got {sorted(points)}. "
            "Make them with simulate.product(seed=range(8), ...)."
        )
    _check_rows(points)
    hyperparameters = {name: value for name, value in points.items() if name != "seed"}
    keys = jax.vmap(jax.random.key)(jnp.asarray(points["seed"], jnp.uint32))
    # Split first: a key that is both split and folded gives equal keys for unequal uses.
    init_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    params = _starting(init_params)(init_keys)
    if mesh is not None:
        if len(keys) % mesh.size:
            raise ValueError(
                f"points must make a multiple of the mesh's {mesh.size} devices, got {len(keys)} "
                "runs. Add runs, or leave mesh out."
            )
        ours = NamedSharding(mesh, P(*mesh.axis_names))
        params, run_keys = jax.device_put((params, run_keys), ours)
        data = jax.device_put(data, NamedSharding(mesh, P()))
    if evaluate is not None:
        evaluate = _of_every_run(evaluate, mesh)
    return run(
        vmapped(make, hyperparameters, mesh=mesh),
        params,
        data,
        key=run_keys,
        num_rounds=num_rounds,
        evaluate=evaluate,
        **options,
    )


# Cached, so that JAX sees the same function again and finds it compiled.
@functools.lru_cache(maxsize=16)
def _starting(init_params: Callable[[Key], Params]) -> Callable[[Key], Params]:
    """Initial parameters of G runs, from keys [G]."""
    return jax.jit(jax.vmap(init_params))


@functools.lru_cache(maxsize=16)
def _of_every_run(evaluate: Evaluate, mesh: Mesh | None) -> Evaluate:
    """`evaluate` of G models, and of the models of G times N clients if it can."""
    shared = _dealt_out(jax.vmap(evaluate, in_axes=(0, None)), mesh)
    one = inspect.unwrap(evaluate)
    if not isinstance(one, Evaluator):
        return shared

    def personal(own: PyTree, data: FederatedData, params: Params) -> dict[str, Mean]:
        each = jax.vmap(lambda o, p, d: one.personal(o, d, p), in_axes=(0, 0, None))
        return _dealt_out(each, mesh)(own, params, data)

    return Evaluator(shared, personal)


def product(**axes: Iterable[Any]) -> dict[str, np.ndarray]:
    """All combinations of the given values, as arrays [G]; the last axis varies fastest."""
    rows = list(itertools.product(*axes.values()))
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(axes)}
