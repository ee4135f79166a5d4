"""Error feedback: what a compression leaves out is not lost, but sent later."""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Message, PyTree, Uplink
from fedjax_sim.ops import trees
from fedjax_sim.ops.arguments import checked


@checked
def error_feedback(uplink: Uplink) -> Uplink:
    """Add to an update what was left out of the client's updates before.

        sent = C(update + e),   e <- update + e - sent

    so that all that arrives from a client and its last e add up to all of its updates. A biased
    compression needs it, and an unbiased one should not have it: the e of one whose error is larger
    than the update (`random_k` with its factor, `qsgd` in few bits) grows without bound.

    A client that takes part in few rounds carries its e until the next; so where cohorts are small
    parts of a population, it comes late. Put all that loses something inside:
    `error_feedback(chain(top_k(0.01), uniform_quantization(4)))`, and a clip before it.

    Args:
        uplink: C, such as `top_k` or `sign`.

    Returns:
        An Uplink that keeps an update of float32 or wider a client; info is that of `uplink`.

    References:
        Seide, Fu, Droppo, Li, Yu, "1-bit Stochastic Gradient Descent", Interspeech 2014;
        Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient
        Compression Schemes", ICML 2019, algorithm 1.
    """

    def init(update: PyTree) -> tuple[PyTree, PyTree]:
        return uplink.init(update), _zeros(update)

    def apply(
        key: Key, state: tuple[PyTree, PyTree], message: Message, update: PyTree, weight: Array
    ) -> tuple[tuple[PyTree, PyTree], PyTree, Array, dict[str, Array]]:
        inner, error = state
        whole = trees.add(error, update)
        inner, sent, num_bytes, info = uplink.apply(
            key, inner, message, _alike(whole, update), weight
        )
        error = trees.subtract(whole, _received(uplink, key, message, sent))
        return (inner, error), sent, num_bytes, info

    return Uplink(init, apply, uplink.receive)


@checked
def ef21(uplink: Uplink) -> Uplink:
    """EF21: send the compressed difference to what the server knows of this client.

        g <- g + C(update - g)

    where both ends keep g, and g is what the server aggregates. As updates settle, the differences
    get small and g gets exact, also for a biased C.

    The paper's server averages the g of all clients. Here an aggregator gets those of the cohort,
    which is the same where everybody takes part (`sampling.everyone`); of others it may be old.

    Put all that loses something inside, `ef21(chain(top_k(0.01), uniform_quantization(4)))`, and a
    clip before it: what comes after it in a chain would act on g.

    Args:
        uplink: C, such as `top_k`.

    Returns:
        An Uplink that keeps an update of float32 or wider a client; info is that of `uplink`. It
        gives g itself, and counts the bytes of the difference, from which the server makes it.

    References:
        Richtarik, Sokolov, Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and Practically
        Faster Error Feedback", NeurIPS 2021, algorithm 2, from g = 0.
    """

    def init(update: PyTree) -> tuple[PyTree, PyTree]:
        return uplink.init(update), _zeros(update)

    def apply(
        key: Key, state: tuple[PyTree, PyTree], message: Message, update: PyTree, weight: Array
    ) -> tuple[tuple[PyTree, PyTree], PyTree, Array, dict[str, Array]]:
        inner, known = state
        change = _alike(jax.tree.map(lambda u, g: u - g, update, known), update)
        inner, sent, num_bytes, info = uplink.apply(key, inner, message, change, weight)
        known = trees.add(known, _received(uplink, key, message, sent))
        return (inner, known), _alike(known, update), num_bytes, info

    return Uplink(init, apply)


def _zeros(update: PyTree) -> PyTree:
    trees.check_floating("error_feedback and ef21", update)
    return jax.tree.map(lambda u: jnp.zeros_like(trees.wide(u)), update)


def _alike(tree: PyTree, update: PyTree) -> PyTree:
    """In the dtypes of an update."""
    return jax.tree.map(lambda x, u: x.astype(u.dtype), tree, update)


def _received(uplink: Uplink, key: Key, message: Message, sent: PyTree) -> PyTree:
    return sent if uplink.receive is None else uplink.receive(key, message, sent)
