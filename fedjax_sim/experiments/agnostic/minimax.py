"""The exact agnostic solution of a softmax regression, the yardstick of the experiments.

Host code in NumPy float64, independent of the compiled algorithms that it judges.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedjax_sim.data import FederatedData
from fedjax_sim.ops import checks

Domain = tuple[NDArray[Any], NDArray[Any]]
"""Features [m, I] and integer labels [m]."""


class Minimax(NamedTuple):
    """The saddle point of sum_k mixture_k L_k(w) + ridge / 2 ||w||^2.

    mixture: [p], the worst mixture of the domains.
    losses: [p], mean cross-entropy of every domain at the solution, without ridge.
    value: the objective, mixture @ losses + ridge term.
    kernel, bias: [I, K] and [K], the parameters.
    """

    mixture: NDArray[np.float64]
    losses: NDArray[np.float64]
    value: float
    kernel: NDArray[np.float64]
    bias: NDArray[np.float64]


def of_clients(data: FederatedData, *, ridge: float) -> Minimax:
    """`solve` with a domain for each client: the saddle point of the training losses."""
    clients = [data.client(k) for k in range(data.num_clients)]
    num_classes = 1 + max(int(each["y"].max()) for each in clients)
    return solve([(each["x"], each["y"]) for each in clients], num_classes, ridge=ridge)


def solve(
    domains: Sequence[Domain], num_classes: int, *, ridge: float, iterations: int = 40
) -> Minimax:
    """Maximise g(mixture) = min_w objective over the simplex.

    g is concave, and by the envelope theorem its gradient is the vector of the domains' losses at
    the minimiser; the inner problem is solved by L-BFGS, the outer one by sequential least squares.
    The corners of the simplex need no special case.

    Args:
        domains: p domains.
        num_classes: K.
        ridge: > 0, which makes the inner minimiser unique.
        iterations: of the outer solver, at most.

    Cost: about 10 to 20 inner solutions, each warm-started from the last.
    """
    from scipy import optimize, sparse

    checks.in_range("ridge", ridge, 0.0, open_low=True)
    sizes = np.array([len(y) for _, y in domains])
    owners = np.repeat(np.arange(len(domains)), sizes)
    dense = np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x, _ in domains])
    y = np.concatenate([np.asarray(y) for _, y in domains])
    first, counts = distinct_rows(np.column_stack([owners, y, dense]))
    owners, y, dense = owners[first], y[first], dense[first]
    x = sparse.csr_array(dense) if np.count_nonzero(dense) < 0.2 * dense.size else dense
    rows, num_features = np.arange(len(y)), dense.shape[1]

    def losses_at(flat: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
        """(cross-entropy of every distinct row, its gradient by the logits [*, K])."""
        w = flat.reshape(num_features + 1, num_classes)
        logits = x @ w[:-1] + w[-1]
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(axis=1, keepdims=True)
        loss = np.log(total[:, 0]) - logits[rows, y]
        p /= total
        p[rows, y] -= 1
        return loss, p

    def inner(flat: NDArray[np.float64], mixture: NDArray[np.float64]) -> tuple[float, NDArray]:
        loss, by_logits = losses_at(flat)
        weights = counts * (mixture / sizes)[owners]
        by_logits *= weights[:, None]
        gradient = np.concatenate([x.T @ by_logits, by_logits.sum(axis=0, keepdims=True)])
        return weights @ loss + ridge / 2 * flat @ flat, gradient.ravel() + ridge * flat

    best = np.zeros((num_features + 1) * num_classes)

    def outer(mixture: NDArray[np.float64]) -> tuple[float, NDArray]:
        nonlocal best
        # A long memory pays: one-hot features are nearly collinear and the ridge is small.
        options = {"maxiter": 3000, "ftol": 1e-12, "gtol": 1e-6, "maxcor": 100}
        found = optimize.minimize(
            inner, best, (mixture,), jac=True, method="L-BFGS-B", options=options
        )
        best = found.x
        loss, _ = losses_at(best)
        return -found.fun, -np.bincount(owners, counts * loss) / sizes

    num_domains = len(domains)
    found = optimize.minimize(
        outer,
        np.full(num_domains, 1 / num_domains),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * num_domains,
        constraints={"type": "eq", "fun": lambda m: m.sum() - 1, "jac": np.ones_like},
        options={"maxiter": iterations, "ftol": 1e-12},
    )
    mixture = np.maximum(found.x, 0) / np.maximum(found.x, 0).sum()
    mixture, value, losses = _with_traces(mixture, outer)
    w = best.reshape(num_features + 1, num_classes)
    return Minimax(mixture, -losses, -value, w[:-1], w[-1])


def _with_traces(
    mixture: NDArray[np.float64], outer: Callable[[NDArray], tuple[float, NDArray]]
) -> tuple[NDArray, float, NDArray]:
    """The mixture with a trace for domains that would be worst without any, and its `outer`."""
    value, losses = outer(mixture)
    # Of the features that a domain has alone, a domain without weight leaves only the ridge to say.
    # A trace of weight determines them, which lowers that domain's loss and moves nothing else.
    trace = 1e-6
    while trace < 1e-3:
        ahead = (-losses > -mixture @ losses + 1e-5) & (mixture < trace)
        if not ahead.any():
            break
        mixture = np.where(ahead, trace, mixture)
        mixture /= mixture.sum()
        value, losses = outer(mixture)
        trace *= 2
    return mixture, value, losses


def distinct_rows(table: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row number and the number of copies of every distinct row of [M, *]."""
    table = np.ascontiguousarray(table)
    rows = table.view(np.dtype((np.void, table.itemsize * table.shape[1])))[:, 0]
    _, first, counts = np.unique(rows, return_index=True, return_counts=True)
    return first, counts
