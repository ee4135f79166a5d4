"""What the benchmarks share: workloads, a compiled training, clocks that take turns, output."""

import argparse
import datetime
import json
import math
import os
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.table import Table

from fedjax_sim import algorithms, models
from fedjax_sim.analysis.runfolder import versions
from fedjax_sim.base import Model, Params
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.data.federated_data import size_facts
from fedjax_sim.ops import devices

WIDTH = 140
"""Columns of a printed table, also where the output is no terminal."""


class Workload(NamedTuple):
    """What is trained, on inputs of which shape, and what its arithmetic is.

    shape: of one input. Images are uint8, sequences (of one axis) are int32 tokens.
    num_labels: labels are drawn from [0, num_labels), one an image or one a token.
    layer_products: multiply-adds of one example's forward pass, layer by layer from the input on.
    """

    model: Model
    shape: tuple[int, ...]
    num_labels: int
    layer_products: tuple[int, ...]

    def step_flops(self, batch_size: int) -> int:
        """Operations of the matrix products and convolutions of one local step.

        Every layer's product is needed three times: forward, for the gradient of its kernel and,
        in all layers but the first, for the gradient of its input. The rest is not counted.
        """
        return 2 * batch_size * (3 * sum(self.layer_products) - self.layer_products[0])

    def num_parameters(self) -> int:
        """Parameters of the model."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self._shapes()))

    def step_bytes(self, batch_size: int) -> int:
        """The least one local step moves if the model does not stay in a cache.

        The parameters, read by the forward and the backward pass and written by the update, and the
        inputs, read once.
        """
        width = 1 if len(self.shape) > 1 else 4
        return 3 * 4 * self.num_parameters() + width * batch_size * math.prod(self.shape)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        return self.model.init(key, jnp.zeros((1, *self.shape), self._dtype()))

    def _shapes(self) -> Params:
        return jax.eval_shape(self.init, jax.random.key(0))

    def _dtype(self) -> Any:
        return jnp.uint8 if len(self.shape) > 1 else jnp.int32


def mlp(width: int) -> Workload:
    """A perceptron with two hidden layers of one width on 28x28 images."""
    model = models.mlp(10, hidden=(width, width))
    return Workload(model, (28, 28, 1), 10, (784 * width, width * width, width * 10))


def _cnn(model: Model, side: int, channels: int, num_classes: int) -> Workload:
    convolutions = ((side - 2) ** 2 * 9 * channels * 32, (side - 4) ** 2 * 9 * 32 * 64)
    dense = ((side // 2 - 2) ** 2 * 64 * 128, 128 * num_classes)
    return Workload(model, (side, side, channels), num_classes, convolutions + dense)


def workload(name: str) -> Workload:
    """A workload by its name in `WORKLOADS`."""
    return WORKLOADS[name]()


# Drawn inputs of the real data's shape: they take the same time and teach nothing. The LSTM reads
# 80 characters; its first "layer" is the look-up of embeddings, whose gradient is no product.
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "logistic": lambda: Workload(models.logistic(10), (28, 28, 1), 10, (784 * 10,)),
    "mlp": lambda: mlp(200),
    "cnn": lambda: _cnn(models.emnist_cnn(10, dropout=(0.0, 0.0)), 28, 1, 10),
    "emnist": lambda: _cnn(models.emnist_cnn(62), 28, 1, 62),
    "cifar10": lambda: _cnn(models.simple_cnn(10), 32, 3, 10),
    "lstm": lambda: Workload(
        models.char_lstm(90),
        (80,),
        90,
        (0, 80 * (8 + 256) * 1024, 80 * (256 + 256) * 1024, 80 * 256 * 90),
    ),
}


def equal_sizes(num_clients: int, size: int = 60) -> np.ndarray:
    """The same number of examples for everybody."""
    return np.full(num_clients, size)


def lognormal_sizes(num_clients: int, size: int = 60) -> np.ndarray:
    """Sizes of mean `size` whose logarithms have standard deviation 1: a few clients own a lot."""
    draws = np.random.default_rng(0).lognormal(0, 1, num_clients)
    return np.maximum(1, np.round(size * draws / draws.mean())).astype(int)


def population(work: Workload, sizes: np.ndarray) -> FederatedData:
    """Drawn examples for clients of these sizes; made in place, for they may fill the memory."""
    rng = np.random.default_rng(0)
    num_rows = int(sizes.sum())
    if len(work.shape) > 1:
        pixels = rng.bytes(num_rows * math.prod(work.shape))
        x = np.frombuffer(pixels, np.uint8).reshape(num_rows, *work.shape)
        y = rng.integers(0, work.num_labels, num_rows, np.int32)
    else:
        x = rng.integers(0, work.num_labels, (num_rows, *work.shape), np.int32)
        y = rng.integers(0, work.num_labels, x.shape, np.int32)
    return FederatedData(
        examples={"x": jnp.asarray(x), "y": jnp.asarray(y)},
        owners=jnp.asarray(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)),
        starts=jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32),
        sizes=jnp.asarray(sizes, jnp.int32),
        **size_facts(sizes),
    )


class Training:
    """FedAvg with SGD as one compiled program that makes any number of rounds.

    Args:
        work: what is trained.
        data: the population, already on the devices of `mesh`.
        batch_size: of the local steps, one epoch of them.
        mesh: devices that share the cohort; None is one device.
        options: further options of `algorithms.fedavg`.
    """

    def __init__(
        self,
        work: Workload,
        data: FederatedData,
        *,
        batch_size: int = 20,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> None:
        algorithm = algorithms.fedavg(
            work.model,
            client_optimizer=optax.sgd(0.1),
            batching=Batching(batch_size),
            mesh=mesh,
            **options,
        )
        key = jax.random.key(0)
        params = work.init(key)
        if mesh is not None:
            key, params = devices.replicate((key, params), mesh)
        self._arguments = (key, jax.jit(algorithm.init)(key, params, data), data)

        def rounds(key: jax.Array, state: Any, data: FederatedData, num_rounds: Any) -> Params:
            def step(r: Any, state: Any) -> Any:
                return algorithm.step(jax.random.fold_in(key, r), state, data)[0]

            return algorithm.params(jax.lax.fori_loop(0, num_rounds, step, state))

        started = time.perf_counter()
        self._rounds = jax.jit(rounds).lower(*self._arguments, np.int32(1)).compile()
        self.compile_seconds = time.perf_counter() - started

    def run(self, num_rounds: int) -> Params:
        """Make rounds from the start on and wait for the parameters."""
        return jax.block_until_ready(self._rounds(*self._arguments, np.int32(num_rounds)))

    @property
    def temporary_bytes(self) -> int:
        """What the compiled program allocates beside its arguments and results."""
        return self._rounds.memory_analysis().temp_size_in_bytes


class Seconds(NamedTuple):
    """Median and spread (largest - smallest) of the repetitions."""

    median: float
    spread: float


def take_turns(
    ways: Mapping[Hashable, Callable[[int], object]], repeats: int, at_least: float = 0.0
) -> dict[Any, Seconds]:
    """Seconds that one unit of each way takes, measured alternately.

    Args:
        ways: name -> function that does a number of units and waits until they are done.
        repeats: how often each is measured, after one unit to warm up.
        at_least: seconds for which a measurement lasts, at least, by doing more units.
    """
    counts = dict.fromkeys(ways, 1)
    for name, way in ways.items():
        if _clock(way, 1) < at_least:  # the first call, slow as it may be, warms up
            counts[name] = math.ceil(at_least / max(_clock(way, 1), 1e-6))
    found: dict[Any, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(_clock(way, counts[name]) / counts[name])
    return {
        name: Seconds(float(np.median(seconds)), float(np.ptp(seconds)))
        for name, seconds in found.items()
    }


def _clock(way: Callable[[int], object], count: int) -> float:
    started = time.perf_counter()
    way(count)
    return time.perf_counter() - started


def parser(doc: str) -> argparse.ArgumentParser:
    """A command line described by the script's docstring, with the options of every benchmark."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=3, help="repetitions; medians are reported")
    made.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs")
    return made


def emit(bench: str, *, uses_jax: bool = True, **facts: Any) -> None:
    """Print one measurement as a JSON line, with where and when it was made.

    `uses_jax=False` is for a process that leaves the devices to others.
    """
    context = {
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    if uses_jax:
        context |= {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    print(json.dumps({"bench": bench, **facts, **context}), flush=True)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table that can be pasted into Markdown; numbers come as text."""
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=WIDTH).print(table)
