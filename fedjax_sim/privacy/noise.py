"""What a server adds to a sum, so that no client can be told from it; see `base.Noise`.

gaussian, laplace    independent from round to round
tree, banded         partly taken back in later rounds, so that a sum over many rounds has
                     little noise: for DP-FTRL, where clients are not drawn at random
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key, Noise, PyTree
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def gaussian(noise_multiplier: float | Array) -> Noise:
    """Independent normal noise of standard deviation noise_multiplier * sensitivity.

    Args:
        noise_multiplier: z >= 0, may be traced; 0 adds nothing. `privacy.epsilon` says what it is
            worth, `privacy.noise_multiplier` what a budget needs.

    References:
        Dwork, Roth, "The Algorithmic Foundations of Differential Privacy", 2014, appendix A.
    """
    checks.in_range("noise_multiplier", noise_multiplier, 0.0)

    def apply(
        key: Key, state: PyTree, total: PyTree, sensitivity: Array | float
    ) -> tuple[PyTree, PyTree]:
        return state, _drawn(jax.random.normal, key, total, noise_multiplier * sensitivity)

    return Noise(lambda total: (), apply, noise_multiplier)


@checked
def laplace(noise_multiplier: float | Array) -> Noise:
    """Independent Laplace noise of scale noise_multiplier * sensitivity, which is an L1 bound.

    Alone it gives pure differential privacy, delta = 0. An L1 bound on many numbers is tight, so
    prefer `gaussian` for all but small models.

    Args:
        noise_multiplier: b >= 0, the scale at a sensitivity of 1, may be traced.

    References:
        Dwork, McSherry, Nissim, Smith, "Calibrating Noise to Sensitivity in Private Data Analysis",
        TCC 2006.
    """
    checks.in_range("noise_multiplier", noise_multiplier, 0.0)

    def apply(
        key: Key, state: PyTree, total: PyTree, sensitivity: Array | float
    ) -> tuple[PyTree, PyTree]:
        return state, _drawn(jax.random.laplace, key, total, noise_multiplier * sensitivity)

    return Noise(lambda total: (), apply, math.sqrt(2) * noise_multiplier, "l1")


@checked
def tree(noise_multiplier: float | Array, *, num_rounds: int) -> Noise:
    """Normal noise by a binary tree: the sum of t rounds has that of at most log2(t) + 1 draws.

    Round t (from 1) draws the noise of the node that ends there, the rounds (t - lowbit(t), t], and
    takes back that of the nodes below it; lowbit is the largest power of two that divides t. So the
    sum of the first t rounds has the noise of as many nodes as t has ones in binary.

    Args:
        noise_multiplier: z >= 0, of a node, may be traced.
        num_rounds: R >= 1; after so many rounds a new tree begins.

    Returns:
        A Noise whose state is one draw a level: log2(R) + 1 times the memory of a model.

    References:
        Dwork, Naor, Pitassi, Rothblum, "Differential Privacy under Continual Observation", STOC
        2010; Kairouz et al., "Practical and Private (Deep) Learning without Sampling or Shuffling",
        ICML 2021. Honaker's estimate from all nodes is left out, as in their code by default.
    """
    checks.in_range("noise_multiplier", noise_multiplier, 0.0)
    checks.positive_int("num_rounds", num_rounds)
    num_levels = num_rounds.bit_length()

    def init(total: PyTree) -> tuple[Array, PyTree]:
        return jnp.int32(0), _zeros(total, num_levels)

    def apply(
        key: Key, state: tuple[Array, PyTree], total: PyTree, sensitivity: Array | float
    ) -> tuple[tuple[Array, PyTree], PyTree]:
        done, nodes = state
        fresh = _drawn(jax.random.normal, key, total, noise_multiplier * sensitivity)
        # The ones at the end of `done` in binary are the nodes that the new one stands above.
        level = jax.lax.population_count(done & ~(done + 1))
        below = jnp.arange(num_levels) < level

        def corrected(z: Array, drawn: Array) -> Array:
            return z - jnp.tensordot(below.astype(z.dtype), drawn, axes=1)

        noise = jax.tree.map(corrected, fresh, nodes)
        nodes = jax.tree.map(lambda drawn, z: drawn.at[level].set(z), nodes, fresh)
        return ((done + 1) % num_rounds, nodes), noise

    def encoder(rounds: int) -> Any:
        from scipy import sparse

        def ends(t: int) -> Iterator[int]:
            """The rounds (from 1) whose nodes cover round t of a tree."""
            found = t
            while found <= num_rounds:
                yield found
                found += found & -found

        pairs = [
            (start + end - 1, start + t - 1)
            for start in range(0, rounds, num_rounds)
            for t in range(1, num_rounds + 1)
            for end in ends(t)
            if start + end <= rounds
        ]
        rows, columns = np.array(pairs).T
        return sparse.csr_array((np.ones(len(pairs)), (rows, columns)), shape=(rounds, rounds))

    return Noise(init, apply, noise_multiplier, encoder=encoder)


@checked
def banded(noise_multiplier: float | Array, *, num_bands: int) -> Noise:
    """Normal noise by a banded Toeplitz matrix: every round takes back some of the last ones.

    w_t = z_t - sum_{0 < i < b} c_i w_{t-i} with c_i = binom(2 i, i) / 4^i, the coefficients of the
    square root of the matrix of prefix sums, of which the first b are kept. One band is `gaussian`.
    Prefer it to `tree`: with enough bands its prefix sums have less noise at equal privacy.

    Args:
        noise_multiplier: z >= 0, of the independent draws, may be traced.
        num_bands: b >= 1. Up to the rounds between two participations of a client it costs no
            privacy that participations overlap; more pay only for few participations.

    Returns:
        A Noise whose state is the last b - 1 noises, each of the size of a model.

    References:
        Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A unified approach to
        private training", NeurIPS 2023; Fichtenberger, Henzinger, Upadhyay, "Constant Matters:
        Fine-grained Error Bound on Differentially Private Continual Observation", ICML 2023 (the
        coefficients); Kalinin, Lampert, "Banded Square Root Matrix Factorization for Differentially
        Private Model Training", NeurIPS 2024. They optimise the bands numerically or normalise the
        columns; the coefficients are taken here as they are.
    """
    checks.in_range("noise_multiplier", noise_multiplier, 0.0)
    checks.positive_int("num_bands", num_bands)
    i = np.arange(1, num_bands)
    coefficients = np.cumprod(np.append(1.0, (2 * i - 1) / (2 * i)))

    def init(total: PyTree) -> PyTree:
        return _zeros(total, num_bands - 1)

    def apply(
        key: Key, past: PyTree, total: PyTree, sensitivity: Array | float
    ) -> tuple[PyTree, PyTree]:
        fresh = _drawn(jax.random.normal, key, total, noise_multiplier * sensitivity)

        def corrected(z: Array, last: Array) -> Array:
            return z - jnp.tensordot(jnp.asarray(coefficients[1:], z.dtype), last, axes=1)

        noise = jax.tree.map(corrected, fresh, past)
        past = jax.tree.map(lambda w, last: jnp.concatenate([w[None], last])[:-1], noise, past)
        return past, noise

    def encoder(rounds: int) -> Any:
        from scipy import sparse

        kept = coefficients[:rounds]
        return sparse.diags_array(
            kept, offsets=-np.arange(len(kept)), shape=(rounds, rounds)
        ).tocsr()

    return Noise(init, apply, noise_multiplier, encoder=encoder)


def _drawn(draw: Callable[..., Array], key: Key, total: PyTree, scale: Array | float) -> PyTree:
    """Independent numbers shaped like a sum, times `scale`."""
    return trees.scale(trees.random_like(draw, key, total), scale)


def _zeros(total: PyTree, number: int) -> PyTree:
    """As many trees like the noise of a sum, stacked."""
    return jax.tree.map(lambda x: jnp.zeros((number, *x.shape), trees.wide(x).dtype), total)
