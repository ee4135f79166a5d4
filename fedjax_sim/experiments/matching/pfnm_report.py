"""The tables and pictures of the PFNM experiments, and how they are run."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedjax_sim.analysis import plots
from fedjax_sim.data.datasets import Dataset
from fedjax_sim.experiments import study
from fedjax_sim.experiments.matching import pfnm

ACCURACY = "test accuracy in %"
TOLERANCES = {"heterogeneous": (2.0, 10.0), "homogeneous": (0.3, 5.0)}
"""partition -> points for PFNM and the ensemble, and for single clients and plain averages."""
WHY = (
    "the source gives no tolerance; two deviations over seeds are 2 points, 0.3 homogeneous; 10 "
    "and 5 for clients and averages; sizes may differ by a tenth"
)


def reproduce(dataset: Dataset, recipe: pfnm.Recipe, options: pfnm.Options) -> None:
    """Run an experiment and write its folder; the options are checked."""
    report = study.Study(f"{dataset.name}: networks matched", options)
    if options.quick:
        # In an order of its own, since files may be sorted by class.
        some = np.random.default_rng(0).permutation(len(dataset.train["y"]))[:2000]
        train = {name: np.asarray(each)[some] for name, each in dataset.train.items()}
        dataset = dataset._replace(train=train)
    num_inputs = int(np.prod(dataset.train["x"].shape[1:]))
    sizes = (num_inputs, *options.hidden, dataset.num_classes)
    shop = pfnm.Workshop(recipe, sizes, epochs=2 if options.quick else 10)
    outcomes: dict[str, list[pfnm.Outcome]] = {}
    sheets: list[study.Sheet] = []
    known: list[study.Expected] = []
    for kind, number in itertools.product(options.partitions, options.num_clients):
        label = label_of(kind, number)
        for seed in options.seeds:
            report.say(f"{label}, seed {seed} ...")
            task = pfnm.deal(dataset, kind, number, seed)
            outcomes.setdefault(label, []).append(
                pfnm.run_one(shop, task, seed, options.num_rounds)
            )
            report.keep(runs=plain(outcomes))
        of_kind: list[study.Expected] = []
        comparable = not options.quick and number == 10 and tuple(options.hidden) == (100,)
        if comparable and kind in recipe.reference:
            of_kind = expected(label, kind, outcomes[label], recipe)
        sheets.append(results_table(label, outcomes[label], of_kind))
        known += of_kind
        if options.num_rounds:
            sheets.append(rounds_table(label, outcomes[label]))
    if len(options.num_clients) > 1:
        sheets += [numbers_table(kind, outcomes, options) for kind in options.partitions]
    drawn = pictures(outcomes, dataset, options)
    report.publish(sheets, known, drawn, listed=False, runs=plain(outcomes))


def label_of(kind: str, num_clients: int) -> str:
    """What runs of one partition and number of clients are called."""
    return f"{kind}, {num_clients} clients"


def expected(
    label: str, kind: str, runs: Sequence[pfnm.Outcome], recipe: pfnm.Recipe
) -> list[study.Expected]:
    """Accuracy in % and neurons of the authors' code, beside ours."""
    source = f"Authors' code, one seed, {recipe.reference_seconds}"
    good, poor = TOLERANCES[kind]
    local = 100 * np.array([run.local for run in runs])
    clients = {f"client, {f.__name__}": f(local, axis=1) for f in (np.min, np.mean, np.max)}
    found = []
    for name, (accuracy, neurons) in zip(pfnm.REFERENCE_ROWS, recipe.reference[kind], strict=True):
        what, ours = f"{label}: {name}", clients[name] if name in clients else percents(name, runs)
        near = good if name.startswith(("PFNM", "uniform ensemble")) else poor
        found += study.expect(source, WHY, (what, accuracy, ours, near))
        if neurons is not None:
            size = [sum(run.rows[name].neurons) for run in runs]
            found += study.expect(source, WHY, (f"{what}, neurons", neurons, size, 0.1 * neurons))
    return found


def results_table(
    label: str, runs: Sequence[pfnm.Outcome], known: Sequence[study.Expected]
) -> study.Sheet:
    """Accuracy and size of every row over the seeds, what is known of the rows beside ours."""
    train = np.mean([run.train_seconds for run in runs])
    match = np.mean([run.match_seconds for run in runs])
    num_settings = len(pfnm.settings_of(len(runs[0].matched.assignments))[pfnm.Kind()])
    local = 100 * np.array([run.local for run in runs])
    cells = {
        f"client, {f.__name__}": [study.spread(f(local, axis=1), 2), ""]
        for f in (np.min, np.mean, np.max)
    } | {
        name: [study.spread(percents(name, runs), 2), size_of(name, runs)] for name in runs[0].rows
    }
    columns = ["model", "accuracy", "neurons"]
    caption = (
        f"{len(runs)} seed(s). Training all clients took {train:.1f} s, matching at {num_settings} "
        f"settings {match:.2f} s. *: the budget of neurons was reached."
    )
    if known:
        columns += ["authors' code", "neurons", "holds"]
        caption += f" {known[0].source}. {WHY[0].upper()}{WHY[1:]}."
        by_name = {each.what.removeprefix(f"{label}: "): each for each in known}
        for name, own in cells.items():
            accuracy, neurons = by_name.get(name), by_name.get(f"{name}, neurons")
            both = [each for each in (accuracy, neurons) if each]
            own += [
                f"{accuracy.value:.2f}" if accuracy else "",
                f"{neurons.value:.0f}" if neurons else "",
                ("yes" if all(each.holds for each in both) else "no") if both else "",
            ]
    return study.table(f"Test accuracy in %, {label}", columns, cells, caption=caption)


def percents(name: str, runs: Sequence[pfnm.Outcome]) -> np.ndarray:
    """A row's test accuracy in %, of every seed."""
    return 100 * np.array([run.rows[name].accuracy for run in runs])


def size_of(name: str, runs: Sequence[pfnm.Outcome]) -> str:
    """A row's mean widths over the seeds, with a star where matching ran out of budget."""
    widths = np.mean([run.rows[name].neurons for run in runs], axis=0)
    star = "*" * any(run.rows[name].full for run in runs)
    return ", ".join(f"{width:.0f}" for width in widths) + star


def numbers_table(
    kind: str, outcomes: dict[str, list[pfnm.Outcome]], options: pfnm.Options
) -> study.Sheet:
    """Accuracy of every row against the number of clients."""
    columns = [outcomes[label_of(kind, number)] for number in options.num_clients]
    return study.table(
        f"Test accuracy in % against the number of clients, {kind}",
        ("model", *map(str, options.num_clients)),
        {name: [percents(name, runs) for runs in columns] for name in columns[0][0].rows},
        caption=f"{len(columns[0])} seed(s).",
    )


def rounds_table(label: str, runs: Sequence[pfnm.Outcome]) -> study.Sheet:
    """Accuracy, size and communication after every round."""
    curves = {name: [run.curves[name] for run in runs] for name in runs[0].curves}
    cells: dict[str, list[str]] = {}
    for r in range(len(runs[0].curves["FedAvg"].accuracy)):
        cells[str(r + 1)] = []
        for each in curves.values():
            accuracy = 100 * np.array([curve.accuracy[r] for curve in each])
            neurons = np.mean([curve.neurons[r] for curve in each], axis=0)
            megabytes = np.mean([curve.megabytes[r] for curve in each])
            sizes = ", ".join(f"{width:.0f}" for width in neurons)
            cells[str(r + 1)] += [study.spread(accuracy, 2), sizes, f"{megabytes:.1f}"]
    columns = [column for name in curves for column in (name, "neurons", "MB")]
    caption = f"Test accuracy in %, {len(runs)} seed(s); MB sent and received by all clients."
    return study.table(
        f"Communication rounds, {label}", ("round", *columns), cells, caption=caption
    )


def plain(outcomes: dict[str, list[pfnm.Outcome]]) -> dict[str, Any]:
    """All numbers of all runs, for results.json."""
    return {
        label: [
            {
                "local_accuracy": run.local,
                "train_seconds": run.train_seconds,
                "match_seconds": run.match_seconds,
                "models": {name: row._asdict() for name, row in run.rows.items()},
                "rounds": {name: curve._asdict() for name, curve in run.curves.items()},
            }
            for run in runs
        ]
        for label, runs in outcomes.items()
    }


def pictures(
    outcomes: dict[str, list[pfnm.Outcome]], dataset: Dataset, options: pfnm.Options
) -> Iterator[tuple[str, Any]]:
    """Accuracy against size, communication and J, matched filters, and who shares what."""
    for kind in options.partitions:
        by_number = [outcomes[label_of(kind, number)] for number in options.num_clients]
        runs = by_number[0]
        # Plain averages are so far below that all others would fall together.
        main, *others = (
            pfnm.variants(len(options.hidden))[0].name,
            next(name for name in runs[0].rows if name.startswith("k-means")),
            *("matched average", "uniform ensemble", "class-weighted ensemble"),
            *(pfnm.rounds_name(name, options.num_rounds) for name in runs[0].curves),
        )
        yield f"size_{kind}.png", _sizes(runs, others, len(options.hidden))
        if options.num_rounds:
            paths = {
                name: (
                    np.stack([run.curves[name].megabytes for run in runs], axis=1),
                    100 * np.stack([run.curves[name].accuracy for run in runs], axis=1),
                )
                for name in runs[0].curves
            }
            yield f"rounds_{kind}.png", plots.tradeoff(paths, x="MB sent and received", y=ACCURACY)
        if len(by_number) > 1:
            values = {
                name: [percents(name, each) for each in by_number] for name in (main, *others)
            }
            figure = plots.series(options.num_clients, values, x="clients", y=ACCURACY)
            yield f"clients_{kind}.png", figure
        matched = runs[0].matched
        order = np.cumsum(matched.counts[0] > 0) - 1
        figure = plots.sharing(order[matched.assignments[0]], int(matched.num_neurons[0]))
        yield f"sharing_{kind}.png", figure
        yield f"filters_{kind}.png", filters(runs[0], dataset)


def _sizes(runs: Sequence[pfnm.Outcome], others: Sequence[str], num_hidden: int) -> Any:
    """Accuracy against hidden neurons: PFNM from few to many, and other rows."""
    settings = (
        pfnm.sweep() if num_hidden == 1 else pfnm.variants(num_hidden)[: len(pfnm.LAST_SIGMAS)]
    )
    sigma = "sigma" if num_hidden == 1 else "1/sigma"
    points = {f"PFNM {sigma}, 1, 1": [each.name for each in settings]}
    points |= {name: [name] for name in others}
    return plots.tradeoff(
        {name: stages(names, runs) for name, names in points.items()},
        x="hidden neurons",
        y=ACCURACY,
    )


def stages(names: Sequence[str], runs: Sequence[pfnm.Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Hidden neurons and test accuracy in % of some rows, [rows, runs] each."""
    neurons = [[sum(run.rows[name].neurons) for run in runs] for name in names]
    return np.array(neurons), np.array([percents(name, runs) for name in names])


def filters(run: pfnm.Outcome, dataset: Dataset, num_shown: int = 8) -> Any:
    """First-layer weights of shared neurons, from the most to the least shared ones."""
    shape = dataset.train["x"].shape[1:]
    shape = shape[:2] if shape[-1] == 1 else shape
    counts = run.matched.counts[0]
    shared = np.argsort(-counts, kind="stable")[: (counts > 1).sum()]
    # With nothing shared, the first neurons as they are.
    neurons = shared if shared.size else np.flatnonzero(counts)
    neurons = neurons[np.unique(np.linspace(0, len(neurons) - 1, num_shown).astype(int))]
    slots = run.matched.assignments[0]
    kernels = np.asarray(run.params["dense_0"]["kernel"])
    images = np.full((len(neurons), len(slots) + 1, *shape), np.nan)
    for i, neuron in enumerate(neurons):
        images[i, 0] = run.matched.params[0][0][:, neuron].reshape(shape)
        for j, row in zip(*np.nonzero(slots == neuron), strict=True):
            images[i, j + 1] = kernels[j, :, row].reshape(shape)
    return plots.image_rows(
        images,
        row_names=[f"{counts[neuron]} clients" for neuron in neurons],
        column_names=["global", *(f"client {j}" for j in range(len(slots)))],
    )
