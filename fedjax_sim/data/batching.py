"""How a client's examples become the batches of its local steps."""

import dataclasses
import math
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Batch
from fedjax_sim.data.federated_data import FederatedData
from fedjax_sim.ops import checks, permutation


@dataclasses.dataclass(frozen=True)
class Batching:
    """How a client cuts its examples into local steps.

    Attributes:
        batch_size: B >= 1, or None for the whole client as one batch (padded to the largest).
        num_epochs: passes over the client's examples, 1 by default; 0.5 is half a pass. The last
            batch of an epoch is short, never dropped: n examples make ceil(n / B) steps.
        num_steps: a fixed number of local steps instead of `num_epochs`; epochs follow each other.
        shuffle: "epoch" for a new order every epoch, "replacement" for independent draws (every
            batch full), "none" for the stored order.
    """

    batch_size: int | None = 32
    num_epochs: float | None = None
    num_steps: int | None = None
    shuffle: Literal["epoch", "replacement", "none"] = "epoch"

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            checks.positive_int("batch_size", self.batch_size, hint="None takes the whole client.")
        if self.num_epochs is not None and self.num_steps is not None:
            raise ValueError(
                f"give num_epochs or num_steps, not both: {self.num_epochs} and {self.num_steps}."
            )
        if self.num_epochs is not None:
            checks.in_range("num_epochs", self.num_epochs, 0.0, open_low=True)
        if self.num_steps is not None:
            checks.positive_int("num_steps", self.num_steps)
        checks.one_of("shuffle", self.shuffle, ("epoch", "replacement", "none"))

    def slots(self, max_size: int) -> int:
        """The static width B of a batch."""
        return max_size if self.batch_size is None else min(self.batch_size, max_size)

    def steps(self, size: Array | np.ndarray | int, max_size: int) -> Array:
        """How many local steps a client of `size` examples makes, int32 of `size`'s shape.

        Of what is no JAX array, NumPy makes it: nothing has to be compiled for it.
        """
        xp: Any = jnp if isinstance(size, jax.Array) else np
        sizes = xp.asarray(size, xp.int32)
        if self.num_steps is not None:
            return xp.where(sizes > 0, xp.int32(self.num_steps), xp.int32(0))
        slots = self.slots(max_size)
        per_epoch = -(-sizes // slots)
        epochs = 1.0 if self.num_epochs is None else self.num_epochs
        whole = math.floor(epochs)
        most = -(-max_size // slots)
        if epochs * most > checks.MOST:
            raise ValueError(
                f"num_epochs must be <= {checks.MOST // most} for {most} steps an epoch, got "
                f"{epochs:g}: steps are counted in int32."
            )
        # As a fraction whose products fit int32: rounding must not add a step to 0.3 of 50, nor
        # take the only one of 1e-9.
        finest = Fraction(1, checks.MOST // most)
        part = Fraction(epochs - whole).limit_denominator(finest.denominator)
        part = max(part, finest) if epochs > whole else part
        return per_epoch * whole - (-per_epoch * part.numerator // part.denominator)

    def positions(
        self, words: Array, size: Array | int, step: Array, max_size: int
    ) -> tuple[Array, Array]:
        """Which of its own examples a client takes in a local step.

        Args:
            words: [permutation.NUM_WORDS] uint32, the client's randomness of the round.
            size: int32 scalar or a static int, the client's number of examples.
            step: int32 scalar, the local step.
            max_size: static, the largest client.

        Returns:
            positions [B] int32 in [0, size) and mask [B] bool, False for the empty end of a short
            batch, whose positions repeat others of the same epoch.
        """
        num_slots = self.slots(max_size)
        slot = jnp.arange(num_slots, dtype=jnp.int32)
        full = jnp.ones(num_slots, bool)
        if max_size == 1:  # there is nothing to shuffle, and XLA fails on remainders by 1
            return jnp.zeros_like(slot), full
        if self.shuffle == "replacement":
            return permutation.draw(words, jnp.maximum(size, 1), step * num_slots + slot), full
        # A size known when compiling leaves divisions by constants and, if B divides it, no mask.
        even = isinstance(size, int) and size % num_slots == 0
        size = jnp.maximum(jnp.int32(size), 1)
        per_epoch = jax.lax.div(size + (num_slots - 1), jnp.int32(num_slots))
        epoch = jax.lax.div(step, per_epoch)
        index = (step - epoch * per_epoch) * num_slots + slot
        mask = full if even else index < size
        if not even:
            index = jnp.where(mask, index, jax.lax.rem(index, jnp.broadcast_to(size, index.shape)))
        if self.shuffle == "epoch":
            index = permutation.permute(words, size, index, epoch)
        return index, mask


def take(data: FederatedData, start: Array, positions: Array, mask: Array) -> Batch:
    """Gather one client's rows: `positions` [B] within the client that starts at row `start`."""
    rows = start + positions
    examples = {name: array.at[rows].get(mode="clip") for name, array in data.examples.items()}
    return Batch(examples, mask)
