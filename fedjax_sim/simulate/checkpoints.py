"""Checkpoints of a run: what it needs to go on as if it had never stopped, written by orbax."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import jax
import numpy as np

from fedjax_sim.base import PyTree
from fedjax_sim.ops import trees
from fedjax_sim.simulate._fingerprint import differences, digest

_SEAL = "seal"
PLANNED = "planned_rounds"
"""The rounds that a run was to have when it began: a run that is extended goes on as it began."""


class Checkpoints:
    """The newest checkpoint in a folder: orbax writes the next one, then removes the one before.

    Arrays are stored by their names in the tree ("state/server/params/kernel"), from the host's
    memory, so that a checkpoint does not depend on the devices that wrote it. A seal goes with
    them: a digest of every array and what the run is made of, so that neither damage nor another
    run's checkpoint is taken for this run's. Use it in a `with` block: at its end, what is still
    being written is waited for.

    Args:
        path: the folder, made if missing; of this run alone. For several processes, one that all
            of them see.
        facts: what the run is made of, see `_fingerprint`.
    """

    def __init__(
        self, path: str | os.PathLike[str], facts: Mapping[str, str] | None = None
    ) -> None:
        import orbax.checkpoint as ocp

        self.path = Path(path).expanduser().absolute()
        self.facts = dict(facts or {})
        # Runs in several threads save at once, and orbax makes folders in the background for one
        # save at a time in a process.
        soon = ocp.AsyncOptions(create_directories_asynchronously=False)
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True, async_options=soon)
        try:
            self._orbax = ocp.CheckpointManager(self.path, options=options)
        except OSError as error:
            raise _unwritten(self.path, error) from error
        except Exception as error:  # it looks at what is there
            raise _damaged(self.path, f"{type(error).__name__}: {error}") from error
        self._args = ocp.args

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(Exception) if error is not None else _named(self.path):
            self._orbax.close()

    @property
    def latest(self) -> int | None:
        """The rounds behind the newest checkpoint; None if there is none."""
        return self._orbax.latest_step()

    @property
    def planned(self) -> int | None:
        """`PLANNED` of the newest checkpoint; None if there is none.

        Raises:
            ValueError: it is damaged.
        """
        if self.latest is None:
            return None
        found = self._read()[0].get(PLANNED)
        return None if found is None else int(found)

    def save(self, num_rounds: int, tree: PyTree) -> None:
        """Copy a tree of arrays to the host and write it while the caller goes on.

        Keys go in as `jax.random.key_data`.

        Raises:
            OSError: this or the one before cannot be written; names the folder.
        """
        # A copy even on a CPU, since the caller may donate what it gave.
        arrays = {name: np.array(leaf) for name, leaf in trees.flat_dict(tree).items()}
        # orbax takes no empty arrays: their shape, which the seal has, stands for them.
        stored = {name: a if a.size else np.zeros(1, np.uint8) for name, a in arrays.items()}
        kinds = {name: [digest(stored[name]), *_kind(a)] for name, a in arrays.items()}
        seal = json.dumps({"arrays": kinds, "facts": self.facts})
        stored[_SEAL] = np.frombuffer((_text_digest(seal) + seal).encode(), np.uint8)
        with _named(self.path):
            self._orbax.save(num_rounds, args=self._args.StandardSave(stored))

    def wait(self) -> None:
        """Wait until what was saved is written.

        Raises:
            OSError: it cannot be written; names the folder.
        """
        with _named(self.path):
            self._orbax.wait_until_finished()

    def restore(self, like: Mapping[str, PyTree], rows: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Read the newest checkpoint.

        Args:
            like: what was saved under these names: arrays or `jax.ShapeDtypeStruct`s.
            rows: the same, for what was saved with one leading axis more, of any length.

        Returns:
            Trees of NumPy arrays by name.

        Raises:
            ValueError: it is damaged or of another run: says what of the run is another, or which
                names, shapes or dtypes differ.
        """
        stored, kinds, facts = self._read()
        others = differences(facts, self.facts)
        if others:
            raise ValueError(
                f"the checkpoint in {self.path} is of a run with another {', '.join(others)}. Call "
                "run as it was called then, or choose another folder."
            )
        wanted = trees.flat_dict({**like, **rows})
        if wanted.keys() != stored.keys():
            raise ValueError(
                f"the checkpoint in {self.path} is of another run: it lacks "
                f"{sorted(wanted.keys() - stored.keys())} and has "
                f"{sorted(stored.keys() - wanted.keys())} besides. Call run as it was called then "
                "(`keep` decides over infos), or choose another folder."
            )
        leaves = []
        for name, leaf in wanted.items():
            dtype, shape = kinds[name]
            free = int(name.partition("/")[0] in rows)
            if [dtype, *shape[free:]] != [np.dtype(leaf.dtype).name, *leaf.shape]:
                raise ValueError(
                    f"{name} in the checkpoint in {self.path} is {dtype} {tuple(shape)}, but "
                    f"this run's is {leaf.dtype} {'[rounds] ' * free}{leaf.shape}. Call run as it "
                    "was called then, or choose another folder."
                )
            leaves.append(stored[name] if math.prod(shape) else np.zeros(shape, leaf.dtype))
        return jax.tree.unflatten(jax.tree.structure({**like, **rows}), leaves)

    def _read(self) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, list[int]]], dict]:
        """The arrays, their kinds and the facts of the run, if all is as it was written."""
        try:
            found = self._orbax.restore(self.latest, args=self._args.StandardRestore())
            stored = {name: np.asarray(array) for name, array in found.items()}
            text = stored.pop(_SEAL).tobytes().decode()
            sealed, seal = text[:_DIGEST_LENGTH], text[_DIGEST_LENGTH:]
        except Exception as error:  # whatever orbax meets in files that are not as it wrote them
            raise _damaged(self.path, f"{type(error).__name__}: {error}") from error
        if sealed != _text_digest(seal):
            raise _damaged(self.path, "its seal does not fit")
        whole = json.loads(seal)
        digests = {name: first for name, (first, *_) in whole["arrays"].items()}
        changed = sorted(
            name
            for name in digests.keys() | stored.keys()
            if name not in stored or digests.get(name) != digest(stored[name])
        )
        if changed:
            raise _damaged(self.path, f"{', '.join(changed[:3])} changed after it was written")
        return stored, {name: kind for name, (_, *kind) in whole["arrays"].items()}, whole["facts"]


def _kind(array: np.ndarray) -> tuple[str, list[int]]:
    return array.dtype.name, [*array.shape]


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_DIGEST_LENGTH = len(_text_digest(""))


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(
        f"the checkpoint in {path} is damaged: {' '.join(why.split())[:300]}. Put a copy in its "
        "place, or delete the folder to start from the beginning."
    )


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise errors of writing, whatever library they are from, as an OSError with the folder."""
    try:
        yield
    except Exception as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: Exception) -> OSError:
    return OSError(f"cannot write the checkpoint in {path}: {error}")
