"""Membership inference: whether a model tells which examples it was trained on.

A model that remembers examples has a lower loss on them than on others like them. Who knows an
example and the model guesses from its loss whether it was among those of a client.

    loss_attack    the guess, for each client and for all together
    area, rate     what a guess from scores is worth
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjax_sim.base import Array, Examples, Loss, Mean, Model, Params, screen
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import per_example


class Membership(NamedTuple):
    """How well members are told from others; members score higher.

    auc: [N], the chance that a member of the client scores above another example, ties half. NaN
        where the client has no members or no others.
    tpr: [N], the share of a client's members that are found while the share of its others taken for
        members is at most `max_fpr`.
    pooled_auc, pooled_tpr: of all clients together.
    curve: [k, 2], the ROC curve of all together: false-positive and true-positive rate at each
        threshold, from (0, 0) to (1, 1).
    """

    auc: np.ndarray
    tpr: np.ndarray
    pooled_auc: float
    pooled_tpr: float
    curve: np.ndarray

    def __repr__(self) -> str:
        return screen(self)


@checked
def loss_attack(
    model: Model,
    params: Params,
    members: FederatedData,
    others: FederatedData,
    *,
    loss: Loss,
    max_fpr: float = 0.01,
    block_size: int = 2048,
) -> Membership:
    """Guess that examples of low loss were trained on.

    The simplest attack, so what it finds is a lower bound. The others must be drawn as the members
    were, or it finds what else tells the two sets apart.

    Args:
        model: in evaluation mode.
        params: of the model that was trained.
        members: what it was trained on.
        others: held-out examples of the same clients, or of one client, which then stand against
            everybody's.
        loss: of an example; its mean over what it counts.
        max_fpr: false-positive rate of `tpr`, in [0, 1].
        block_size: examples at once.

    Returns:
        A Membership, on the host.

    Raises:
        ValueError: populations that differ in their number of clients; losses that are not finite.

    References:
        Yeom, Giacomelli, Fredrikson, Jha, "Privacy Risk in Machine Learning: Analyzing the
        Connection to Overfitting", CSF 2018, section 3.2. Carlini et al., "Membership Inference
        Attacks From First Principles", S&P 2022, on true positives at few false ones.
    """
    checks.in_range("max_fpr", max_fpr, 0.0, 1.0)
    checks.positive_int("block_size", block_size)
    if others.num_clients not in (1, members.num_clients):
        raise ValueError(
            f"others must hold the {members.num_clients} clients of members, or one for all, got "
            f"{others.num_clients}."
        )
    inside, outside = (_scores(model, params, data, loss, block_size) for data in (members, others))
    against = outside * (members.num_clients // others.num_clients)
    pairs = list(zip(inside, against, strict=True))
    everybody = np.concatenate(inside), np.concatenate(outside)
    return Membership(
        auc=np.array([area(*pair) for pair in pairs]),
        tpr=np.array([rate(*pair, max_fpr=max_fpr) for pair in pairs]),
        pooled_auc=area(*everybody),
        pooled_tpr=rate(*everybody, max_fpr=max_fpr),
        curve=_curve(*everybody),
    )


def area(members: ArrayLike, others: ArrayLike) -> float:
    """The area under the ROC curve of scores: how often a member's is above another's, ties half.

    Exact, by ranks. NaN if either is empty.

    >>> area([1, 2, 3], [0, 2])
    0.75
    """
    inside, outside = np.asarray(members), np.sort(others)
    if not (inside.size and outside.size):
        return float("nan")
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.mean() / (2 * outside.size))


def rate(members: ArrayLike, others: ArrayLike, *, max_fpr: float) -> float:
    """The share of members above a threshold that at most a share `max_fpr` of the others exceeds.

    NaN if either is empty.

    >>> rate([1, 2, 3], [0, 2], max_fpr=0.0)
    0.3333333333333333
    """
    inside, outside = np.asarray(members), np.sort(others)[::-1]
    if not (inside.size and outside.size):
        return float("nan")
    allowed = int(max_fpr * outside.size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    threshold = outside[allowed] if allowed < outside.size else -np.inf
    return float((inside > threshold).mean())


def _curve(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[k, 2]: false-positive and true-positive rate above each score, and above none."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]

    def share(scores: np.ndarray) -> np.ndarray:
        below = np.searchsorted(np.sort(scores), thresholds, "left")
        return np.concatenate([[0.0], 1 - below / scores.size])

    return np.stack([share(others), share(members)], axis=1)


def _scores(
    model: Model, params: Params, data: FederatedData, loss: Loss, block_size: int
) -> list[np.ndarray]:
    """Minus the loss of each example that counts, client by client."""
    each = per_example(loss, "loss")
    num_rows, width = data.num_examples, min(block_size, data.num_examples)

    @jax.jit
    def losses(params: Params, examples: Examples) -> Mean:
        def block(first: Array) -> Mean:
            rows = jnp.minimum(first + jnp.arange(width), num_rows - 1)
            return each(model.apply(params, examples["x"][rows]), examples["y"][rows])

        blocks = jax.lax.map(block, jnp.arange(0, num_rows, width))
        return jax.tree.map(lambda x: x.reshape(-1)[:num_rows], blocks)

    total, count = (np.asarray(x, np.float64) for x in losses(params, data.examples))
    edges = np.searchsorted(np.asarray(data.owners), np.arange(data.num_clients + 1))
    scores = []
    for rows in itertools.starmap(slice, itertools.pairwise(edges)):
        counted = count[rows] > 0
        scores.append(-total[rows][counted] / count[rows][counted])
    wrong = sum((~np.isfinite(each)).sum() for each in scores)
    if wrong:
        raise ValueError(
            f"the losses of {wrong} of {num_rows} examples are not finite: has the model diverged?"
        )
    return scores
