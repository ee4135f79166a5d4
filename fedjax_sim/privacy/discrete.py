"""Integer noise for sums of integers, and the privacy of noise that many clients add a part of.

A secure sum is one of integers, so the noise of distributed differential privacy must be integer as
well: each client adds a little, and the sum has enough. `aggregators.distributed_dp` does it, and
`distributed_epsilon` says what that is worth. Samplers are compiled, in float32, for simulation:
a real client must draw its noise exactly and from secret randomness. Accounting is on the host, in
float64.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim.base import Array, Key
from fedjax_sim.ops import checks, keys
from fedjax_sim.ops.arguments import checked

Noise = Literal["skellam", "discrete_gaussian"]

ORDERS = (*range(2, 257), 384, 512, 1024)
"""Orders of Renyi divergence that are tried."""

_LARGE = 4096.0


def discrete_gaussian(key: Key, stddev: float | Array, shape: tuple[int, ...]) -> Array:
    """Draw integers x with probability proportional to exp(-x^2 / (2 stddev^2)).

    By rejection from a two-sided geometric distribution, of which about two of three are accepted.
    Uniform numbers have 23 bits, so that beyond 15 standard deviations there is nothing.

    Args:
        key: of nobody else.
        stddev: >= 0, may be traced; 0 gives zeros. The standard deviation is a little less.
        shape: of the result.

    Returns:
        int32.

    References:
        Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
        algorithm 3.
    """
    sigma = jnp.float32(stddev)
    sigma = jnp.where(sigma > 0, sigma, 1)
    scale = jnp.floor(sigma) + 1

    def draw(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, found, accepted = carry
        size, sign, coin = keys.split(keys.fold_in(key, i), 3)
        size, coin = keys.written_out(size), keys.written_out(coin)
        distance = jnp.floor(jax.random.exponential(size, shape) * scale)
        negative = jax.random.bits(keys.written_out(sign), shape, jnp.uint8) % 2 == 1
        log_ratio = -((distance - sigma**2 / scale) ** 2) / (2 * sigma**2)
        good = jnp.log(jax.random.uniform(coin, shape)) < log_ratio
        good &= ~(negative & (distance == 0))  # or zero would count twice
        new = jnp.where(negative, -distance, distance).astype(jnp.int32)
        return i + 1, jnp.where(accepted, found, new), accepted | good

    start = jnp.int32(0), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    _, found, _ = lax.while_loop(lambda carry: ~carry[2].all(), draw, start)
    return jnp.where(jnp.float32(stddev) > 0, found, 0)


def skellam(key: Key, variance: float | Array, shape: tuple[int, ...]) -> Array:
    """Draw integers that are differences of two Poisson numbers of mean variance / 2 each.

    Sums of them are of the same family. Above a variance of 4096, where float32 no longer tells
    Poisson probabilities apart, they are rounded normal numbers, which are as likely but for 1 in
    20,000.

    Args:
        key: threefry key, of nobody else.
        variance: >= 0, may be traced.
        shape: of the result.

    Returns:
        int32.
    """
    variance = jnp.float32(variance)
    up, down, normal = keys.split(key, 3)
    mean = jnp.minimum(variance, _LARGE) / 2
    small = jax.random.poisson(up, mean, shape, jnp.int32)
    small -= jax.random.poisson(down, mean, shape, jnp.int32)
    large = jnp.sqrt(variance) * jax.random.normal(keys.written_out(normal), shape)
    return jnp.where(variance > _LARGE, jnp.round(large).astype(jnp.int32), small)


def granularity(
    noise_multiplier: float | Array,
    *,
    cohort_size: int,
    num_entries: int,
    bits: int,
    num_stddevs: float | Array = 4.0,
) -> float | Array:
    """How far apart the numbers are that a sum of so many bits tells apart, by the clipping norm.

    An entry of the sum of n rotated updates, all alike at worst, has a variance of n^2 / d, to
    which rounding adds up to n g^2 / 4 and the noise z^2. The grid g is the one whose 2^bits points
    reach `num_stddevs` = k standard deviations to either side:
    g = 2 k sqrt((n^2 / d + z^2) / (4^bits - k^2 n)).

    Args:
        noise_multiplier: z >= 0.
        cohort_size: n >= 1.
        num_entries: d >= 1, a power of two.
        bits: of an entry of the sum.
        num_stddevs: k > 0: an entry of the sum leaves the range with the probability that a normal
            number is as many standard deviations away.

    Raises:
        ValueError: for so many clients there are too few bits.

    References:
        Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning
        with Secure Aggregation", ICML 2021, theorem 34 and equation 61 with a flatness of 1.
    """
    room = 4.0**bits - num_stddevs**2 * cohort_size
    if not checks.is_traced(room) and room <= 0:
        raise ValueError(
            f"bits={bits} cannot hold a sum of {cohort_size} clients' numbers and its noise. Take "
            "more bits."
        )
    variance = cohort_size**2 / num_entries + noise_multiplier**2
    return 2 * num_stddevs * (variance / room) ** 0.5


def rounded_norm(norm: float | Array, num_entries: int, beta: float) -> float | Array:
    """The Euclidean norm that a vector of norm `norm` may have after it is rounded to integers.

    Stochastic rounding keeps to it with a probability of at least 1 - beta, and is repeated until
    it does: sqrt(min((D + sqrt(d))^2, D^2 + d / 4 + sqrt(2 log(1 / beta)) (D + sqrt(d) / 2))).

    References:
        Kairouz, Liu, Steinke, ICML 2021, proposition 22 and theorem 1.
    """
    root = math.sqrt(num_entries)
    spread = math.sqrt(2 * math.log(1 / beta))
    least = (norm**2 + num_entries / 4 + spread * (norm + root / 2)) ** 0.5
    most = norm + root
    return least + (most < least) * (most - least)


def discrete_gaussian_rdp(
    orders: Sequence[float],
    *,
    norm: float,
    stddev: float,
    num_clients: int,
    num_entries: int,
) -> np.ndarray:
    """Renyi divergences of a sum to which every client adds discrete Gaussian noise.

    A sum of discrete Gaussians is none, but is as near to one as
    tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2 stddev^2 k / (k + 1)). With s = D / (sqrt(n) stddev), the
    divergence of order a is at most min(a s^2 / 2 + tau d, a (s + tau sqrt(d))^2 / 2).

    Args:
        orders: a > 1.
        norm: D, the most that one client moves the sum of integers, in Euclidean norm.
        stddev: of the noise of one client.
        num_clients: n, how many add noise.
        num_entries: d.

    Returns:
        [orders], float64.

    References:
        Kairouz, Liu, Steinke, ICML 2021, proposition 14 (equation 17) and theorem 1.
    """
    if stddev == 0:
        return np.full(len(orders), np.inf)
    k = np.arange(1, num_clients)
    tau = 10 * np.exp(-2 * np.pi**2 * stddev**2 * k / (k + 1)).sum()
    shift = norm / (math.sqrt(num_clients) * stddev)
    a = np.asarray(orders, np.float64)
    together = a * (shift + tau * math.sqrt(num_entries)) ** 2 / 2
    return np.minimum(a * shift**2 / 2 + tau * num_entries, together)


def skellam_rdp(
    orders: Sequence[float], *, norm: float, l1_norm: float, variance: float
) -> np.ndarray:
    """Renyi divergences of a sum of integers with Skellam noise of a variance, mu, in all.

    At most a D2^2 / (2 mu) + min(((2 a - 1) D2^2 + 6 D1) / (4 mu^2), 3 D1 / (2 mu)) for order a.

    Args:
        orders: integers a > 1.
        norm, l1_norm: D2 and D1, the most that one client moves the sum.
        variance: mu.

    Returns:
        [orders], float64.

    References:
        Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated
        Learning", NeurIPS 2021, corollary 3.6.
    """
    if variance == 0:
        return np.full(len(orders), np.inf)
    a = np.asarray(orders, np.float64)
    near = ((2 * a - 1) * norm**2 + 6 * l1_norm) / (4 * variance**2)
    return a * norm**2 / (2 * variance) + np.minimum(near, 3 * l1_norm / (2 * variance))


def epsilon_of_rdp(rdp: np.ndarray, orders: Sequence[float], delta: float) -> float:
    """The smallest epsilon that divergences [orders] prove at a delta.

    min_a rdp(a) + log((a - 1) / a) - (log(delta) + log(a)) / (a - 1), and at least 0.

    References:
        Canonne, Kamath, Steinke, NeurIPS 2020, proposition 12.
    """
    a = np.asarray(orders, np.float64)
    found = rdp + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)
    return max(0.0, float(found.min()))


@checked
def distributed_epsilon(
    noise_multiplier: float,
    *,
    delta: float,
    num_rounds: int,
    cohort_size: int,
    num_parameters: int,
    bits: int,
    noise: Noise = "skellam",
    num_stddevs: float = 4.0,
    beta: float = 0.6065,
    num_arrived: int | None = None,
) -> float:
    """The epsilon of training with `aggregators.distributed_dp`, whose arguments these are.

    Neighbouring populations differ by one client, who is there or sends zeros. It may take part in
    every round: nothing is won by sampling, so `num_rounds` is how often one client takes part at
    most. The server is honest but curious, and sees sums.

    Args:
        noise_multiplier: z > 0, the standard deviation of the sum's noise by the clipping norm.
        delta: in (0, 1), well below 1 / N.
        num_rounds: in which one client takes part, >= 1.
        cohort_size: n >= 3 clients, each of whom adds 1 / n of the noise's variance; `num_slots`
            there.
        num_parameters: D of the model's trained leaves.
        bits: of an entry of the sum.
        noise: which kind.
        num_stddevs, beta: as there.
        num_arrived: how many clients' noise is in the sum, where some drop out; None for all. With
            fewer there is less noise and epsilon is larger.

    Returns:
        Epsilon; infinite without noise.

    >>> round(distributed_epsilon(1.0, delta=1e-5, num_rounds=1, cohort_size=100,
    ...                           num_parameters=1000, bits=20), 1)
    4.8
    """
    checks.in_range("noise_multiplier", noise_multiplier, 0.0, float64=True)
    checks.in_range("delta", delta, 0.0, 1.0, open_low=True, open_high=True, float64=True)
    checks.positive_int("num_rounds", num_rounds)
    checks.positive_int("num_parameters", num_parameters)
    checks.in_range("beta", beta, 0.0, 1.0, open_low=True, open_high=True)
    num_arrived = cohort_size if num_arrived is None else num_arrived
    checks.integer("num_arrived", num_arrived, 1, cohort_size)
    num_entries = 1 << (num_parameters - 1).bit_length()
    grid = granularity(
        noise_multiplier,
        cohort_size=cohort_size,
        num_entries=num_entries,
        bits=bits,
        num_stddevs=num_stddevs,
    )
    norm = float(rounded_norm(1 / grid, num_entries, beta))
    own_variance = (noise_multiplier / grid) ** 2 / cohort_size
    if noise == "skellam":
        # Of integers, squares are at least absolute values.
        l1_norm = norm * min(math.sqrt(num_entries), norm)
        variance = float(own_variance * num_arrived)
        rdp = skellam_rdp(ORDERS, norm=norm, l1_norm=l1_norm, variance=variance)
    else:
        rdp = discrete_gaussian_rdp(
            ORDERS,
            norm=norm,
            stddev=math.sqrt(own_variance),
            num_clients=num_arrived,
            num_entries=num_entries,
        )
    return epsilon_of_rdp(num_rounds * rdp, ORDERS, delta)
