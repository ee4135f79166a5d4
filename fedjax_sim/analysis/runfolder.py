"""What a run leaves on disk: one folder of plain files, never silently overwritten.

    config.json      options, versions, device, date, and the list of the run's files
    metrics.jsonl    one JSON object a line, written while the run goes on
    results.json     the summary
    params.npz       the final parameters, one array a leaf (`load_params` reads them back)
    checkpoints/     what is needed to continue the run, where that was asked for
    *.npz, *.png     per-client arrays and pictures
    report.html      all of it on one page (`report`)

Everything but metrics.jsonl is written beside its place and then renamed, so that a file is either
whole or not there. Nothing is pickled. JSON is strict: what is not finite becomes null.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import __version__
from fedjax_sim.analysis import plots
from fedjax_sim.base import Params, PyTree
from fedjax_sim.ops import checks, trees

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONFIG = "config.json"
_LOG = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
_FOLDERS = (CHECKPOINTS, "runs", "tensorboard", "wandb")
"""Folders that a run may have; no other is ever deleted."""
_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax")


class RunFolder:
    r"""The output folder of one run.

    Args:
        path: the folder, made if missing with everything above it.
        options: what was asked for, a dataclass or a mapping; kept in config.json.
        overwrite: replace an earlier run: the files that its config.json lists are deleted, and
            nothing else in the folder is touched.
        resume: continue the earlier run: its files stay until they are written again.

    Raises:
        FileExistsError: as `check_output`; nothing was changed.
        FileNotFoundError: there is no run to continue.
        OSError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> run = RunFolder(tempfile.mkdtemp(), {"rounds": 2})
        >>> run.log({"round": 1, "test/accuracy": float("nan")})
        >>> run.save_json("results.json", {"accuracy": np.float32(0.5)})
        >>> (run.path / "metrics.jsonl").read_text()
        '{"round": 1, "test/accuracy": null}\n'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: Any,
        *,
        overwrite: bool = False,
        resume: bool = False,
    ):
        self.path = Path(path).expanduser()
        earlier = _files_of_earlier_run(self.path)
        if resume and earlier is None:
            raise FileNotFoundError(f"there is no run in {self.path} to continue.")
        if not resume:
            check_output(self.path, overwrite=overwrite)
        # A folder that was not there a moment ago is another run's that began at the same time.
        self.path.mkdir(parents=True, exist_ok=self.path.exists())
        for name in earlier or ():
            _partial(self.path / name).unlink(missing_ok=True)
            if name == _CONFIG or resume:
                continue  # config.json is replaced below: until then it says whose the others are
            if name in _FOLDERS and (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
            else:
                (self.path / name).unlink(missing_ok=True)
        device = jax.local_devices()[0]
        self._config = {
            "created_by": "fedjax_sim",
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "options": plain(options),
            "versions": versions(),
            "device": {
                "platform": device.platform,
                "kind": device.device_kind,
                "count": jax.device_count(),
            },
            "files": [name for name in earlier or () if resume and name != _CONFIG],
        }
        self._claim(_CONFIG)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give the path to write the run's file `name` to, as `replacing` does."""
        if not _is_plain(name):
            raise ValueError(f"name must be a plain file name without folders, got {name!r}.")
        self._claim(name)
        with replacing(self.path / name) as partial:
            yield partial

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl and hand it to the operating system at once."""
        self._claim(_LOG)
        with _named(self.path / _LOG), (self.path / _LOG).open("a", encoding="utf-8") as file:
            file.write(_dumps(record) + "\n")

    def edit_log(self, edit: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Replace every line of metrics.jsonl by what `edit` gives, None to drop it.

        A line that a killed process, or a full disk, left unfinished is dropped.
        """
        log = self.path / _LOG
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        edited = [edit(found) for found in map(record, lines) if found is not None]
        with self.writing(_LOG) as path:
            kept = [_dumps(line) + "\n" for line in edited if line is not None]
            path.write_text("".join(kept), encoding="utf-8")

    def owns(self, name: str) -> None:
        """Note a file that something else will write, so that it goes when the run is replaced."""
        self._claim(name)

    def checkpoints(self) -> Path:
        """The folder for the run's checkpoints."""
        return self.subfolder(CHECKPOINTS)

    def subfolder(self, name: str) -> Path:
        """A folder in the run's folder, which is deleted when the run is replaced.

        Raises:
            ValueError: it is none of those that may be deleted.
        """
        checks.one_of("name", name, _FOLDERS)
        self._claim(name)
        return self.path / name

    def save_json(self, name: str, value: Any) -> None:
        """Write a JSON file; takes what `plain` takes."""
        with self.writing(name) as path:
            path.write_text(_dumps(value, indent=2) + "\n", encoding="utf-8")

    def save_text(self, name: str, text: str) -> None:
        """Write a text file."""
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8")

    def save_arrays(self, name: str, tree: PyTree) -> None:
        """Write every leaf of a tree to an .npz file, under its path in the tree ("a/b/0").

        `numpy.load` reads it. Leaves: arrays of numbers, booleans or fixed-width text; None is left
        out. bfloat16 and its like come back as raw bytes, except through `load_params`.

        Raises:
            ValueError: two leaves have the same path, or a leaf holds objects.
        """
        arrays = {path: np.asarray(leaf) for path, leaf in trees.flat_dict(tree).items()}
        if len(arrays) < len(jax.tree.leaves(tree)):
            raise ValueError(f"{name}: two leaves have the same path; no key may contain '/'.")
        # numpy.savez takes the names as keyword arguments, so some names would not be possible.
        with (
            self.writing(name) as path,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)

    def save_params(self, params: Params, name: str = "params.npz") -> None:
        """Write parameters; `load_params` reads them back."""
        self.save_arrays(name, params)

    def save_figure(self, name: str, figure: "Figure") -> None:
        """Write a picture; the format follows from the name's ending."""
        with self.writing(name) as path:
            plots.save(figure, path)

    def save_bytes(self, name: str, content: bytes) -> None:
        """Write what a file is to hold."""
        with self.writing(name) as path:
            path.write_bytes(content)

    def _claim(self, name: str) -> None:
        """Note a file as the run's before it appears, so that a killed run can be replaced too."""
        files = self._config["files"]
        if name in files:
            return
        files.append(name)
        with replacing(self.path / _CONFIG) as partial:
            partial.write_text(_dumps(self._config, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path to write a file to; it takes the place of `path` when the block ends well.

    Then it is whole, and on the disk: neither a crash nor a full disk leaves half of it.
    """
    partial = _partial(path)
    try:
        with _named(path):
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".partial-{path.name}")  # writers see the format from the ending


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise unless a run may write to the folder `path`; changes nothing.

    Raises:
        FileExistsError: the folder holds files and `overwrite` is not set; or it is, but the folder
            was not written by an earlier run.
        NotADirectoryError: `path` is a file.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"output {path} is a file. Choose another --output.")
    entries = path.iterdir() if path.exists() else ()
    # One killed in its first moment leaves no more than this.
    found = sorted(entry.name for entry in entries if entry.name != f".partial-{_CONFIG}")
    if not found:
        return
    holds = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
    if not overwrite:
        raise FileExistsError(
            f"output {path} already holds files ({holds}). Choose another --output, or pass "
            "--overwrite to replace the earlier run in it."
        )
    if _files_of_earlier_run(path) is None:
        raise FileExistsError(
            f"output {path} holds files ({holds}) but no {_CONFIG} of an earlier run, so nothing "
            "in it is touched. Choose another --output, or empty the folder yourself."
        )


def has_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a run's folder holds a checkpoint to go on from; it may be damaged."""
    folder = Path(path).expanduser() / CHECKPOINTS
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


def record(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is no whole one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("round"), int) else None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an OSError that does not, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise type(error)(error.errno, os.strerror(error.errno), str(path)) from error


def _files_of_earlier_run(path: Path) -> list[str] | None:
    """The files an earlier run left in a folder; None if there was none."""
    try:
        config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        files = config["files"] if config["created_by"] == "fedjax_sim" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(files, list):
        return None
    # The list decides what is deleted, so it must not lead out of the folder.
    return [name for name in files if isinstance(name, str) and _is_plain(name)]


def _is_plain(name: str) -> bool:
    """Whether `name` names a file right inside a folder."""
    return Path(name).name == name and name not in ("", "..")


def load_params(path: str | os.PathLike[str], like: Params) -> Params:
    """Read parameters written by `RunFolder.save_params`.

    Args:
        path: the .npz file.
        like: parameters of the same structure, shapes and dtypes, or their `jax.ShapeDtypeStruct`s:
            `jax.eval_shape(model.init, key, inputs)`.

    Returns:
        A pytree like `like`, on JAX's default device.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file; names, shapes or dtypes that differ, each named.
    """
    try:
        # NumPy leaves a file open that it cannot read, so it does not get to open it.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except FileNotFoundError:
        raise FileNotFoundError(f"there are no parameters at {path}.") from None
    except Exception as e:  # NumPy and zipfile raise all kinds on a damaged file
        raise ValueError(f"cannot read parameters from {path}: {type(e).__name__}: {e}.") from e
    wanted = trees.flat_dict(like)
    missing, extra = [*(wanted.keys() - arrays.keys())], [*(arrays.keys() - wanted.keys())]
    if missing or extra:
        raise ValueError(
            f"the parameters in {path} are of another model: it lacks {sorted(missing)} and has "
            f"{sorted(extra)} besides. Build the model with the options in {_CONFIG}."
        )
    for name, leaf in wanted.items():
        dtype = np.dtype(leaf.dtype)
        if arrays[name].dtype.kind == "V" and arrays[name].dtype.itemsize == dtype.itemsize:
            arrays[name] = arrays[name].view(dtype)  # NumPy's files do not know bfloat16
        if (arrays[name].shape, arrays[name].dtype) != (leaf.shape, dtype):
            raise ValueError(
                f"{name} in {path} is {arrays[name].dtype} {arrays[name].shape}, but the model has "
                f"{dtype} {leaf.shape}. Build the model with the options in {_CONFIG}."
            )
    leaves = [jnp.asarray(arrays[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def versions() -> dict[str, str]:
    """The versions that a result depends on, by package."""
    return {
        "fedjax_sim": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def plain(value: Any) -> Any:
    """Turn a value into what strict JSON can hold.

    Takes numbers, text, None, paths, arrays, dataclasses, named tuples and collections of them.
    NaN and the infinities become None.

    >>> plain({"loss": np.array([0.5, np.inf]), "path": Path("runs")})
    {'loss': [0.5, None], 'path': 'runs'}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Iterable):
        return [plain(each) for each in value]
    raise TypeError(f"{value!r} of type {type(value).__name__} has no form in JSON.")


def _dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)
