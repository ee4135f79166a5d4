"""Attacks made of statistics of what others send, without knowing the rule."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from fedjax_sim.attacks import _rows
from fedjax_sim.attacks._crafting import Knowledge, together
from fedjax_sim.base import Array, Attack, Key, PyTree
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked

Direction = Literal["unit", "sign", "std", "above"]
"""Where to deviate from the mean m: -m / ||m||, -sign(m), -s or ("above") s, the deviations."""


@checked
def inner_product(epsilon: float | Array, *, knows: Knowledge = "honest") -> Attack:
    """Inner product manipulation (IPM): everybody malicious sends -epsilon * mean.

    Args:
        epsilon: >= 0, may be traced. Small (0.1) hides among the honest and slows learning, large
            (2) reverses the direction of a plain mean.
        knows: whose mean.

    References:
        Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
        Manipulation", UAI 2019.
    """
    checks.in_range("epsilon", epsilon, 0.0)

    def craft(key: Key, updates: PyTree, seen: Array, malicious: Array) -> tuple[PyTree, dict]:
        return trees.scale(_rows.mean(updates, seen), -epsilon), {}

    return together(craft, knows)


@checked
def little_is_enough(
    z: float | Array | None = None,
    *,
    side: Literal["below", "above"] = "below",
    knows: Knowledge = "honest",
) -> Attack:
    """A little is enough (ALIE): everybody malicious sends mean - z * standard deviation.

    The deviation (coordinate by coordinate, ddof 1) is small enough to have honest updates farther
    out, which then support the attackers against a median or Krum.

    Args:
        z: may be traced. None takes the largest that theory calls safe: with n updates, m of them
            malicious, s = floor(n / 2 + 1) - m, z = Phi^-1((n - m - s) / (n - m)), which is
            negative (no harm) for a small minority.
        side: "above" is mean + z * standard deviation. Updates here are steps, minus gradients: to
            attack them as the authors attack gradients, from below, they must be moved up. The
            sides are not alike: a ReLU network whose parameters all grow explodes and dies, one
            whose parameters all shrink learns on.
        knows: whose mean and deviation.

    Returns:
        An attack whose info holds "strength", z.

    References:
        Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed
        Learning", NeurIPS 2019, algorithm 3.
    """
    if z is not None:
        checks.in_range("z", z)
    checks.one_of("side", side, ("below", "above"))
    direction: Direction = "above" if side == "above" else "std"

    def craft(key: Key, updates: PyTree, seen: Array, malicious: Array) -> tuple[PyTree, dict]:
        strength = jnp.float32(_largest_safe(seen, malicious, knows) if z is None else z)
        mean, against = _rows.mean(updates, seen), _against(updates, seen, direction)
        return _deviate(mean, against, strength), {"strength": strength}

    return together(craft, knows)


def _largest_safe(seen: Array, malicious: Array, knows: Knowledge) -> Array:
    """The z of `little_is_enough`; who knows only their own has to guess: as many as they are."""
    num_malicious = malicious.sum()
    num_honest = seen.sum() if knows == "honest" else (~malicious).sum()
    num_needed = (num_honest + num_malicious) // 2 + 1 - num_malicious
    share = (num_honest - num_needed) / jnp.maximum(num_honest, 1)
    return jax.scipy.special.ndtri(jnp.clip(share, 1e-6, 1 - 1e-6))


@checked
def deviation(
    strength: float | Array, *, direction: Direction = "std", knows: Knowledge = "honest"
) -> Attack:
    """Everybody malicious sends mean + strength * p, p one of the directions that do harm.

    `little_is_enough` is direction "std", `inner_product` "unit" with a strength of
    (1 + epsilon) ||mean||. Give it to `adaptive` for the attacks that are tailored to a rule.

    Args:
        strength: may be traced.
        direction: p = -mean / ||mean|| ("unit"), -sign(mean) ("sign"), -standard deviation ("std")
            or +standard deviation ("above", what "std" is for gradients: see `little_is_enough`).
        knows: whose mean and deviation.

    References:
        Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
        Defenses for Federated Learning", NDSS 2021, eq. 5.
    """
    checks.in_range("strength", strength)
    checks.one_of("direction", direction, get_args(Direction))

    def craft(key: Key, updates: PyTree, seen: Array, malicious: Array) -> tuple[PyTree, dict]:
        mean, against = _rows.mean(updates, seen), _against(updates, seen, direction)
        return _deviate(mean, against, jnp.float32(strength)), {}

    return together(craft, knows)


@checked
def min_max(*, direction: Direction = "std", knows: Knowledge = "honest") -> Attack:
    """Deviate from the mean until no update is farther from another than honest ones are.

    Sends mean + gamma * p with the largest gamma for which the largest distance to an honest update
    is at most the largest distance between two of them. Needs no knowledge of the defence.

    The paper finds gamma by bisection; here it is the root of a quadratic, exact to rounding.

    Args:
        direction: as in `deviation`.
        knows: whose updates.

    Returns:
        An attack whose info holds "strength", gamma.

    Cost: all distances between updates, O(C^2 D).

    References:
        Shejwalkar, Houmansadr, NDSS 2021 (see `deviation`), eq. 8.
    """
    return _as_far_as_honest(direction, knows, worst=True)


@checked
def min_sum(*, direction: Direction = "std", knows: Knowledge = "honest") -> Attack:
    """`min_max` with sums of squared distances to all others in place of the largest.

    Closer to the mean than `min_max`, hence stealthier and weaker. The bound is the largest of the
    honest updates' sums, as in the paper's text; its code takes the smallest.

    Args:
        direction, knows: as in `min_max`.

    Returns:
        An attack whose info holds "strength", gamma.

    References:
        Shejwalkar, Houmansadr, NDSS 2021 (see `deviation`), eq. 9.
    """
    return _as_far_as_honest(direction, knows, worst=False)


def _as_far_as_honest(direction: Direction, knows: Knowledge, *, worst: bool) -> Attack:
    checks.one_of("direction", direction, get_args(Direction))

    def craft(key: Key, updates: PyTree, seen: Array, malicious: Array) -> tuple[PyTree, dict]:
        mean, against = _rows.mean(updates, seen), _against(updates, seen, direction)
        centred = _rows.centred(updates, mean, seen)
        squared = _rows.squared_distances(centred, seen)
        # ||mean + gamma p - x_i||^2 = a_i - 2 gamma b_i + gamma^2 c, quadratic in gamma.
        a, b = trees.row_dots(centred, centred), trees.row_dots(centred, against)
        c = trees.norm(against) ** 2
        if worst:
            limit, count = squared.max(), jnp.int32(1)
        else:
            limit, count = squared.sum(axis=1).max(), seen.sum()
            a, b = a.sum(keepdims=True), b.sum(keepdims=True)
            seen = seen.any(keepdims=True)
        steep = jnp.where(c > 0, count * c, 1.0)
        root = (b + jnp.sqrt(jnp.maximum(b**2 + steep * (limit - a), 0))) / steep
        gamma = jnp.where(seen, root, jnp.inf).min()
        gamma = jnp.where((c > 0) & jnp.isfinite(gamma), gamma, 0)
        return _deviate(mean, against, gamma), {"strength": gamma}

    return together(craft, knows)


def _against(updates: PyTree, seen: Array, direction: Direction) -> PyTree:
    """The direction that does harm, as `deviation` defines it."""
    if direction in ("std", "above"):
        return trees.scale(_rows.std(updates, seen), 1.0 if direction == "above" else -1.0)
    mean = _rows.mean(updates, seen)
    if direction == "sign":
        return jax.tree.map(lambda m: -jnp.sign(m), mean)
    return trees.scale(_rows.unit(mean), -1.0)


def _deviate(mean: PyTree, against: PyTree, strength: Array) -> PyTree:
    return trees.add(mean, trees.scale(against, strength))
