"""What `fedjax-sim train` does: deal out the data, train, and leave a folder of results."""

import contextlib
import datetime
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.table import Table

from fedjax_sim import algorithms, clients, engine, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.analysis.runfolder import RunFolder, check_output
from fedjax_sim.base import Algorithm, Model, Params, Status
from fedjax_sim.cli import options as options_lib
from fedjax_sim.cli.options import AlgorithmOptions, DataOptions, TrainOptions
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition
from fedjax_sim.ops import checks, devices, trees
from fedjax_sim.servers import sampling

METRICS = {name: metrics.METRICS[name] for name in ("accuracy", "loss")}

Summaries = dict[str, dict[str, dict[str, np.ndarray]]]
"""split -> metric -> statistic over clients -> [E]."""


class Population(NamedTuple):
    """A data set, dealt out.

    train: N clients.
    test: the same N clients, or one client that owns all test examples.
    label_counts: [N, K] training examples, or None for labels per token.
    client_names: [N] for clients with names, or ().
    """

    dataset: datasets.Dataset
    train: FederatedData
    test: FederatedData
    label_counts: np.ndarray | None
    client_names: tuple[str, ...]


def main(options: TrainOptions) -> int:
    """Train as the options say and write the run's folder.

    Returns:
        0, or 130 after Ctrl-C: everything done until then is written.

    Raises:
        RuntimeError: a round went wrong; everything done until then is written.
        ValueError, TypeError, OSError: wrong options or data; no folder is made.
    """
    _use_all_cores()
    given, options = options, options_lib.resolve(options)
    options_lib.check_resumed(options)
    _check_numbers(options)
    output = options.run.output or _default_output(options)
    if options.run.resume is None:
        check_output(output, overwrite=options.run.overwrite)
    population = deal(options.data, seed=options.run.seed)
    num_clients = population.train.num_clients
    if given.training.cohort_size is None and options.training.cohort_size is not None:
        cohort_size = min(options.training.cohort_size, num_clients)
        options = options_lib.replaced(options, {"cohort_size": cohort_size})
    elif options.training.cohort_size not in (None, "all"):
        checks.in_range(
            "cohort_size", options.training.cohort_size, 1, num_clients, hint="Or all clients: all."
        )
    # Split first: a key that is both split and folded gives equal keys for unequal uses.
    init_key, run_key = jax.random.split(jax.random.key(options.run.seed))
    model, params = build_model(options, population.dataset, init_key)
    mesh = devices.mesh() if jax.device_count() > 1 and not options.run.debug else None
    algorithm = build_algorithm(options.training, model, mesh)
    train = population.train if mesh is None else devices.replicate(population.train, mesh)
    jax.eval_shape(algorithm.init, run_key, params, population.train)  # refuses what cannot run

    console = Console(highlight=False)
    console.print(_card(options, population, params))
    folder = RunFolder(
        output,
        options_lib.flat(options),
        overwrite=options.run.overwrite,
        resume=options.run.resume is not None,
    )
    folder.save_text("config.toml", options_lib.dump_toml(options))
    failure = None
    with (
        simulate.progress_bar() as show,
        _shown_log(),
        _graceful_interrupt() as check_interrupt,
    ):
        try:
            result = simulate.run(
                algorithm,
                params,
                train,
                key=run_key,
                num_rounds=options.training.rounds,
                evaluate=engine.evaluator(model, METRICS, mesh=mesh),
                eval_data={"train": train, "test": population.test},
                eval_every=options.run.eval_every,
                segment_rounds=min(options.run.eval_every, 10),
                progress=_logger(folder, options, show, check_interrupt),
                on_error=options.training.on_error,
                checkpoint=None if options.run.checkpoint_every is None else folder.checkpoints(),
                checkpoint_every=options.run.checkpoint_every,
                debug=options.run.debug,
            )
        except simulate.SimulationError as error:
            failure, result = error, error.result
    with _signal_handlers(signal.SIG_IGN):  # an impatient Ctrl-C must not lose what is done
        summaries = summarize(result.evaluations)
        write(folder, population, params, result, summaries, failure)
        console.print(_summary_table(summaries))
        console.print(_closing(folder, options, result), markup=False, soft_wrap=True)
    if failure is not None:
        # The hints after the first sentence are for users of the library.
        what = str(failure).partition(". ")[0]
        raise RuntimeError(
            f"{what}. Lower the learning rates, go on without such updates by --on-error continue, "
            f"or look closer with --debug. What was done is in {folder.path}/."
        ) from failure
    return 130 if result.interrupted else 0


# Building


def deal(options: DataOptions, *, seed: int) -> Population:
    """Load the data set and deal it out; the test examples in the clients' proportions if possible.

    They are pooled instead where there are fewer test examples than clients, or where a natural
    client or a class is in one of the two sets only.
    """
    dataset = _load(options, seed)
    labels = dataset.train["y"]
    if labels.ndim > 1 and options.partition in ("dirichlet", "shards"):
        raise ValueError(
            f"--partition {options.partition} needs one label per example, but {dataset.name} has "
            "a sequence of them. Use iid, quantity_skew or by_group."
        )
    names: tuple[str, ...] = ()
    parts = _train_partition(options, dataset, seed)
    if options.partition == "by_group":
        names = tuple(map(str, np.unique(dataset.train_groups[str(options.group)])))
    counts = None
    if labels.ndim == 1 and labels.min() >= 0:
        counts = partition.label_counts(labels, parts, dataset.num_classes)
    test_parts = _test_partition(options, dataset, [len(part) for part in parts], counts, seed)
    return Population(
        dataset=dataset,
        train=federate(dataset.train, parts, num_classes=dataset.num_classes),
        test=federate(dataset.test, test_parts, num_classes=dataset.num_classes),
        label_counts=counts,
        client_names=names,
    )


def _load(options: DataOptions, seed: int) -> datasets.Dataset:
    if not options_lib.is_csv(options.dataset):
        return datasets.load(options.dataset, options.folder)
    return datasets.from_csv(
        Path(options.folder or "") / options.dataset,
        label_column=str(options.label),
        group_columns=() if options.group is None else (options.group,),
        seed=seed,
    )


def _train_partition(
    options: DataOptions, dataset: datasets.Dataset, seed: int
) -> partition.Partition:
    # Resolved options: what belongs to the choice is not None, which no type states.
    given: Any = options
    labels, num_clients = dataset.train["y"], given.num_clients
    match options.partition:
        case "iid":
            return partition.iid(len(labels), num_clients, seed=seed)
        case "dirichlet":
            return partition.dirichlet(
                labels, num_clients, alpha=given.alpha, seed=seed, min_size=given.min_size
            )
        case "shards":
            shards_per_client = given.shards_per_client
            return partition.shards(
                labels, num_clients, shards_per_client=shards_per_client, seed=seed
            )
        case "quantity_skew":
            return partition.quantity_skew(
                len(labels), num_clients, sigma=given.sigma, seed=seed, min_size=given.min_size
            )
        case "by_group":
            groups = dataset.train_groups
            if not groups:
                raise ValueError(
                    f"--partition by_group: {dataset.name} has no groups. Use another partition."
                )
            checks.one_of("group", given.group, groups)
            return partition.by_group(groups[given.group])


def _test_partition(
    options: DataOptions,
    dataset: datasets.Dataset,
    sizes: list[int],
    counts: np.ndarray | None,
    seed: int,
) -> partition.Partition:
    num_test = len(dataset.test["y"])
    pooled = [np.arange(num_test)]
    if num_test < len(sizes):
        return pooled
    if options.partition == "by_group":
        names = np.unique(dataset.train_groups[str(options.group)])
        groups = dataset.test_groups.get(str(options.group), np.array([]))
        same = np.array_equal(np.unique(groups), names)
        return partition.by_group(groups) if same else pooled
    # Where labels do not tell clients apart, shares of all examples do.
    labels = np.zeros(num_test, np.int64) if counts is None else dataset.test["y"]
    shares = np.array(sizes)[:, None] if counts is None else counts
    if (shares.sum(axis=0)[np.unique(labels)] == 0).any():
        return pooled
    return partition.by_proportions(labels, shares, seed=seed, min_size=1)


def build_model(
    options: TrainOptions, dataset: datasets.Dataset, key: jax.Array
) -> tuple[Model, Params]:
    """The model and its initial parameters; checks that it fits the data."""
    hidden = options.model.hidden
    extra = {} if hidden is None else {"hidden": hidden}
    model = models.build(options.model.model, dataset.num_classes, **extra)
    if options.model.precision == "bfloat16":
        model = models.mixed_precision(model)
    inputs = jnp.asarray(dataset.train["x"][:1])
    params = jax.jit(model.init)(key, inputs)
    models.check_outputs(
        model, params, inputs, num_classes=dataset.num_classes, labels=dataset.train["y"][:1]
    )
    return model, params


def build_algorithm(options: AlgorithmOptions, model: Model, mesh: Mesh | None = None) -> Algorithm:
    """The algorithm with its parts, from resolved options."""
    given: Any = options  # no type states that what belongs to the choice is not None
    batch_size = None if options.batch_size == "all" else options.batch_size
    client_optimizer = optax.sgd(given.client_learning_rate)
    if options.algorithm == "agnostic":
        return algorithms.agnostic(
            model,
            optimizer=client_optimizer,
            mixture_step_size=given.mixture_learning_rate,
            batch_size=batch_size,
        )
    batching = Batching(batch_size, num_epochs=options.epochs, num_steps=options.local_steps)
    sampler = sampling.everyone()
    if given.cohort_size != "all":
        sampler = sampling.uniform(given.cohort_size)
    if options.algorithm == "scaffold":
        return algorithms.scaffold(
            model,
            client_learning_rate=given.client_learning_rate,
            server_learning_rate=given.server_learning_rate,
            batching=batching,
            sampler=sampler,
            width=given.width,
            mesh=mesh,
        )
    rule = None
    if options.algorithm == "fedprox":
        rule = clients.prox(model, client_optimizer, mu=given.prox_mu, loss=metrics.cross_entropy)
    return algorithms.fedavg(
        model,
        client_optimizer=client_optimizer,
        batching=batching,
        sampler=sampler,
        server=_server_optimizer(options),
        rule=rule,
        width=given.width,
        mesh=mesh,
    )


def _server_optimizer(options: AlgorithmOptions) -> optax.GradientTransformation:
    given: Any = options
    rate, momentum, epsilon = (
        given.server_learning_rate,
        given.server_momentum,
        given.server_epsilon,
    )
    match options.algorithm:
        case "fedadam":
            return optax.adam(rate, b1=momentum, b2=0.99, eps=epsilon)
        case "fedyogi":
            return optax.yogi(rate, b1=momentum, b2=0.99, eps=epsilon)
        case "fedadagrad":
            # "Adaptive Federated Optimization" starts the accumulators at epsilon squared.
            return optax.adagrad(rate, initial_accumulator_value=epsilon**2, eps=epsilon)
        case _:
            return optax.sgd(rate, momentum=momentum)


def _check_numbers(options: TrainOptions) -> None:
    """Check what no factory can check: it gets optimizers and counts, not these numbers."""
    values = {name: v for name, v in options_lib.flat(options).items() if v is not None}
    for name in ("rounds", "eval_every", "checkpoint_every", "num_clients", "min_size"):
        if name in values:
            checks.positive_int(name, values[name])
    for name in ("cohort_size", "batch_size"):
        if values.get(name, "all") != "all":
            checks.positive_int(name, values[name], hint="Or all.")
    for name in ("client_learning_rate", "server_learning_rate", "server_epsilon"):
        if name in values:
            checks.in_range(name, values[name], 0, open_low=True)
    checks.in_range("server_momentum", values.get("server_momentum", 0), 0, np.nextafter(1, 0))
    checks.in_range("seed", values["seed"], 0, 2**32 - 1)


# Running


def _use_all_cores() -> None:
    """One device a core of the CPU; where JAX runs already, its devices stay as they are."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        devices.use_all_cores()


def _default_output(options: TrainOptions) -> Path:
    now = datetime.datetime.now().astimezone()
    name = f"{options.data.dataset}-{options.training.algorithm}-{now:%Y%m%d-%H%M%S}"
    return Path("runs") / name.replace(":", "-").replace("/", "-")


def _logger(
    folder: RunFolder,
    options: TrainOptions,
    show: Callable[[simulate.Progress], None],
    check_interrupt: Callable[[], None],
) -> Callable[[simulate.Progress], None]:
    """Show progress, and write a line of metrics.jsonl for every segment of rounds."""
    first = True

    def progress(now: simulate.Progress) -> None:
        nonlocal first
        if first and options.run.resume is not None:
            # What a killed run logged after its last checkpoint is done once more.
            folder.trim_log(lambda record: record["round"] <= now.first_round)
        first = False
        show(now)
        done = now.num_rounds
        evaluated = done % options.run.eval_every == 0 or done == now.total_rounds
        folder.log(
            {
                "round": done,
                "seconds": now.seconds,
                "client_steps": now.client_steps,
                "status": _status_names(now.status),
                **(now.latest if evaluated else {}),
            }
        )
        check_interrupt()

    return progress


def _status_names(status: Status) -> list[str]:
    return [str(flag.name).lower() for flag in status]


@contextlib.contextmanager
def _shown_log() -> Iterator[None]:
    """Print what the package logs, such as the chunk width that was measured, above the bar."""
    logger = logging.getLogger("fedjax_sim")
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _graceful_interrupt() -> Iterator[Callable[[], None]]:
    """Delay Ctrl-C to where `check` is called; a second one acts at once.

    A KeyboardInterrupt may arrive between any two steps of the interpreter, so it could lose a
    segment of rounds that was taken from the device but not stored yet. What a scheduler sends
    before it kills (SIGTERM) is handled alike.
    """
    asked = raised = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        message = b"\nstopping after the rounds under way; Ctrl-C again stops at once\n"
        os.write(2, message)  # printing is not safe inside a signal handler

    def check() -> None:
        nonlocal raised
        if asked and not raised:
            raised = True
            raise KeyboardInterrupt

    with _signal_handlers(handle):
        yield check


@contextlib.contextmanager
def _signal_handlers(handler: Any) -> Iterator[None]:
    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


# Reporting


def summarize(evaluations: simulate.Evaluations) -> Summaries:
    """How every metric spreads over clients, at every evaluation; one client has only a mean."""
    # Compiled at once: operation by operation it takes longer than many a run.
    spread_of = jax.jit(metrics.summarize, static_argnames="higher_is_better")

    def summary(name: str, mean: Any) -> dict[str, np.ndarray]:
        spread = spread_of(mean, higher_is_better=METRICS[name].higher_is_better)
        kept = spread if mean.count.shape[-1] > 1 else {"mean": spread["mean"]}
        return {statistic: np.asarray(values) for statistic, values in kept.items()}

    return {
        split: {name: summary(name, mean) for name, mean in by_name.items()}
        for split, by_name in evaluations.values.items()
    }


def write(
    folder: RunFolder,
    population: Population,
    params: Params,
    result: simulate.Result,
    summaries: Summaries,
    failure: Exception | None,
) -> None:
    """Write everything a run leaves."""
    folder.save_params(result.params)
    names = np.array(population.client_names) if population.client_names else None
    folder.save_arrays(
        "per_client.npz",
        {
            "client_names": names,
            "client_sizes": population.train.sizes,
            "rounds": result.info,
            "evaluations": {
                "rounds": result.evaluations.rounds,
                **result.evaluations.values,
            },
        },
    )
    client_steps = _client_steps(result)
    status = Status(0)
    bytes_down = bytes_up = 0.0
    if result.info is not None:
        status = Status(int(np.bitwise_or.reduce(result.info.status)))
        bytes_down, bytes_up = (
            float(np.sum(sent, dtype=np.float64))
            for sent in (result.info.bytes_down, result.info.bytes_up)
        )
    folder.save_json(
        "results.json",
        {
            "rounds": result.num_rounds,
            "interrupted": result.interrupted,
            "error": None if failure is None else str(failure),
            "status": _status_names(status),
            "final": {
                split: {
                    name: {statistic: values[-1] for statistic, values in summary.items()}
                    for name, summary in by_name.items()
                }
                for split, by_name in summaries.items()
            },
            "evaluations": {"rounds": result.evaluations.rounds, **summaries},
            "num_clients": population.train.num_clients,
            "num_test_clients": population.test.num_clients,
            "num_parameters": trees.num_parameters(params),
            "client_steps": client_steps,
            "bytes_down": bytes_down,
            "bytes_up": bytes_up,
            "seconds": result.seconds,
            "compile_seconds": result.compile_seconds,
            "rounds_per_second": _rate(result.num_rounds, result.seconds),
            "client_steps_per_second": _rate(client_steps, result.seconds),
            "peak_memory_bytes": _peak_memory_bytes(),
        },
    )
    _write_pictures(folder, population, result, summaries)


def _write_pictures(
    folder: RunFolder, population: Population, result: simulate.Result, summaries: Summaries
) -> None:
    if population.label_counts is not None:
        figure = plots.label_counts(
            population.label_counts,
            class_names=population.dataset.class_names or None,
            client_names=population.client_names or None,
            sort=not population.client_names,
        )
        folder.save_figure("label_counts.png", figure)
    curves = {
        f"{split}/{name}": summary
        for split, by_name in summaries.items()
        for name, summary in by_name.items()
    }
    folder.save_figure(
        "learning_curves.png", plots.learning_curves(result.evaluations.rounds, curves)
    )
    last = {
        split: jax.tree.map(lambda x: x[-1], by_name["accuracy"])
        for split, by_name in result.evaluations.values.items()
    }
    accuracies = {
        split: mean.total[mean.count > 0] / mean.count[mean.count > 0]
        for split, mean in last.items()
        if mean.count.size > 1
    }
    if any(np.isfinite(each).any() for each in accuracies.values()):
        folder.save_figure(
            "client_accuracy.png", plots.client_distribution(accuracies, label="accuracy")
        )


def _client_steps(result: simulate.Result) -> int:
    if result.info is None:
        return 0
    return int(result.info.cohort.clients["num_steps"].sum(dtype=np.int64))


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _peak_memory_bytes() -> int | None:
    """The most memory this process has held, on the host; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _card(options: TrainOptions, population: Population, params: Params) -> Table:
    """What is about to run."""
    data, training = options.data, options.training
    sizes = np.asarray(population.train.sizes)
    device = jax.local_devices()[0]
    card = Table.grid(padding=(0, 2))
    card.add_column(style="bold")
    card.add_row(
        "data",
        f"{population.dataset.name}: {len(population.dataset.train['y']):,} training and "
        f"{len(population.dataset.test['y']):,} test examples, "
        f"{population.dataset.num_classes} classes",
    )
    card.add_row(
        "clients",
        f"{len(sizes):,}, {data.partition}{_some_options(options, 'partition')}: "
        f"{sizes.min():,} to {sizes.max():,} examples, median {np.median(sizes):,.0f}",
    )
    if population.test.num_clients == 1 < len(sizes):
        card.add_row("", "test examples cannot be dealt out alike: the test metrics are pooled")
    card.add_row("model", f"{options.model.model}: {trees.num_parameters(params):,} parameters")
    card.add_row(
        "algorithm",
        f"{training.algorithm}{_some_options(options, 'algorithm')}, batch_size "
        f"{training.batch_size}",
    )
    card.add_row("device", f"{jax.device_count()} x {device.device_kind}")
    return card


def _some_options(options: TrainOptions, choice: str) -> str:
    """The options that belong to a choice, as " (name value, ...)"."""
    values = options_lib.flat(options)
    listed = [
        f"{name} {values[name]}"
        for name, (owner, _) in options_lib.DEFAULTS.items()
        if owner == choice and values[name] is not None and name != "num_clients"
    ]
    return f" ({', '.join(listed)})" if listed else ""


_COLUMNS = {
    "mean": "mean",
    "worst": "worst",
    "worst_10_percent": "worst 10%",
    "percentile_10": "p10",
    "percentile_50": "p50",
    "percentile_90": "p90",
    "variance": "var",
}


def _summary_table(summaries: Summaries) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title="last evaluation: mean over examples, then over clients"
    )
    for heading in ("", *_COLUMNS.values()):
        table.add_column(heading, no_wrap=True, justify="right" if heading else "left")
    for split, by_name in summaries.items():
        for name, summary in by_name.items():
            cells = [
                f"{summary[statistic][-1]:.3f}" if statistic in summary else ""
                for statistic in _COLUMNS
            ]
            table.add_row(f"{split} {name}", *cells)
    return table


def _closing(folder: RunFolder, options: TrainOptions, result: simulate.Result) -> str:
    seconds = f"{result.seconds:.1f} s and {result.compile_seconds:.1f} s of compilation"
    speed = f"{_rate(result.num_rounds, result.seconds):,.1f} rounds/s"
    steps = f"{_rate(_client_steps(result), result.seconds):,.0f} client-steps/s"
    how = "interrupted after" if result.interrupted else "did"
    resumes = result.interrupted and options.run.checkpoint_every is not None
    return (
        f"{how} {result.num_rounds} rounds in {seconds}: {speed}, {steps}\n"
        f"results: {folder.path}/ (results.json, metrics.jsonl, per_client.npz, params.npz, "
        "pictures)" + f"\ncontinue: fedjax-sim train --resume {folder.path}" * resumes
    )
