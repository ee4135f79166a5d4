"""FedProx: local training with a pull to the server's model."""

from fedjax_sim.base import Array, ClientRule, Loss, Model
from fedjax_sim.clients.local_sgd import Optimizer, Regularizer, leafwise, local_sgd
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def prox(
    model: Model,
    optimizer: Optimizer,
    *,
    mu: float | Array,
    loss: Loss,
    regularizer: Regularizer | None = None,
) -> ClientRule:
    """`local_sgd` with a pull to the server's model: loss + mu / 2 * ||w - w_server||^2.

    Prefer it to `local_sgd` when clients make many local steps on unlike data and drift apart.

    Args:
        model, optimizer, loss, regularizer: as in `local_sgd`.
        mu: strength of the pull, >= 0, may be traced; 0 is `local_sgd`.

    References:
        Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020, eq. 2.
    """
    checks.in_range("mu", mu, 0.0)

    pull = leafwise(lambda g, v, w: g + mu * (v - w))
    return local_sgd(model, optimizer, loss=loss, regularizer=regularizer, correct=pull)
