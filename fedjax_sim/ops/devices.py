"""Which devices a program runs on: all cores of a CPU, several accelerators, several hosts."""

import os
from collections.abc import Sequence

import jax
import numpy as np
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
