"""Means with noise, from which no single client can be told."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregators._sums import summed
from fedjax_sim.base import Aggregator, Array, Key, Noise, PyTree, screen
from fedjax_sim.ops import checks, keys, trees
from fedjax_sim.ops.arguments import checked


class AdaptiveClipping(NamedTuple):
    """How a clipping bound follows a quantile of the updates' norms (Andrew et al. 2021).

    quantile: gamma in [0, 1], the share of clients that shall not be clipped.
    learning_rate: eta >= 0 of log(bound), in a step against the noisy share.
    count_noise: sigma_b > noise_multiplier / 2, the standard deviation of what is added to the
        number of clients that were not clipped. None is a twentieth of the expected cohort, as the
        paper has it, or the noise multiplier where that is more.
    """

    quantile: float | Array = 0.5
    learning_rate: float | Array = 0.2
    count_noise: float | Array | None = None


class PrivateState(NamedTuple):
    """What `private_mean` keeps: the state of its noise, and the bound of the next round."""

    noise: PyTree
    max_norm: Array

    def __repr__(self) -> str:
        return screen(self)


class _Terms(NamedTuple):
    """What is added up: clipped updates, 1 or 0 for a client, 1 if it was clipped."""

    update: PyTree
    client: Array
    clipped: Array


@checked
def private_mean(
    noise: Noise,
    *,
    max_norm: float | Array,
    expected_size: float | Array,
    per_layer: bool = False,
    adaptive: AdaptiveClipping | None = None,
) -> Aggregator:
    """Differentially private mean: (sum of clipped updates + noise) / expected cohort size.

    Every update is scaled down to `max_norm`, here on the server, so that the guarantee does not
    hang on honest clients. All clients of positive weight count the same, and the sum is divided by
    a number that does not depend on who came. What that is worth hangs on the noise and on how
    clients are drawn: `algorithms.dp_fedavg` and `dp_ftrl` bind both, and tell epsilon.

    Args:
        noise: `privacy.gaussian`, `laplace`, `tree` or `banded`. It says in which norm clipping is
            done.
        max_norm: S > 0, may be traced; the bound of the first round, if it is adaptive.
        expected_size: > 0, the number of clients that is expected; may be traced.
        per_layer: clip each of the m arrays of an update by itself, to S / sqrt(m) (S / m in the L1
            norm), so that all together keep within S: where layers have very unlike norms.
        adaptive: how S moves from round to round; needs `privacy.gaussian`. The count of who was
            not clipped is told with noise of its own, which is paid for by a little more noise on
            the sum: together they are worth the noise's multiplier z, for the sum gets
            (z^-2 - (2 sigma_b)^-2)^(-1/2) instead.

    Returns:
        An aggregator whose state is a PrivateState; info holds "max_norm", S of this round,
        "clipped", the fraction of clients that were, without noise and so not private itself, and
        "noise_std" of a fresh draw in a coordinate of the mean.

    Raises:
        ValueError: adaptive clipping of layers, or with other noise than `privacy.gaussian`.

    References:
        McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models",
        ICLR 2018 (the estimator with a fixed denominator, FlatClip and PerLayerClip); Andrew,
        Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping",
        NeurIPS 2021, algorithm 1 and theorem 1.
    """
    checks.in_range("max_norm", max_norm, 0.0, open_low=True)
    checks.in_range("expected_size", expected_size, 0.0, open_low=True)
    if adaptive is not None:
        _check_adaptive(adaptive, noise, per_layer)

    def init(update: PyTree) -> PrivateState:
        return PrivateState(noise.init(update), jnp.asarray(max_norm, jnp.float32))

    def summand(
        key: Key, state: PrivateState, slot: Array, update: PyTree, weight: Array
    ) -> _Terms:
        wide = jax.tree.map(trees.wide, update)
        clipped = trees.clipped(wide, state.max_norm, kind=noise.norm, by_leaf=per_layer)
        kept, is_long, is_finite = clipped
        counts = (weight > 0) & is_finite
        return _Terms(
            jax.tree.map(lambda u: jnp.where(counts, u, 0), kept),
            counts.astype(jnp.float32),
            (counts & is_long).astype(jnp.float32),
        )

    def from_sum(
        key: Key, state: PrivateState, total: _Terms
    ) -> tuple[PrivateState, PyTree, dict[str, Array]]:
        noise_key, count_key = keys.split(key)
        sensitivity = bound = state.max_norm
        if adaptive is not None:
            count_noise = _count_noise(adaptive, noise, expected_size)
            sensitivity = sensitivity * (1 - (noise.std / (2 * count_noise)) ** 2) ** -0.5
            # Half of each client is taken off, so that one moves the count by half at most.
            count = total.client / 2 - total.clipped
            count += count_noise * jax.random.normal(keys.written_out(count_key), (), jnp.float32)
            unclipped = count / expected_size + 0.5
            bound = bound * jnp.exp(-adaptive.learning_rate * (unclipped - adaptive.quantile))
        kept, drawn = noise.apply(noise_key, state.noise, total.update, sensitivity)
        mean = trees.scale(trees.add(total.update, drawn), 1 / jnp.asarray(expected_size))
        info = {
            "max_norm": state.max_norm,
            "clipped": total.clipped / jnp.maximum(total.client, 1),
            "noise_std": jnp.asarray(noise.std * sensitivity / expected_size, jnp.float32),
        }
        return PrivateState(kept, bound.astype(jnp.float32)), mean, info

    return summed(summand, from_sum, init)._replace(of_nobody=True)


def _count_noise(
    adaptive: AdaptiveClipping, noise: Noise, expected_size: float | Array
) -> float | Array:
    if adaptive.count_noise is not None:
        return adaptive.count_noise
    return jnp.maximum(jnp.float32(expected_size) / 20, noise.std)


def _check_adaptive(adaptive: AdaptiveClipping, noise: Noise, per_layer: bool) -> None:
    checks.in_range("adaptive.quantile", adaptive.quantile, 0.0, 1.0)
    checks.in_range("adaptive.learning_rate", adaptive.learning_rate, 0.0)
    if per_layer:
        raise ValueError(
            "adaptive moves one bound for whole updates, got per_layer=True. Leave one of them out."
        )
    if noise.norm != "l2" or noise.encoder is not None:
        raise ValueError(
            "adaptive needs Gaussian noise that is independent from round to round: give "
            "noise=privacy.gaussian(noise_multiplier)."
        )
    count_noise = adaptive.count_noise
    if count_noise is not None:
        least = 0.0 if checks.is_traced(noise.std) else float(noise.std) / 2
        hint = "It must be more than half of the noise multiplier, of which it takes a part."
        checks.in_range("adaptive.count_noise", count_noise, least, open_low=True, hint=hint)
