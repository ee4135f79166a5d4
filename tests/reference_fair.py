"""Plain NumPy float64 twins of simplicial FL, PropFair, FedFV and FedDF, on rows of numbers."""

import numpy as np

import reference
from reference_fairness import Clients, Params


def superquantile_weights(losses: np.ndarray, sizes: np.ndarray, theta: float) -> np.ndarray:
    """The dual weights of the superquantile, as a linear program."""
    from scipy import optimize

    share = sizes / sizes.sum()
    found = optimize.linprog(
        -losses,
        A_eq=np.ones((1, len(losses))),
        b_eq=[1.0],
        bounds=[(0, a / theta) for a in share],
        method="highs",
    )
    return found.x


def propfair_steps(
    round_key, params: Params, clients: Clients, k: int, *, batch_size, learning_rate, m, epsilon
) -> Params:
    """One local epoch of client k on the huberised logarithm, with its derivative by hand."""
    x, y = clients[k]
    words = reference.client_words(round_key, k)
    for rows in reference.epoch_batches(words, len(y), batch_size, 0):
        loss, *gradient = reference.softmax_gradient(*params, x[rows], y[rows])
        slope = 1 / (m - loss) if m - loss >= epsilon else 1 / epsilon
        params = [v - learning_rate * slope * g for v, g in zip(params, gradient, strict=True)]
    return params


def fedfv_step(
    updates: np.ndarray,
    losses: np.ndarray,
    alpha: float,
    history: list[tuple[int, np.ndarray]],
    age_limit: int,
) -> np.ndarray:
    """FedFV's step from updates [C, D].

    Args:
        updates: [C, D].
        losses: [C].
        alpha: the share that is kept.
        history: (age in rounds, update) of every client that ever sent, this round's included.
        age_limit: tau, 0 for none.
    """
    count = len(updates)
    order = np.argsort(losses)
    kept = order[int(np.ceil((count - 1) * (1 - alpha))) :].tolist() if alpha > 0 else []
    done = updates.copy()
    for k in range(count):
        for j in order:
            dot = done[k] @ updates[j]
            if k not in kept and j != k and dot < 0:
                done[k] = done[k] - dot / (updates[j] @ updates[j]) * updates[j]
    step = done.mean(axis=0)
    for age in reversed(range(age_limit)):
        against = sum(u for a, u in history if a == age and u @ step < 0)
        if np.ndim(against) and against @ step < 0:
            step = step - (against @ step) / (against @ against) * against
    return step * np.linalg.norm(updates.mean(axis=0)) / np.linalg.norm(step)


def flat(params: Params) -> np.ndarray:
    return np.concatenate([part.ravel() for part in params])


def distilled(
    start: np.ndarray, teachers: np.ndarray, inputs: np.ndarray, rate: float, num_steps: int
) -> np.ndarray:
    """Gradient descent on KL(softmax(mean logits) || student) of linear softmax models [D, K]."""

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    target = softmax(np.mean([inputs @ w for w in teachers], axis=0))
    for _ in range(num_steps):
        start = start - rate * inputs.T @ (softmax(inputs @ start) - target) / len(inputs)
    return start
