"""Which devices a program runs on: all cores of a CPU, several accelerators, several hosts."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.base import PyTree
from fedjax_sim.ops import checks

CLIENT_AXIS = "clients"


def use_all_cores(num_devices: int | None = None) -> None:
    """Make one JAX device of every core of the CPU. Call it before anything else uses JAX.

    XLA runs the many small operations of one client on one core. With a device a core, and `mesh()`
    given to the algorithm, every core trains clients of its own. An accelerator is left as it is.

    Args:
        num_devices: devices to make, >= 1; by default the cores that this process may use.

    Raises:
        RuntimeError: if JAX has started already, so that it is too late.
    """
    if num_devices is None:
        num_devices = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        num_devices = num_devices or os.cpu_count() or 1
    checks.positive_int("num_devices", num_devices)
    try:
        jax.config.update("jax_num_cpu_devices", num_devices)
    except RuntimeError as error:
        raise RuntimeError(
            "use_all_cores() came too late: JAX has started already. Call it first, right after "
            "the imports, before any array is made."
        ) from error


def use_compilation_cache(
    folder: str | os.PathLike[str] | None = None, *, max_bytes: int = 1 << 30
) -> None:
    """Keep compiled programs on disk: a second process finds them and compiles nothing.

    JAX's persistent compilation cache, for small programs too. Where it is in use already, by
    `JAX_COMPILATION_CACHE_DIR` or `jax.config`, it stays as it is unless a folder is named. The
    command line calls this by itself.

    Args:
        folder: where to keep them, made if missing; None is `programs` in `cache_folder()`.
        max_bytes: size, >= 1, from which on the programs that were not used for longest go.

    Raises:
        OSError: the folder cannot be made.
    """
    checks.positive_int("max_bytes", max_bytes)
    if folder is None and jax.config.values["jax_compilation_cache_dir"]:
        return
    path = cache_folder() / "programs" if folder is None else Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path.absolute()))
    jax.config.update("jax_compilation_cache_max_size", max_bytes)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    compilation_cache.reset_cache()  # JAX looks for its folder once, when it compiles first


def cache_folder() -> Path:
    """What this package remembers on this machine: `~/.cache/fedjax_sim`.

    Under `XDG_CACHE_HOME` if that is set. Everything in it can be deleted.
    """
    directory = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(directory) / "fedjax_sim"


def mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh that deals clients out to devices; all of them by default."""
    return Mesh(np.array(devices or jax.devices()), (CLIENT_AXIS,))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every array on every device, so that no round has to move it there.

    With devices of several processes, each process gives the same arrays for its own devices.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    # device_put would send everything to every process, to compare.
    place = jax.make_array_from_process_local_data
    return jax.tree.map(lambda leaf: place(everywhere, np.asarray(leaf)), tree)


def host_memory_bytes() -> int:
    """The memory of this machine, as far as the system tells; else 8 GiB."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 << 30
