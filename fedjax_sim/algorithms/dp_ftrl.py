"""DP-FTRL: differential privacy by noise that later rounds take back, without random sampling."""

import functools
from typing import Literal, Unpack

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import aggregators, clients, engine, metrics, privacy
from fedjax_sim.algorithms._private import accounted, check_budget, delta_of, told_the_mean
from fedjax_sim.base import Algorithm, Array, Loss, Model, Noise
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import sampling as samplers


@checked
def dp_ftrl(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    cohort_size: int,
    max_norm: float | Array,
    num_rounds: int,
    noise_multiplier: float | Array | None = None,
    target_epsilon: float | None = None,
    delta: float | None = None,
    mechanism: Literal["banded", "tree"] = "banded",
    num_bands: int = 8,
    per_layer: bool = False,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedAvg with noise on the sums over rounds, so that privacy does not hang on random sampling.

    Clients take part in turn (`sampling.in_epochs`), updates are clipped to length S, and the
    model, the sum of all mean updates so far, has noise that grows slowly with the rounds, for each
    round takes back much of the noise of those before. Prefer it to `dp_fedavg` where clients
    cannot be drawn at random, as on phones that are idle or not, or for many rounds at little
    noise.

    Neighbouring populations differ by one client whose updates are zeros instead, in its rounds.

    Args:
        model, client_optimizer, batching, max_norm, per_layer, server, loss, **options: as in
            `dp_fedavg`. A server's momentum makes it DP-FTRLM.
        cohort_size: C, in [1, N]; a client takes part in every ceil(N / C)-th round.
        num_rounds: R; "epsilon" is infinite after it.
        noise_multiplier: z >= 0, of a draw, may be traced. `privacy.sensitivity` tells what it is
            worth: that of one Gaussian mechanism of z / sensitivity.
        target_epsilon: instead of it, the epsilon that is reached after `num_rounds`; static.
        delta: in (0, 1); N^-1.1 by default.
        mechanism: "banded", `privacy.banded`, or "tree", `privacy.tree` of R rounds.
        num_bands: b >= 1 of "banded", whose last b - 1 noises are kept, each of the size of the
            model; best at up to ceil(N / C).

    Returns:
        An Algorithm; `info.server["epsilon"]` is that of all rounds so far, `info.aggregator` as in
        `dp_fedavg`, "noise_std" that of a fresh draw.

    Raises:
        ValueError: both or none of noise_multiplier and target_epsilon; at `init`, a cohort larger
            than the population, or a model with statistics.
        ImportError: without the extra `privacy`.

    References:
        Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, "Practical and Private (Deep) Learning
        without Sampling or Shuffling", ICML 2021 (the tree; theirs is restarted and bounded in
        other ways); Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", NeurIPS 2023.
    """
    check_budget(noise_multiplier, target_epsilon, num_rounds, delta)
    checks.positive_int("cohort_size", cohort_size)
    checks.one_of("mechanism", mechanism, ("banded", "tree"))
    checks.positive_int("num_bands", num_bands)
    rule = clients.local_sgd(model, client_optimizer, loss=loss)

    def added(multiplier: float | Array) -> Noise:
        if mechanism == "tree":
            return privacy.tree(multiplier, num_rounds=num_rounds)
        return privacy.banded(multiplier, num_bands=num_bands)

    @functools.cache
    def sensitivity(num_clients: int) -> np.ndarray:
        period = -(-num_clients // cohort_size)
        return privacy.sensitivity(added(1.0), num_rounds=num_rounds, period=period)

    def multiplier(num_clients: int) -> float | Array:
        if noise_multiplier is not None:
            return noise_multiplier
        assert target_epsilon is not None  # checked above
        z = privacy.noise_multiplier(
            target_epsilon,
            delta=delta_of(delta, num_clients),
            num_rounds=1,
            sampling="everyone",
            accountant="rdp",
        )
        return z * float(sensitivity(num_clients)[-1])

    def rounds(z: float | Array) -> Algorithm:
        return engine.federated(
            rule=rule,
            sampler=samplers.in_epochs(cohort_size),
            aggregator=aggregators.private_mean(
                added(z),
                max_norm=max_norm,
                expected_size=cohort_size,
                per_layer=per_layer,
            ),
            server=told_the_mean(server),
            batching=batching,
            **options,
        )

    def by_order(num_clients: int, z: float | Array) -> Array:
        squared = jnp.asarray(sensitivity(num_clients) ** 2, jnp.float32)
        return squared / (2 * jnp.square(jnp.asarray(z, jnp.float32)))

    def epsilon(num_clients: int, spent: Array, num_done: Array) -> Array:
        rdp = jnp.asarray(privacy.orders(), jnp.float32) * spent[num_done - 1]
        now = privacy.epsilon_after(rdp, delta_of(delta, num_clients))
        return jnp.where(num_done <= num_rounds, now, jnp.inf)

    return accounted(model, noise_multiplier, rounds, multiplier, by_order, epsilon)
