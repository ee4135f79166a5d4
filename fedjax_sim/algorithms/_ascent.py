"""The mixture of domains, lambda, and how it moves: what agnostic algorithms share."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, PyTree
from fedjax_sim.data import FederatedData, fitting
from fedjax_sim.ops import checks, simplex

Schedule = Callable[[Array], Array]
"""schedule(number of steps so far) -> step size, as optax has them."""


Method = Literal["projected", "exponentiated"]


class Ascent(NamedTuple):
    """How the mixture lambda of the domains moves towards those that fare worst.

    step_size: gamma >= 0, may be traced; or an optax schedule of it.
    method: "projected" gradient ascent, lambda <- project(lambda + gamma * losses), or
        "exponentiated", lambda_k <- lambda_k exp(gamma * loss_k) / sum, which keeps every lambda_k
        > 0. None is that of the algorithm's paper.
    projection: onto the set of mixtures, Lambda: `simplex.project`, or with bounds or given
        mixtures `functools.partial(simplex.project_capped, high=0.5)` and
        `functools.partial(simplex.project_onto_hull, mixtures=...)`.
    initial: lambda_0 [p] on the simplex and in Lambda, by default the point of Lambda nearest to
        uniform; may be traced.
    """

    step_size: float | Array | Schedule
    method: Method | None = None
    projection: Callable[[Array], Array] = simplex.project
    initial: Array | np.ndarray | None = None

    def checked(self, method: Method) -> "Ascent":
        """The same with the method of the paper where none is given, if it can be used."""
        if not callable(self.step_size):
            checks.in_range("step_size", self.step_size, 0.0)
        ascent = self if self.method else self._replace(method=method)
        checks.one_of("method", ascent.method, ("projected", "exponentiated"))
        if ascent.method == "exponentiated" and ascent.projection is not simplex.project:
            raise ValueError(
                'projection must be simplex.project with method="exponentiated", which knows the '
                'whole simplex only. Use method="projected" for another set.'
            )
        return ascent

    def start(self, num_domains: int) -> Array:
        """lambda_0 [p]."""
        if self.initial is None:
            return self.projection(jnp.full(num_domains, 1 / num_domains, jnp.float32))
        checks.distribution("initial", self.initial, num_domains, entry="domain")
        if checks.is_traced(self.initial):
            return jnp.asarray(self.initial, jnp.float32)
        with jax.ensure_compile_time_eval():
            given = jnp.asarray(self.initial, jnp.float32)
            nearest = self.projection(given)
            distance = jnp.abs(nearest - given).max()
        # A set may have traced bounds.
        if not checks.is_traced(distance) and float(distance) > 1e-3:
            raise ValueError(
                "initial must lie in the set that projection projects onto, got "
                f"{given.tolist()}; the nearest point of the set is {nearest.tolist()}."
            )
        return given

    def moved(self, mixture: Array, gradient: Array, num_steps: Array) -> Array:
        """lambda after a step along `gradient` [p], the losses of the domains.

        NaN where that is no mixture, which becomes a status: a projection of one's own may leave
        the simplex, and losses may be infinite.
        """
        at = self.step_size(num_steps) if callable(self.step_size) else self.step_size
        step_size = jnp.asarray(at, jnp.float32)
        if self.method == "exponentiated":
            new = simplex.exponentiated_gradient(mixture, gradient, step_size)
        else:
            new = self.projection(mixture + step_size * gradient)
        return jnp.where(simplex.contains(new), new, jnp.nan)


class Domains(NamedTuple):
    """Domains that are no clients: an array of the examples says which one each belongs to.

    name: of the array, integers [M] in [0, number).
    number: p >= 1, static.
    """

    name: str
    number: int

    def column(self, examples: dict[str, Array]) -> Array:
        """The domain of every example, int32 [M]."""
        return examples[self.name].astype(jnp.int32)


def check_domains(domains: Domains | None, data: FederatedData | None = None) -> None:
    """Raise unless domains are what they should be, and in the data where that is given."""
    if domains is None:
        return
    checks.positive_int("number", domains.number)
    if data is not None:
        fitting.check_domains(data, domains.name, domains.number)


def running_mean(mean: PyTree, value: PyTree, count: Array) -> PyTree:
    """The mean of `count` values, from that of the first count - 1 and the newest."""

    def moved(m: Array, x: Array) -> Array:
        wide = jnp.promote_types(m.dtype, jnp.float32)
        return (m + (x - m) / count.astype(wide)).astype(m.dtype)

    return jax.tree.map(moved, mean, value)
