"""DP-FedAvg: federated averaging with differential privacy for clients."""

from typing import Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import aggregators, clients, engine, metrics, privacy
from fedjax_sim.algorithms._private import accounted, check_budget, delta_of, told_the_mean
from fedjax_sim.base import Algorithm, Array, Loss, Model
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import sampling as samplers


@checked
def dp_fedavg(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    cohort_size: int,
    max_norm: float | Array,
    noise_multiplier: float | Array | None = None,
    target_epsilon: float | None = None,
    num_rounds: int | None = None,
    delta: float | None = None,
    sampling: Literal["poisson", "fixed"] = "poisson",
    per_layer: bool = False,
    adaptive: aggregators.AdaptiveClipping | None = None,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedAvg whose model hardly tells whether any one client took part.

    In every round clients are drawn at random, each update is clipped to length S, and

        w <- w + (sum_k clip(w_k - w, S) + N(0, z^2 S^2)) / C,

    with C the expected size of the cohort, whoever came. All clients count the same. The model
    after each round is (epsilon, delta)-differentially private, with the epsilon in the info, for
    whole clients: neighbouring populations differ by one client that is added or removed
    ("poisson"), or by one that is replaced by another ("fixed"). What else the info holds, such as
    losses, is not private: it is for the simulation.

    DP-FedSGD is `Batching(None, num_steps=1)`. There is no sampler and no aggregator to choose, for
    the guarantee is that of these.

    Args:
        model: what is trained; without statistics, such as those of batch normalisation, which are
            averaged without noise.
        client_optimizer, batching, loss, **options: as in `fedavg`. What clients send may be
            changed by an uplink or an attack: it is clipped afterwards.
        cohort_size: C, in [1, N]: as many as are expected, "poisson", or as many as there are.
        max_norm: S > 0, may be traced. About the median norm of an update is a good first choice.
        noise_multiplier: z >= 0, may be traced; 0 is no privacy.
        target_epsilon: instead of it, the epsilon that is reached after `num_rounds`; must be
            static.
        num_rounds: R, needed for `target_epsilon` alone. Further rounds cost more.
        delta: in (0, 1); N^-1.1 by default.
        sampling: "poisson": every client joins by itself with probability C / N; "fixed": exactly C
            are drawn, which needs two to four times the noise for the same epsilon.
        per_layer, adaptive: as in `aggregators.private_mean`.
        server: as in `fedavg`, but no optimizer that looks at the loss.

    Returns:
        An Algorithm; `info.server["epsilon"]` is that of all rounds so far, by Rényi differential
        privacy; `privacy.epsilon` often finds a lower one. `info.aggregator` has "max_norm",
        "clipped" and "noise_std".

    Raises:
        ValueError: both or none of noise_multiplier and target_epsilon; at `init`, a cohort larger
            than the population, or a model with statistics.
        ImportError: at `init`, without the extra `privacy`.

    Cost: `fedavg` and a model's size of normal numbers. A traced noise multiplier is accounted for
    on the host, once a run, in some 20 ms ("poisson") or 300 ms ("fixed").

    References:
        McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models",
        ICLR 2018, algorithm 1; Andrew et al., "Differentially Private Learning with Adaptive
        Clipping", NeurIPS 2021. As there, but clients are not weighted by their examples.
    """
    check_budget(noise_multiplier, target_epsilon, num_rounds, delta)
    checks.positive_int("cohort_size", cohort_size)
    checks.one_of("sampling", sampling, ("poisson", "fixed"))
    draw = samplers.poisson if sampling == "poisson" else samplers.uniform
    rule = clients.local_sgd(model, client_optimizer, loss=loss)

    def multiplier(num_clients: int) -> float | Array:
        if noise_multiplier is not None:
            return noise_multiplier
        assert target_epsilon is not None and num_rounds is not None  # checked above
        return privacy.noise_multiplier(
            target_epsilon,
            delta=delta_of(delta, num_clients),
            num_rounds=num_rounds,
            sampling=sampling,
            cohort_size=cohort_size,
            num_clients=num_clients,
            accountant="rdp",
        )

    def rounds(z: float | Array) -> Algorithm:
        return engine.federated(
            rule=rule,
            sampler=draw(cohort_size),
            aggregator=aggregators.private_mean(
                privacy.gaussian(z),
                max_norm=max_norm,
                expected_size=cohort_size,
                per_layer=per_layer,
                adaptive=adaptive,
            ),
            server=told_the_mean(server),
            batching=batching,
            **options,
        )

    def of_one_round(num_clients: int, z: float | Array) -> Array:
        def divergences(z: float | Array) -> np.ndarray:
            found = privacy.rdp(
                float(z), sampling=sampling, cohort_size=cohort_size, num_clients=num_clients
            )
            return found.astype(np.float32)

        if not checks.is_traced(z):
            return jnp.asarray(divergences(z))
        shape = jax.ShapeDtypeStruct(privacy.orders().shape, jnp.float32)
        return jax.pure_callback(divergences, shape, z, vmap_method="sequential")

    def epsilon(num_clients: int, spent: Array, num_done: Array) -> Array:
        return privacy.epsilon_after(spent * num_done, delta_of(delta, num_clients))

    return accounted(model, noise_multiplier, rounds, multiplier, of_one_round, epsilon)
