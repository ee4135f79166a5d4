"""How the updates of a cohort lie to each other: everything that is a function of inner products.

Distances come from products of centred rows. The raw products of updates that are close together
cancel in float32, and one wrong distance can make a rule pick another client.
"""

from typing import NamedTuple

import jax.numpy as jnp

from fedjax_sim.base import Array, PyTree
from fedjax_sim.ops import order_statistics, stacked

_FAR = 1e3
"""How many median distances from the center a row may be away before covariances move it in."""
_LARGEST = 1e18
"""The largest norm whose square leaves room for sums in float32."""


class Geometry(NamedTuple):
    """Inner products of a cohort's updates around a center that few clients cannot move.

    In sums over rows the square of a far one would drown the others. So for covariances, and for
    them alone, a row that is d > 1000 median distances m away is moved in to
    1000 m (1 + log(d / 1000 m)), in its own direction: the farther one stays the farther one.

    live: [C] bool, the rows that count.
    center: [C] coefficients of the center, the mean of the half of the valid rows with the smaller
        norms.
    factors: [C], in (0, 1], by which far rows are moved in; 1 for all others.
    products: [C, C], of updates - center as they are; 0 for rows that are not valid.
    """

    live: Array
    center: Array
    factors: Array
    products: Array

    @property
    def num_live(self) -> Array:
        """How many rows count, an int32 scalar."""
        return self.live.sum()

    @property
    def squared_distances(self) -> Array:
        """||x_i - x_j||^2, [C, C]: 0 on the diagonal, infinite where a row is not valid."""
        squares = jnp.diagonal(self.products)
        found = jnp.maximum(squares[:, None] + squares[None] - 2 * self.products, 0)
        found = jnp.where(jnp.eye(len(squares), dtype=bool), 0, found)
        return jnp.where(self.live[:, None] & self.live[None], found, jnp.inf)

    def centered(self, mean: Array) -> Array:
        """Inner products [C, C] of the rows as moved in, less their mean under shares [C]."""
        moved = self.products * self.factors[:, None] * self.factors[None]
        to_mean = moved @ mean
        return moved - to_mean[:, None] - to_mean[None] + mean @ to_mean

    def covariance(self, mean: Array) -> Array:
        """[C, C] with the nonzero eigenvalues of the covariance [D, D] under shares [C].

        It is that of the rows as moved in.
        """
        roots = jnp.sqrt(mean)
        return roots[:, None] * roots[None] * self.centered(mean)

    def shares(self, parts: Array) -> Array:
        """Shares [C] of the updates for shares, which add up to 1, of the rows as moved in."""
        moved = parts * self.factors
        return moved + jnp.where((self.factors < 1).any(), 1 - moved.sum(), 0) * self.center


def measure(updates: PyTree, weights: Array) -> Geometry:
    """Look at a cohort.

    Args:
        updates: leaves [C, ...].
        weights: [C]; a row counts if its weight is positive and its norm at most 1e18.

    Cost: three passes over the updates, C^2 D multiplications in one of them, in blocks.
    """
    live, norms = finite(updates, weights)
    small = live & (norms <= order_statistics.median_of(norms, live))
    center = small / jnp.maximum(small.sum(), 1).astype(norms.dtype)
    products = stacked.gram(updates, live, center=center)
    distances = jnp.sqrt(jnp.diagonal(products))
    limit = _FAR * order_statistics.median_of(distances, live)
    far = live & (distances > limit) & (limit > 0)
    beyond = jnp.where(far, jnp.log(jnp.where(far, distances, 1)) - jnp.log(limit), 0)
    factors = jnp.where(far, limit * (1 + beyond) / jnp.where(far, distances, 1), 1)
    return Geometry(live, center, factors, products)


def finite(updates: PyTree, weights: Array) -> tuple[Array, Array]:
    """Which rows [C] have positive weight and a norm up to 1e18, and the norms, 0 for others."""
    norms = stacked.norms(updates, weights > 0)
    live = (weights > 0) & (norms <= _LARGEST)
    return live, jnp.where(live, norms, 0)
