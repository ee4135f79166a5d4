"""Federated learning simulation on JAX: a round is a pure function, a training run one scan.

    >>> import jax, optax
    >>> import fedjax_sim as fs
    >>> adult = fs.datasets.adult()
    >>> train = fs.federate(adult.train, fs.partition.by_group(adult.train_groups["education"]))
    >>> model = fs.models.logistic(adult.num_classes)
    >>> fedavg = fs.algorithms.fedavg(
    ...     model, client_optimizer=optax.sgd(0.1), batching=fs.Batching(num_steps=10)
    ... )
    >>> params = model.init(jax.random.key(0), adult.train["x"][:1])
    >>> result = fs.run(fedavg, params, train, key=jax.random.key(1), num_rounds=3)
    >>> result.info.cohort.loss.shape  # rounds x clients
    (3, 16)

The import loads nothing; a name is loaded when it is first used. Names are the folders
(`fs.algorithms`), the modules of `ops`, `data`, `servers` and `analysis` (`fs.simplex`,
`fs.partition`), the contracts of `base` (`fs.Aggregator`), and what `data`, `simulate` and `engine`
offer (`fs.federate`, `fs.run`, `fs.evaluator`).

    datasets, partition, federate    examples, who owns which, and both on the device
    models, metrics                  what is trained, what is minimised and measured
    clients, uplink, aggregators     the parts of a round; their contracts are in `base`
    servers, sampling                what the server does, and who takes part
    privacy                          what a server adds to sums, and what that is worth
    matching                         networks trained apart, merged neuron by neuron
    attacks, poisoning               what malicious clients send, and what they train on
    algorithms, engine               named algorithms, and `engine.federated`, which composes parts
    run, sweep                       an algorithm over rounds, over seeds and hyperparameters
    experiment                       all of it from a file, as the command line has it
    plots, runfolder                 pictures, and what a run leaves on disk
    trackers                         where its numbers go: TensorBoard, MLflow, CSV ...
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_sim.base import *  # noqa: F403
    from fedjax_sim.data import *  # noqa: F403
    from fedjax_sim.engine import *  # noqa: F403
    from fedjax_sim.experiments.described import experiment as experiment
    from fedjax_sim.simulate import *  # noqa: F403

__version__ = "0.1.0"

_ROOMS = ("", "ops", "data", "servers", "analysis")
"""Folders whose modules are names of the package."""
_FACES = ("base", "data", "simulate", "engine", "experiments.described")
"""Modules whose public functions and classes are names of the package."""


def _module(name: str) -> str | None:
    """The module that goes by this name, found without importing anything."""
    for room in _ROOMS:
        place = Path(__file__).parent / room / name
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
            return ".".join(filter(None, (__name__, room, name)))
    return None


def _offered(face: str) -> dict[str, Any]:
    """What a module offers to the package: what it lists, else all that is the package's own."""
    module = importlib.import_module(f"{__name__}.{face}")
    return {
        name: value
        for name, value in vars(module).items()
        if str(getattr(value, "__module__", "")).startswith(__name__)
        and name in getattr(module, "__all__", [name])
    }


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        if module := _module(name):
            return importlib.import_module(module)
        for face in _FACES:
            if (value := _offered(face).get(name)) is not None:
                globals()[name] = value
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    modules = {
        path.stem
        for room in _ROOMS
        for path in (Path(__file__).parent / room).iterdir()
        if _module(path.stem)
    }
    values = {name for face in _FACES for name in _offered(face)}
    return sorted(name for name in modules | values | {"__version__"} if name[0] != "_")
