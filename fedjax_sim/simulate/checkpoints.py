"""Checkpoints of a run: what it needs to go on as if it had never stopped, written by orbax."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import jax
import numpy as np

from fedjax_sim.base import PyTree
from fedjax_sim.ops import trees


class Checkpoints:
    """The newest checkpoint in a folder: orbax writes the next one, then removes the one before.

    Arrays are stored by their names in the tree ("state/server/params/kernel"), from the host's
    memory, so that a checkpoint does not depend on the devices that wrote it. Use it in a `with`
    block: at its end, what is still being written is waited for.

    Args:
        path: the folder, made if missing; of this run alone. For several processes, one that all
            of them see.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import orbax.checkpoint as ocp

        self.path = Path(path).expanduser().absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._orbax = ocp.CheckpointManager(self.path, options=options)
        self._args = ocp.args

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._orbax.close()

    @property
    def latest(self) -> int | None:
        """The rounds behind the newest checkpoint; None if there is none."""
        return self._orbax.latest_step()

    def save(self, num_rounds: int, tree: PyTree) -> None:
        """Copy a tree of arrays to the host and write it while the caller goes on.

        Keys go in as `jax.random.key_data`.
        """
        # A copy even on a CPU, since the caller may donate what it gave. orbax takes no empty
        # arrays: their shape stands for them.
        arrays = {
            name: np.array(leaf if leaf.size else leaf.shape)
            for name, leaf in trees.flat_dict(tree).items()
        }
        self._orbax.save(num_rounds, args=self._args.StandardSave(arrays))

    def restore(self, like: Mapping[str, PyTree], rows: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Read the newest checkpoint.

        Args:
            like: what was saved under these names: arrays or `jax.ShapeDtypeStruct`s.
            rows: the same, for what was saved with one leading axis more, of any length.

        Returns:
            Trees of NumPy arrays by name.

        Raises:
            ValueError: names, shapes or dtypes that differ, each named.
        """
        stored = self._orbax.restore(self.latest, args=self._args.StandardRestore())
        wanted = trees.flat_dict({**like, **rows})
        if wanted.keys() != stored.keys():
            raise ValueError(
                f"the checkpoint in {self.path} is of another run: it lacks "
                f"{sorted(wanted.keys() - stored.keys())} and has "
                f"{sorted(stored.keys() - wanted.keys())} besides. Call run as it was called then, "
                "or choose another folder."
            )
        leaves = []
        for name, leaf in wanted.items():
            array = np.asarray(stored[name])
            if math.prod(leaf.shape) == 0:
                array = np.zeros(array, leaf.dtype)
            free = int(name.partition("/")[0] in rows)
            if (array.shape[free:], array.dtype) != (leaf.shape, leaf.dtype):
                raise ValueError(
                    f"{name} in the checkpoint in {self.path} is {array.dtype} {array.shape}, but "
                    f"this run's is {leaf.dtype} {'[rounds] ' * free}{leaf.shape}. Call run as it "
                    "was called then, or choose another folder."
                )
            leaves.append(array)
        return jax.tree.unflatten(jax.tree.structure({**like, **rows}), leaves)
