"""What happens to ONE client's update on its way to the server; see `base.Uplink`.

It stands between the client rule and the aggregator: `federated(uplink=clip(1.0))`. Quantisation
acts on every leaf by itself, sparsification and rotations on all numbers of an update together, as
one vector in the order of its leaves. In a chain each acts on what the one before it sends, and
leaves alone what is coded already, such as indices:
`chain(clip(1.0), top_k(0.01), uniform_quantization(4))` sends one number in a hundred, in four
bits. The bytes are those of the packed code.

    clip             clip: no update is longer than a bound
    quantization     uniform_quantization, qsgd, sign: every number in a few bits
    sparsification   top_k, random_k: a few of the numbers
    rotation         rotation, drive, eden: numbers made alike, and codes for such
    feedback         error_feedback, ef21: what is left out is sent later
    noise            gaussian_noise, laplace_noise: for privacy from the server itself
    combinators      chain, identity: several uplinks one after another, and none
"""

from fedjax_sim.uplink.clip import clip
from fedjax_sim.uplink.combinators import chain, identity
from fedjax_sim.uplink.feedback import ef21, error_feedback
from fedjax_sim.uplink.noise import gaussian_noise, laplace_noise
from fedjax_sim.uplink.quantization import qsgd, sign, uniform_quantization
from fedjax_sim.uplink.rotation import drive, eden, rotation
from fedjax_sim.uplink.sparsification import random_k, top_k

__all__ = [
    "chain",
    "clip",
    "drive",
    "eden",
    "ef21",
    "error_feedback",
    "gaussian_noise",
    "identity",
    "laplace_noise",
    "qsgd",
    "random_k",
    "rotation",
    "sign",
    "top_k",
    "uniform_quantization",
]
