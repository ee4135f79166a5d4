"""How much noise costs how much privacy: epsilon from a noise multiplier, and the reverse.

Host functions on top of dp_accounting, in float64. `rdp` and `epsilon_after` are what a compiled
round needs to know its epsilon itself.

Whom neighbouring data sets differ by hangs on how clients are chosen:

    "poisson"     each client by itself with probability C / N: one client is added or removed
    "everyone"    all clients in every round: one client is added or removed
    "fixed"       C of N clients without replacement: one client is replaced by another, which
                  moves a sum twice as far as adding or removing one

A noise multiplier is always noise by the bound on what one client adds to a sum, never by the
doubled one: "fixed" doubles by itself.
"""

import contextlib
import functools
import logging
import math
import threading
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Noise
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked

Sampling = Literal["poisson", "fixed", "everyone"]
Accountant = Literal["pld", "rdp"]
Mechanism = Literal["gaussian", "laplace"]


@checked
def epsilon(
    noise_multiplier: float,
    *,
    delta: float,
    num_rounds: int,
    sampling: Sampling = "poisson",
    cohort_size: float | None = None,
    num_clients: int | None = None,
    accountant: Accountant | None = None,
    mechanism: Mechanism = "gaussian",
) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after some rounds.

    For DP-SGD a round is a step, a client an example and a cohort a batch.

    Args:
        noise_multiplier: z >= 0, the noise by the bound on one client's term of the sum: the
            standard deviation of a Gaussian by the Euclidean bound, the scale b of Laplace noise
            (density exp(-|x| / b) / 2b) by the L1 bound.
        delta: in (0, 1), well below 1 / N.
        num_rounds: R >= 1.
        sampling: how clients are chosen, which says whom neighbours differ by; see above.
        cohort_size: C, the expected size for "poisson"; not for "everyone".
        num_clients: N; not for "everyone".
        accountant: "pld" adds up privacy loss distributions, the tightest there is; "rdp" Rényi
            divergences, which is quicker and what most papers report. None is "pld", but "rdp" for
            "fixed", which has no other.
        mechanism: what is added. Laplace noise has no "fixed", and with "poisson" no "rdp".

    Returns:
        epsilon, infinite without noise. Under "rdp" it is the bound of Canonne et al. 2020,
        proposition 12, which is lower than that of papers before 2020.

    Raises:
        ImportError: without dp_accounting.

    References:
        Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism",
        2019; Wang, Balle, Kasiviswanathan, "Subsampled Rényi Differential Privacy and Analytical
        Moments Accountant", AISTATS 2019 ("fixed"); Doroshenko et al., "Connect the Dots: Tighter
        Discrete Approximations of Privacy Loss Distributions", PETS 2022.

    Example:
        >>> z = 1.12
        >>> round(epsilon(z, delta=1e-5, num_rounds=14062, cohort_size=256, num_clients=60000), 2)
        2.31
    """
    checks.in_range("noise_multiplier", noise_multiplier, 0.0)
    _check_budget(delta, num_rounds)
    rate = _rate(sampling, cohort_size, num_clients)
    known = _accountant(sampling, accountant, mechanism)
    return _epsilon(float(noise_multiplier), rate, known, mechanism, num_rounds, float(delta))


@checked
def noise_multiplier(
    epsilon: float,
    *,
    delta: float,
    num_rounds: int,
    sampling: Sampling = "poisson",
    cohort_size: float | None = None,
    num_clients: int | None = None,
    accountant: Accountant | None = None,
    mechanism: Mechanism = "gaussian",
) -> float:
    """The least noise multiplier with which so many rounds stay within a budget.

    Args:
        epsilon: > 0.
        delta, num_rounds, sampling, cohort_size, num_clients, accountant, mechanism: as in
            `epsilon`.

    Returns:
        z, up to 1e-4 above the least, never below it.

    Example:
        >>> z = noise_multiplier(2.0, delta=1e-5, num_rounds=1, sampling="everyone")
        >>> round(z, 2)
        1.99
    """
    checks.in_range("epsilon", epsilon, 0.0, open_low=True)
    _check_budget(delta, num_rounds)
    rate = _rate(sampling, cohort_size, num_clients)
    known = _accountant(sampling, accountant, mechanism)
    return _calibrated(float(epsilon), rate, known, mechanism, num_rounds, float(delta))


@checked
def rdp(
    noise_multiplier: float,
    *,
    sampling: Sampling = "poisson",
    cohort_size: float | None = None,
    num_clients: int | None = None,
) -> np.ndarray:
    """The Rényi divergences of one round with Gaussian noise, at all `orders`: [A] float64.

    Those of R rounds are R times as large; `epsilon_after` makes an epsilon of them.

    Args:
        noise_multiplier, sampling, cohort_size, num_clients: as in `epsilon`.
    """
    checks.in_range("noise_multiplier", noise_multiplier, 0.0)
    return _rdp(float(noise_multiplier), _rate(sampling, cohort_size, num_clients))


def orders() -> np.ndarray:
    """The orders alpha > 1 of `rdp`, [A]: those that dp_accounting takes by itself."""
    return np.asarray(_accounting().rdp.RdpAccountant().orders, np.float64)


def epsilon_after(rdp: Array | np.ndarray, delta: float) -> Array:
    """The epsilon of a whole run from its Rényi divergences, in float32 and within jit.

    min over alpha of rdp[alpha] + log(1 - 1 / alpha) - log(alpha delta) / (alpha - 1).

    Args:
        rdp: [A], the sum of `rdp` over all rounds.
        delta: in (0, 1), static.

    References:
        Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
        proposition 12.
    """
    alpha = orders()
    known = np.log1p(-1 / alpha) - np.log(delta * alpha) / (alpha - 1)
    rdp = jnp.asarray(rdp, jnp.float32)
    each = rdp + jnp.asarray(known, jnp.float32)
    # By Pinsker's inequality (Bretagnolle-Huber): so little divergence is within delta alone.
    each = jnp.where(-jnp.expm1(-rdp) < delta**2, 0.0, each)
    return jnp.maximum(each.min(), 0.0)


@checked
def sensitivity(noise: Noise, *, num_rounds: int, period: int) -> np.ndarray:
    """How far one client moves all sums up to each round, against noise that hangs together.

    For a client that takes part in at most every `period`-th round, and adds to a sum no more than
    1: max over the first round of || E u ||, with E the noise's encoder and u the rounds in which
    it takes part. The first t rounds are as private as one Gaussian mechanism of noise multiplier
    z / sensitivity[t - 1]: `epsilon(z / s, delta=delta, num_rounds=1, sampling="everyone")`.
    Neighbours differ by whether a client sends zeros instead; when it is asked does not change.

    Args:
        noise: Gaussian, such as `privacy.tree`.
        num_rounds: R.
        period: >= 1; N / C where every client takes part once in each pass (`sampling.in_epochs`).

    Returns:
        [R] float64, after each round.

    Cost: R * period numbers.

    References:
        Denisov et al., "Improved Differential Privacy for SGD via Optimal Private Linear Operators
        on Adaptive Streams", NeurIPS 2022; Choquette-Choo et al., "Multi-Epoch Matrix Factorization
        Mechanisms for Private Machine Learning", ICML 2023 (fixed participation, for E >= 0).
    """
    from scipy import sparse

    checks.positive_int("num_rounds", num_rounds)
    checks.positive_int("period", period)
    if noise.norm != "l2":
        raise ValueError(f'noise must be Gaussian, of norm "l2", got one of "{noise.norm}".')
    rounds = np.arange(num_rounds)
    ones, shape = np.ones(num_rounds), (num_rounds, min(period, num_rounds))
    taken = sparse.csr_array((ones, (rounds, rounds % period)), shape=shape)
    told = taken if noise.encoder is None else noise.encoder(num_rounds) @ taken
    # E is lower triangular: what is told in the first t rounds are the first t rows.
    return np.sqrt(np.cumsum(told.toarray() ** 2, axis=0).max(axis=1))


class Rate(NamedTuple):
    """Who is drawn: the way, C and N. C is what is expected where it is random."""

    sampling: Sampling
    cohort_size: float
    num_clients: int


def _rate(sampling: Sampling, cohort_size: float | None, num_clients: int | None) -> Rate:
    if sampling == "everyone":
        if (cohort_size, num_clients) != (None, None):
            raise ValueError(
                'cohort_size and num_clients say nothing under sampling="everyone", got '
                f"{checks.shown(cohort_size)} and {checks.shown(num_clients)}. Leave them out, or "
                'take sampling="poisson" or "fixed".'
            )
        return Rate(sampling, 1, 1)
    if cohort_size is None or num_clients is None:
        raise ValueError(
            f'sampling="{sampling}" needs cohort_size and num_clients, got '
            f"{checks.shown(cohort_size)} and {checks.shown(num_clients)}."
        )
    checks.positive_int("num_clients", num_clients)
    if sampling == "fixed":
        checks.integer("cohort_size", cohort_size, 1, num_clients)
    checks.in_range("cohort_size", cohort_size, 0.0, num_clients, open_low=True)
    return Rate(sampling, cohort_size, num_clients)


def _check_budget(delta: float, num_rounds: int) -> None:
    checks.in_range("delta", delta, 0.0, 1.0, open_low=True, open_high=True)
    checks.positive_int("num_rounds", num_rounds)


def _accountant(
    sampling: Sampling, accountant: Accountant | None, mechanism: Mechanism
) -> Accountant:
    if mechanism == "laplace" and sampling == "fixed":
        raise ValueError(
            'mechanism="laplace" cannot be accounted for with sampling="fixed": take "poisson".'
        )
    if accountant == "pld" and sampling == "fixed":
        raise ValueError(
            'accountant="pld" cannot account for sampling="fixed": take accountant="rdp", or '
            'sampling="poisson".'
        )
    if accountant == "rdp" and mechanism == "laplace" and sampling == "poisson":
        raise ValueError(
            'accountant="rdp" cannot account for mechanism="laplace" with sampling="poisson": take '
            'accountant="pld".'
        )
    return accountant or ("rdp" if sampling == "fixed" else "pld")


@functools.cache
def _accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise ImportError(
            "privacy is accounted for by dp-accounting, which is not installed: "
            "pip install fedjax-sim[privacy]."
        ) from error
    return dp_accounting


def _fresh(rate: Rate, accountant: Accountant) -> Any:
    """An accountant that has seen nothing yet."""
    of = _accounting()
    relations = of.NeighboringRelation
    fixed = rate.sampling == "fixed"
    relation = relations.REPLACE_ONE if fixed else relations.ADD_OR_REMOVE_ONE
    make = of.pld.PLDAccountant if accountant == "pld" else of.rdp.RdpAccountant
    return make(neighboring_relation=relation)


def _event(multiplier: float, rate: Rate, mechanism: Mechanism) -> Any:
    """What one round does, as dp_accounting has it."""
    of = _accounting()
    if multiplier == 0:
        return of.NonPrivateDpEvent()
    added = of.GaussianDpEvent if mechanism == "gaussian" else of.LaplaceDpEvent
    if rate.sampling == "fixed":
        # One client goes and another comes: a sum moves by twice the bound.
        sample = int(rate.cohort_size)
        return of.SampledWithoutReplacementDpEvent(rate.num_clients, sample, added(multiplier / 2))
    if rate.cohort_size == rate.num_clients:
        return added(multiplier)
    return of.PoissonSampledDpEvent(rate.cohort_size / rate.num_clients, added(multiplier))


@functools.lru_cache(maxsize=256)
def _epsilon(
    multiplier: float,
    rate: Rate,
    accountant: Accountant,
    mechanism: Mechanism,
    num_rounds: int,
    delta: float,
) -> float:
    event = _accounting().SelfComposedDpEvent(_event(multiplier, rate, mechanism), num_rounds)
    with _quiet():
        return float(_fresh(rate, accountant).compose(event).get_epsilon(delta))


@functools.lru_cache(maxsize=256)
def _calibrated(
    epsilon: float,
    rate: Rate,
    accountant: Accountant,
    mechanism: Mechanism,
    num_rounds: int,
    delta: float,
) -> float:
    of = _accounting()

    def composed(multiplier: float) -> Any:
        return of.SelfComposedDpEvent(_event(multiplier, rate, mechanism), num_rounds)

    # From above, for the less noise there is, the longer accounting takes. Not every bound on
    # subsampling is below that without.
    low = high = _enough(epsilon, rate, accountant, mechanism, num_rounds, delta)
    step = 1.2 if accountant == "pld" else 2.0
    while _epsilon(high, rate, accountant, mechanism, num_rounds, delta) > epsilon:
        high *= step
    while _epsilon(low, rate, accountant, mechanism, num_rounds, delta) <= epsilon:
        low, high = low / step, low
    bracket = of.mechanism_calibration.ExplicitBracketInterval(low, high)
    fresh = functools.partial(_fresh, rate, accountant)
    with _quiet():
        return float(of.calibrate_dp_mechanism(fresh, composed, epsilon, delta, bracket, tol=1e-4))


def _enough(
    epsilon: float,
    rate: Rate,
    accountant: Accountant,
    mechanism: Mechanism,
    num_rounds: int,
    delta: float,
) -> float:
    """A noise multiplier that is enough, and not far too much where that would take long."""
    if mechanism == "laplace":  # every round is (1 / z, 0)-private
        return num_rounds / epsilon
    if accountant == "pld":
        return _calibrated(epsilon, rate, "rdp", mechanism, num_rounds, delta)
    # If all clients took part in all rounds: rho-zCDP, epsilon = rho + 2 sqrt(rho log(1 / delta)).
    log = -math.log(delta)
    root = math.sqrt(log + epsilon) - math.sqrt(log)
    bound = 2 if rate.sampling == "fixed" else 1
    return bound * math.sqrt(num_rounds / 2) / root


_LOGGING = threading.RLock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep dp_accounting from logging every order that it leaves out."""
    log = logging.getLogger("absl")
    with _LOGGING:  # runs of a sweep account in threads of their own
        before = log.level
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(before)


@functools.lru_cache(maxsize=256)
def _rdp(multiplier: float, rate: Rate) -> np.ndarray:
    with _quiet():
        return _fresh(rate, "rdp").compose(_event(multiplier, rate, "gaussian")).rdp
