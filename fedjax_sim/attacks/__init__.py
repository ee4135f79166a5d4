"""What malicious clients send instead of their updates, knowing those of everybody else.

An attack stands between local work and aggregation: `rounds.federated(attack=..., malicious=ids)`.
Malicious clients collude and, unless a factory says otherwise, know every honest update. Attacks on
a client's own training are in `clients` (`malicious`), on its data in `poisoning`.

    sign_flip, gaussian, scaling, free_rider, neurotoxin          each from its own update
    inner_product, little_is_enough, deviation, mimic             from statistics of the others
    min_max, min_sum, fang_trimmed_mean, fang_krum, adaptive      as far as goes unnoticed
    chain, delayed, choice, monitored                             attacks made of attacks
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.base import Aggregator, Array, Attack, History, Key, Params, PyTree, Report
from fedjax_sim.ops import checks, stacked, trees

Knowledge = Literal["honest", "own"]
"""Whose updates the attackers take statistics of: the honest clients', or only their own."""
Direction = Literal["unit", "sign", "std", "above"]
"""Where to deviate from the mean m: -m / ||m||, -sign(m), -s or ("above") s, the deviations."""


def no_attack() -> Attack:
    """Malicious clients behave: to be watched by `monitored`, or as the zero of a `choice`."""

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        return state, updates, {}

    return Attack(lambda update: (), apply)


def sign_flip(scale: float | Array = 1.0) -> Attack:
    """Send -scale times one's own update.

    Args:
        scale: >= 0, may be traced; 1 is the "bit flip" of the benchmarks.

    References:
        Li et al., "RSA: Byzantine-Robust Stochastic Aggregation Methods", AAAI 2019, section 5.
    """
    checks.in_range("scale", scale, 0.0)
    return scaling(-scale)


def scaling(factor: float | Array, *, max_norm: float | Array | None = None) -> Attack:
    """Send factor times one's own update: model replacement.

    With the factor (sum of weights) / (own weight), C for equal clients, the mean moves to where
    the attacker's model is, if the others have converged.

    Args:
        factor: any finite number, may be traced; 1 is no attack.
        max_norm: the largest norm to send, > 0, may be traced: scale until a norm bound would be
            hit, the "scale" of constrain-and-scale; a longer update is shortened. None is no limit.

    References:
        Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, eq. 3 and section
        3.3.
    """
    checks.in_range("factor", factor)
    if max_norm is not None:
        checks.in_range("max_norm", max_norm, 0.0, open_low=True)

    def change(key: Key, update: PyTree) -> PyTree:
        if max_norm is None:
            return trees.scale(update, factor)
        limit = max_norm / jnp.maximum(trees.norm(update), jnp.finfo(jnp.float32).tiny)
        return trees.scale(update, jnp.clip(factor, -limit, limit))

    return _alone(change)


def gaussian(sigma: float | Array) -> Attack:
    """Send normal noise of standard deviation sigma, independent of the data.

    Args:
        sigma: >= 0, may be traced.

    References:
        Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
        NeurIPS 2017, section 5.
    """
    checks.in_range("sigma", sigma, 0.0)
    return _alone(lambda key, update: _noise(key, update, sigma))


def free_rider(noise: float | Array = 0.0) -> Attack:
    """Send the last change of the global model, as if one had trained: w_t - w_{t-1} + noise.

    Nothing in its first round. For servers that broadcast their params.

    Args:
        noise: standard deviation of the normal noise that disguises the copy, >= 0, may be traced.

    References:
        Fraboni, Vidal, Lorenzi, "Free-rider Attacks on Model Aggregation in Federated Learning",
        AISTATS 2021 (disguised free-riding).
    """
    checks.in_range("noise", noise, 0.0)

    def change(key: Key, update: PyTree, moved: PyTree) -> PyTree:
        return trees.add(moved, _noise(key, update, noise))

    return _following(change)


def neurotoxin(top_fraction: float | Array = 0.05) -> Attack:
    """Send one's own update only where the global model changed little in the last round.

    Backdoors then live in coordinates that the honest clients do not overwrite, and last longer.
    For servers that broadcast their params. The paper projects every local gradient, this the
    update at the end, so that it goes with any local training.

    Args:
        top_fraction: share of coordinates with the largest last change that are left alone, in
            [0, 1], may be traced; 0 is no attack.

    Cost: sorts D numbers a round.

    References:
        Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, algorithm 1.
    """
    checks.in_range("top_fraction", top_fraction, 0.0, 1.0)

    def change(key: Key, update: PyTree, moved: PyTree) -> PyTree:
        size = jax.tree.map(jnp.abs, moved)
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(size)])
        threshold = jnp.quantile(flat, 1 - top_fraction, method="lower")
        return jax.tree.map(lambda u, s: jnp.where(s <= threshold, u, 0), update, size)

    return _following(change)


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
        return trees.scale(_mean(updates, seen), -epsilon), {}

    return _together(craft, knows)


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
        mean, against = _mean(updates, seen), _against(updates, seen, direction)
        return _deviate(mean, against, strength), {"strength": strength}

    return _together(craft, knows)


def _largest_safe(seen: Array, malicious: Array, knows: Knowledge) -> Array:
    """The z of `little_is_enough`; who knows only their own has to guess: as many as they are."""
    num_malicious = malicious.sum()
    num_honest = seen.sum() if knows == "honest" else (~malicious).sum()
    num_needed = (num_honest + num_malicious) // 2 + 1 - num_malicious
    share = (num_honest - num_needed) / jnp.maximum(num_honest, 1)
    return jax.scipy.special.ndtri(jnp.clip(share, 1e-6, 1 - 1e-6))


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
        mean, against = _mean(updates, seen), _against(updates, seen, direction)
        return _deviate(mean, against, jnp.float32(strength)), {}

    return _together(craft, knows)


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
        mean, against = _mean(updates, seen), _against(updates, seen, direction)
        centred = _centred(updates, mean, seen)
        squared = _squared_distances(centred, seen)
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

    return _together(craft, knows)


def fang_trimmed_mean(*, knows: Knowledge = "honest") -> Attack:
    """Fang's attack on trimmed mean and median: beyond the honest values, against the mean's sign.

    Each coordinate of each malicious update is drawn from [m - 4 s, m - 3 s] where the mean m is
    positive and from [m + 3 s, m + 4 s] elsewhere.

    Args:
        knows: whose mean and deviation.

    References:
        Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated
        Learning", USENIX Security 2020, section 4.3 (partial knowledge).
    """

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        seen = _seen(report, malicious, knows)
        mean, std = _mean(updates, seen), _std(updates, seen)

        def one(client_id: Array) -> PyTree:
            keys = _leaf_keys(jax.random.fold_in(key, client_id), mean)
            return jax.tree.map(
                lambda k, m, s: (
                    m - jnp.where(m > 0, 1, -1).astype(m.dtype)
                    * (3 + jax.random.uniform(k, m.shape).astype(m.dtype)) * s
                ),
                keys, mean, std,
            )  # fmt: skip

        return state, trees.where(malicious, jax.vmap(one)(report.ids), updates), {}

    _check_knows(knows)
    return Attack(lambda update: (), apply)


def fang_krum(
    aggregator: Aggregator, *, num_halvings: int = 30, knows: Knowledge = "honest"
) -> Attack:
    """Fang's attack on rules that choose one update: the largest -lambda * sign(mean) chosen.

    Lambda starts at a bound above which no update is chosen and is halved until the aggregate is
    the malicious update. All of them send the same.

    Args:
        aggregator: the rule that is attacked, such as Krum; the attackers run it for themselves.
        num_halvings: how often lambda is halved at most, >= 1, static.
        knows: whose updates.

    Returns:
        An attack whose state is its own copy of the aggregator's and whose info holds "strength",
        lambda.

    Cost: up to num_halvings + 1 aggregations a round.

    References:
        Fang, Cao, Jia, Gong, USENIX Security 2020 (see `fang_trimmed_mean`), section 4.2.
    """
    checks.positive_int("num_halvings", num_halvings)
    _check_knows(knows)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        seen = _seen(report, malicious, knows)
        mean = _mean(updates, seen)
        against = jax.tree.map(lambda m: -jnp.sign(m), mean)
        distances = jnp.sqrt(_squared_distances(_centred(updates, mean, seen), seen))
        nearest = jnp.where(seen, distances.sum(axis=1), jnp.inf).min()
        largest = jnp.sqrt(jnp.where(seen, _row_norms(updates, seen) ** 2, 0).max())
        bound = (jnp.where(seen.any(), nearest, 0) + largest) / jnp.sqrt(
            jnp.float32(trees.num_parameters(mean))
        )

        def attempt(strength: Array) -> tuple[PyTree, PyTree, Array]:
            crafted = trees.scale(against, strength)
            sent = _send(updates, malicious, crafted)
            new, aggregate, _ = aggregator.apply(key, state, sent, report.weights)
            gap = trees.norm(trees.subtract(aggregate, crafted))
            return new, sent, gap <= 1e-4 * trees.norm(crafted)

        def unnoticed(carry: tuple) -> Array:
            halvings, _, (_, _, chosen) = carry
            return ~chosen & (halvings < num_halvings)

        def halve(carry: tuple) -> tuple:
            halvings, strength, _ = carry
            return halvings + 1, strength / 2, attempt(strength / 2)

        start = (jnp.int32(0), bound, attempt(bound))
        _, strength, (new, sent, _) = jax.lax.while_loop(unnoticed, halve, start)
        return new, sent, {"strength": strength}

    return Attack(aggregator.init, apply)


def adaptive(
    make: Callable[[Array], Attack], aggregator: Aggregator, *, strengths: Sequence[float]
) -> Attack:
    """Try an attack in several strengths against the rule, and use the one that does most harm.

    Harm is the distance from the aggregate to the mean of the honest updates. With
    `make=functools.partial(deviation, direction=...)` this is the attack tailored to the rule of
    Shejwalkar and Houmansadr; `little_is_enough` and `inner_product` have their optimised forms.

    Args:
        make: make(strength) -> the attack; strength is traced. Its state has to be `()`.
        aggregator: the rule that is attacked; the attackers run it for themselves.
        strengths: what to try, static.

    Returns:
        An attack whose state is its own copy of the aggregator's and whose info holds "strength",
        the one used, and "harm".

    Cost: len(strengths) aggregations a round, one after another.

    References:
        Shejwalkar, Houmansadr, NDSS 2021 (see `deviation`), section IV-C.
    """
    candidates = np.asarray(strengths, np.float32)
    if candidates.ndim != 1 or candidates.size == 0 or not np.isfinite(candidates).all():
        raise ValueError(f"strengths must be at least one finite number, got {strengths!r}.")

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        honest = _mean(updates, _seen(report, malicious, "honest"))

        def sent(strength: Array) -> PyTree:
            _, rows, _ = make(strength).apply(key, (), updates, report, malicious, message)
            return rows

        def attempt(strength: Array) -> tuple[PyTree, Array]:
            new, aggregate, _ = aggregator.apply(key, state, sent(strength), report.weights)
            return new, trees.norm(trees.subtract(aggregate, honest))

        states, harms = jax.lax.map(attempt, jnp.asarray(candidates))
        best = jnp.argmax(harms)
        info = {"strength": jnp.asarray(candidates)[best], "harm": harms[best]}
        return jax.tree.map(lambda x: x[best], states), sent(info["strength"]), info

    return Attack(aggregator.init, apply)


class MimicState(NamedTuple):
    """What `mimic` keeps.

    direction: the estimate of the honest updates' main direction of variance, of norm 1.
    mean: the running mean of honest updates.
    client: int32 id of the client that is copied.
    num_rounds: int32, rounds so far.
    """

    direction: PyTree
    mean: PyTree
    client: Array
    num_rounds: Array


def mimic(*, warmup: int = 1) -> Attack:
    """Everybody malicious copies one honest client: harmless updates that overweight its data.

    On unlike clients this misleads rules that look for outliers, since nothing is out of place. The
    client with the largest product with the main direction of variance is copied. The direction is
    found online (a step of power iteration a round) while the warm-up lasts; then the client stays,
    and a round without it copies the one it would choose now.

    Args:
        warmup: rounds of warm-up, >= 1, static.

    References:
        Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
        ICLR 2022, appendix B.
    """
    checks.positive_int("warmup", warmup)

    def init(update: PyTree) -> MimicState:
        zero = jax.tree.map(jnp.zeros_like, update)
        return MimicState(zero, zero, jnp.int32(-1), jnp.int32(0))

    def learned(key: Key, state: MimicState, updates: PyTree, seen: Array) -> MimicState:
        """The mean and the direction after one more round of warm-up."""
        t = state.num_rounds
        share = 1 / (1 + t.astype(jnp.float32))
        mean = _mix(state.mean, _mean(updates, seen), share)
        start = trees.where(t == 0, _noise(key, mean, 1.0), state.direction)
        centred = _centred(updates, mean, seen)
        along = trees.row_dots(centred, start)
        step = jax.tree.map(lambda x: jnp.tensordot(along.astype(x.dtype), x, axes=1), centred)
        direction = _unit(_mix(state.direction, _unit(step), share))
        return MimicState(direction, mean, state.client, t)

    def apply(
        key: Key,
        state: MimicState,
        updates: PyTree,
        report: Report,
        malicious: Array,
        message: PyTree,
    ) -> tuple[MimicState, PyTree, dict[str, Array]]:
        seen = _seen(report, malicious, "honest")
        warm = state.num_rounds < warmup
        state = trees.where(warm & seen.any(), learned(key, state, updates, seen), state)
        scores = trees.row_dots(_where_rows(seen, updates), state.direction)
        ids = jnp.asarray(report.ids)
        best = jnp.argmax(jnp.where(seen, scores, -jnp.inf))
        is_copied = seen & (ids == state.client) & ~warm
        row = jnp.where(is_copied.any(), jnp.argmax(is_copied), best)
        client = jnp.where(warm & seen.any(), ids[best], state.client).astype(jnp.int32)
        crafted = jax.tree.map(lambda u: u[row], updates)
        state = state._replace(client=client, num_rounds=state.num_rounds + 1)
        copies = malicious & seen.any()
        return state, _send(updates, copies, crafted), {"client": ids[row]}

    return Attack(init, apply)


def chain(*attacks: Attack) -> Attack:
    """One attack after another, such as `chain(neurotoxin(), scaling(10))`."""
    if not attacks:
        raise ValueError("chain needs at least one attack, got none.")

    def init(update: PyTree) -> PyTree:
        return tuple(attack.init(update) for attack in attacks)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        states: list[PyTree] = []
        infos: dict[str, Array] = {}
        for i, (attack, inner) in enumerate(zip(attacks, state, strict=True)):
            own_key = jax.random.fold_in(key, i)
            new, updates, info = attack.apply(own_key, inner, updates, report, malicious, message)
            states.append(new)
            infos |= info
        return tuple(states), updates, infos

    return Attack(init, apply)


def delayed(attack: Attack, *, num_rounds: int) -> Attack:
    """Behave for the first `num_rounds` rounds (>= 0), then attack."""
    checks.count("num_rounds", num_rounds)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        inner, past = state
        now = malicious & (past >= num_rounds)
        inner, updates, info = attack.apply(key, inner, updates, report, now, message)
        return (inner, past + 1), updates, info

    return Attack(lambda update: (attack.init(update), jnp.int32(0)), apply)


def choice(attacks: Sequence[Attack], index: int | Array) -> Attack:
    """The attack `attacks[index]`, chosen while the program runs: a grid of attacks compiles once.

    Args:
        attacks: what there is to choose from.
        index: in [0, len(attacks)), may be traced. Batched by `vmap`, all attacks are run.

    Returns:
        An attack that keeps the states of all; its info has the entries of all, NaN (or 0 for
        integers) where the chosen one gives none.
    """
    if not attacks:
        raise ValueError("attacks must hold at least one attack, got none.")
    checks.in_range("index", index, 0, len(attacks) - 1)

    def init(update: PyTree) -> PyTree:
        return tuple(attack.init(update) for attack in attacks)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        def branch(i: int) -> tuple[PyTree, PyTree, dict[str, Array]]:
            new, sent, info = attacks[i].apply(key, state[i], updates, report, malicious, message)
            return (*state[:i], new, *state[i + 1 :]), sent, info

        infos = [jax.eval_shape(lambda i=i: branch(i)[2]) for i in range(len(attacks))]
        like = {name: entry for info in infos for name, entry in info.items()}

        def filled(i: int) -> Callable:
            def run() -> tuple[PyTree, PyTree, dict[str, Array]]:
                new, sent, info = branch(i)
                return new, sent, trees.fill(info, like)

            return run

        return jax.lax.switch(index, [filled(i) for i in range(len(attacks))])

    return Attack(init, apply)


def monitored(
    attack: Attack,
    *,
    accuracy: Callable[[Params], Array] | None = None,
    histogram_edges: ArrayLike | None = None,
) -> Attack:
    """An attack and what a watchful server would see of it, every round, in `info.attack`.

    "distance_min", "distance_max": range of the Euclidean distances between malicious and honest
    updates; "honest_distance_min", "honest_distance_max": among the honest. An attack is stealthy
    if the first range lies inside the second.

    Args:
        attack: `no_attack()` for attackers who are a client rule.
        accuracy: accuracy(params) -> scalar on the server's validation data. Adds
            "honest_accuracy", of w + the honest clients' weighted mean update, and "accuracy_gap",
            that minus the lowest accuracy of w + one malicious update. The paper's server lets pass
            whom the gap does not put more than a tolerance, 0.1, behind.
        histogram_edges: [k + 1] ascending edges of bins. Adds "honest_histogram" and "histogram"
            [k], counts of the entries of updates in each [low, high), per client.

    Returns:
        An attack; entries are NaN in rounds without a malicious (or with less than two honest)
        clients.

    Cost: all distances between updates, O(C^2 D); one evaluation and one for every attacker.

    References:
        Bhagoji et al., "Analyzing Federated Learning through an Adversarial Lens", ICML 2019,
        section 3.2 (stealth metrics).
    """
    edges = None if histogram_edges is None else np.asarray(histogram_edges, np.float32)
    if edges is not None and (edges.ndim != 1 or edges.size < 2 or (np.diff(edges) <= 0).any()):
        raise ValueError(f"histogram_edges must be at least two ascending edges, got {edges}.")

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        state, updates, info = attack.apply(key, state, updates, report, malicious, message)
        honest = _seen(report, malicious, "honest")
        info = info | _distance_ranges(updates, honest, malicious)
        if accuracy is not None:
            params = _params(message)
            info |= _accuracies(accuracy, params, updates, report.weights, honest, malicious)
        if edges is not None:
            info["honest_histogram"] = _histogram(updates, honest, edges)
            info["histogram"] = _histogram(updates, malicious, edges)
        return state, updates, info

    return Attack(attack.init, apply)


def _distance_ranges(updates: PyTree, honest: Array, malicious: Array) -> dict[str, Array]:
    live = honest | malicious
    squared = _squared_distances(_centred(updates, _mean(updates, honest), live), live)
    distances = jnp.sqrt(squared)
    others = ~jnp.eye(len(honest), dtype=bool)
    found = {}
    for name, rows, mask in (("", malicious, True), ("honest_", honest, others)):
        pairs = rows[:, None] & honest[None, :] & mask
        for end, reduce, empty in (("min", jnp.min, jnp.inf), ("max", jnp.max, -jnp.inf)):
            value = reduce(jnp.where(pairs, distances, empty))
            found[f"{name}distance_{end}"] = jnp.where(pairs.any(), value, jnp.nan)
    return found


def _accuracies(
    accuracy: Callable[[Params], Array],
    params: Params,
    updates: PyTree,
    weights: Array,
    honest: Array,
    malicious: Array,
) -> dict[str, Array]:
    def after(update: PyTree) -> Array:
        return jnp.asarray(accuracy(trees.add(params, update)), jnp.float32)

    shares = jnp.where(honest, weights, 0)
    shares = shares / jnp.maximum(shares.sum(), jnp.finfo(jnp.float32).tiny)
    benign = after(trees.weighted_sum(updates, shares))

    def of_row(row: tuple[PyTree, Array]) -> Array:
        update, attacks = row
        return jax.lax.cond(attacks, after, lambda _: jnp.float32(jnp.inf), update)

    lowest = jax.lax.map(of_row, (updates, malicious)).min()
    gap = jnp.where(malicious.any(), benign - lowest, jnp.nan)
    return {"honest_accuracy": benign, "accuracy_gap": gap}


def _histogram(updates: PyTree, rows: Array, edges: np.ndarray) -> Array:
    """Counts [k] of the entries of one row, on average over `rows`; NaN without rows."""

    def of_row(row: tuple[PyTree, Array]) -> Array:
        update, counts = row
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(update)])

        def below(edge: Array) -> Array:
            return (flat < edge).sum(dtype=jnp.float32)

        # A pass over the row for every edge: binning each entry would be a scatter, slow on a CPU.
        return jnp.where(counts, jnp.diff(jax.lax.map(below, jnp.asarray(edges))), 0)

    count = jnp.where(rows.any(), rows.sum(), jnp.nan)
    return jax.lax.map(of_row, (updates, rows)).sum(axis=0) / count


# How attacks are made


def _alone(change: Callable[[Key, PyTree], PyTree]) -> Attack:
    """Every malicious client sends change(its key, its own update)."""

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, report.ids)
        return state, trees.where(malicious, jax.vmap(change)(keys, updates), updates), {}

    return Attack(lambda update: (), apply)


class Followed(NamedTuple):
    """What attackers keep who look at how the model moves: its last params, int32 rounds so far."""

    params: Params
    num_rounds: Array


def _following(change: Callable[[Key, PyTree, PyTree], PyTree]) -> Attack:
    """Every malicious client sends change(its key, its own update, how the model moved)."""

    def init(update: PyTree) -> Followed:
        return Followed(jax.tree.map(jnp.zeros_like, update), jnp.int32(0))

    def apply(
        key: Key,
        state: Followed,
        updates: PyTree,
        report: Report,
        malicious: Array,
        message: PyTree,
    ) -> tuple[Followed, PyTree, dict[str, Array]]:
        params = _params(message)
        try:
            moved = jax.tree.map(
                lambda p, q: jnp.where(state.num_rounds > 0, p - q, 0).astype(q.dtype),
                params,
                state.params,
            )
        except ValueError:
            raise TypeError(
                "this attack looks at how the model moves and needs a server that broadcasts its "
                f"params, in the structure of an update, got {jax.tree.structure(params)}."
            ) from None
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, report.ids)
        sent = jax.vmap(change, (0, 0, None))(keys, updates, moved)
        return Followed(params, state.num_rounds + 1), trees.where(malicious, sent, updates), {}

    return Attack(init, apply)


def _params(message: PyTree) -> Params:
    return message.params if isinstance(message, History) else message


def _together(
    craft: Callable[[Key, PyTree, Array, Array], tuple[PyTree, dict[str, Array]]],
    knows: Knowledge,
) -> Attack:
    """All malicious clients send the one update craft(key, updates, seen [C], malicious [C])."""
    _check_knows(knows)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        seen = _seen(report, malicious, knows)
        crafted, info = craft(key, updates, seen, malicious)
        return state, _send(updates, malicious, crafted), info

    return Attack(lambda update: (), apply)


def _check_knows(knows: Knowledge) -> None:
    checks.one_of("knows", knows, ("honest", "own"))


def _seen(report: Report, malicious: Array, knows: Knowledge) -> Array:
    """[C] whose updates the attackers know."""
    return (report.weights > 0) & (malicious if knows == "own" else ~malicious)


def _send(updates: PyTree, malicious: Array, crafted: PyTree) -> PyTree:
    """The stack with one crafted update in every malicious row."""
    rows = jax.tree.map(lambda c, u: c[None].astype(u.dtype), crafted, updates)
    return trees.where(malicious, rows, updates)


# Statistics of rows; rows that do not count may hold NaN


def _where_rows(rows: Array, updates: PyTree) -> PyTree:
    return jax.tree.map(
        lambda u: jnp.where(rows.reshape((-1,) + (1,) * (u.ndim - 1)), u, 0), updates
    )


def _mean(updates: PyTree, rows: Array) -> PyTree:
    return trees.weighted_sum(updates, rows / jnp.maximum(rows.sum(), 1))


def _std(updates: PyTree, rows: Array) -> PyTree:
    """Coordinate by coordinate, ddof 1; 0 for a single row."""
    squares = jax.tree.map(jnp.square, _centred(updates, _mean(updates, rows), rows))
    count = jnp.maximum(rows.sum() - 1, 1)
    return jax.tree.map(lambda s: jnp.sqrt(s.sum(axis=0) / count).astype(s.dtype), squares)


def _centred(updates: PyTree, mean: PyTree, rows: Array) -> PyTree:
    return _where_rows(rows, jax.tree.map(lambda u, m: u - m[None], updates, mean))


def _squared_distances(centred: PyTree, rows: Array) -> Array:
    """[C, C], 0 in rows and columns that do not count."""
    # Of centred rows, or the Gram matrix would cancel when updates are close to each other.
    gram = stacked.gram(centred, rows)
    norms = jnp.diagonal(gram)
    squared = jnp.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0)
    off_diagonal = ~jnp.eye(len(rows), dtype=bool)
    return jnp.where(rows[:, None] & rows[None, :] & off_diagonal, squared, 0)


def _row_norms(updates: PyTree, rows: Array) -> Array:
    kept = _where_rows(rows, updates)
    return jnp.sqrt(trees.row_dots(kept, kept))


def _against(updates: PyTree, seen: Array, direction: Direction) -> PyTree:
    """The direction that does harm, as `deviation` defines it."""
    if direction in ("std", "above"):
        return trees.scale(_std(updates, seen), 1.0 if direction == "above" else -1.0)
    mean = _mean(updates, seen)
    if direction == "sign":
        return jax.tree.map(lambda m: -jnp.sign(m), mean)
    return trees.scale(_unit(mean), -1.0)


def _deviate(mean: PyTree, against: PyTree, strength: Array) -> PyTree:
    return trees.add(mean, trees.scale(against, strength))


def _unit(tree: PyTree) -> PyTree:
    length = trees.norm(tree)
    return trees.scale(tree, jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0))


def _mix(old: PyTree, new: PyTree, share: Array) -> PyTree:
    return trees.add(trees.scale(old, 1 - share), trees.scale(new, share))


def _noise(key: Key, like: PyTree, sigma: float | Array) -> PyTree:
    return jax.tree.map(
        lambda k, x: (sigma * jax.random.normal(k, jnp.shape(x))).astype(x.dtype),
        _leaf_keys(key, like),
        like,
    )


def _leaf_keys(key: Key, tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))
