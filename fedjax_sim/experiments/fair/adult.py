"""Adult census: which of the published AFL numbers are AFL? q-FFL, TERM and AFL side by side.

The settings of the public code of the q-FFL paper: the two clients of agnostic learning on Adult
(people with a doctorate, and the rest), full batches, 600 rounds, step sizes of 0.1. Its AFL
baseline, run as its README says, computes lambda but never uses it; the row "AFL, λ ignored" is
that run, "AFL" is agnostic federated learning, and they differ by four points of accuracy on the
large client.

References:
    Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, table
    of the comparison with AFL, and its code. Mohri, Sivek, Suresh, "Agnostic Federated Learning",
    ICML 2019.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optax

from fedjax_sim import algorithms
from fedjax_sim.analysis import plots
from fedjax_sim.base import Algorithm, Array
from fedjax_sim.data import Batching
from fedjax_sim.experiments import study, tasks
from fedjax_sim.experiments.tasks import Row, Task, counted, kinds

STEP_SIZE = 0.1
RERUN = "fair_flearn's code, rerun by the authors of this package, 3 seeds"
PUBLISHED = "reading notes of the q-FFL paper, not checked against it"
KNOWN = {
    "AFL, λ ignored": (81.93, 72.93, 82.03),
    "AFL": (78.14, 72.74, 78.20),
    "q-FFL, q = 0": (82.60, 74.77, 82.69),
    "q-FFL, q = 5": (81.80, 74.40, 81.88),
    "q-FFL, q = 10": (81.44, 74.03, 81.53),
}
"""row -> test accuracy in % of all, doctorate, non-doctorate, from RERUN."""


@dataclasses.dataclass(frozen=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce fair-adult`."""

    output: Path = Path("runs/fair-adult")
    folder: Path | None = None
    """Folder with UCI's own adult.data and adult.test; by default the shipped data is used."""
    num_seeds: int = 10
    """Runs of every row, each with its own initial model (>= 2)."""
    quick: bool = False
    """60 rounds instead of 600; its numbers are not those of the table."""

    RANGES: ClassVar = {"num_seeds": (2,)}


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    study.use_all_cores()
    task = tasks.adult(options.folder)
    report = study.Study("Adult census, fair methods", options)
    num_rounds = 60 if options.quick else 600
    rows = {}
    for name, make in recipes(task).items():
        result = study.sweep(
            name,
            make,
            task.init_params,
            kinds(task.train),
            seeds=options.seeds,
            axes={"learning_rate": [STEP_SIZE]},
            num_rounds=num_rounds,
        )
        # A λ that is never used is no mixture that was trained on.
        rows[name] = tasks.swept(task, result, mixture=np.nan if "ignored" in name else None)
    losses = {name: (*row.loss.T, row.worst_loss) for name, row in rows.items()}
    columns = ("method", *task.domains, "worst")
    report.publish(
        [
            tasks.accuracies(rows, task.domains),
            study.table("Training loss in nats", columns, losses, digits=3),
        ],
        _expected(rows, task),
        _pictures(rows, task),
        arrays={"rows.npz": tasks.arrays(rows)},
        num_rounds=num_rounds,
        rows=tasks.plain_rows(rows, task),
    )


def recipes(task: Task) -> dict[str, Callable[[Array], Algorithm]]:
    """name -> make(learning_rate): full batches, one step a round."""
    model = task.model
    shares = np.asarray(task.train.sizes) / task.train.num_examples
    steps: dict[str, Any] = {
        "batching": Batching(None, num_steps=1, shuffle="none"),
        "loss": counted,
    }

    def afl(**options: Any) -> Callable[[Array], Algorithm]:
        options = {"ascent": algorithms.Ascent(STEP_SIZE), "loss": counted, **options}
        return lambda learning_rate: algorithms.agnostic(
            model, optimizer=optax.sgd(learning_rate), **options
        )

    def fixed(mixture: Any) -> Callable[[Array], Algorithm]:
        return afl(ascent=algorithms.Ascent(0.0, initial=mixture), output="last")

    def q_ffl(q: float) -> Callable[[Array], Algorithm]:
        return lambda learning_rate: algorithms.q_fedavg(
            model, q=q, client_learning_rate=learning_rate, **steps
        )

    def term(t: float) -> Callable[[Array], Algorithm]:
        return lambda learning_rate: algorithms.term(
            model, t=t, client_optimizer=optax.sgd(learning_rate), **steps
        )

    return {
        "gradient descent": fixed(shares),
        "gradient descent, equal weights": fixed(np.full(2, 0.5)),
        "AFL, λ ignored": lambda learning_rate: algorithms.fair_flearn_afl(
            model, learning_rate=learning_rate, mixture_step_size=STEP_SIZE, loss=counted
        ),
        "AFL": afl(),
        "AFL, exponentiated": afl(ascent=algorithms.Ascent(STEP_SIZE, "exponentiated")),
        "AFL, optimistic": afl(optimistic=True),
        **{f"q-FFL, q = {q}": q_ffl(q) for q in (0, 1, 5, 10)},
        **{f"TERM, t = {t}": term(t) for t in (1, 10)},
        "FedMGDA+": lambda learning_rate: algorithms.fedmgda(
            model,
            client_optimizer=optax.sgd(learning_rate),
            server_learning_rate=learning_rate,
            **steps,
        ),
    }


def _expected(rows: dict[str, Row], task: Task) -> list[study.Expected]:
    why = "1.2 points are two of the 181 doctorates; 0.3 where there are thousands of people"
    found = []
    for name, values in KNOWN.items():
        if name in rows:
            ours = (rows[name].overall, *rows[name].accuracy.T)
            for column, value, each in zip(("all", *task.domains), values, ours, strict=True):
                tolerance = 1.2 if column == tasks.DOCTORATE else 0.3
                found += study.expect(
                    RERUN, why, (f"{name}: {column}", value, 100 * each, tolerance)
                )
    best = {
        prefix: max(100 * float(r.worst.mean()) for n, r in rows.items() if n.startswith(prefix))
        for prefix in ("q-FFL", "AFL, λ")
    }
    return found + study.expect(
        PUBLISHED,
        why,
        ("q-FFL, best q: worst client", 74.4, best["q-FFL"], 1.2),
        ("AFL, λ ignored: worst client", 73.0, best["AFL, λ"], 1.2),
    )


def _pictures(rows: dict[str, Row], task: Task) -> Iterator[tuple[str, Any]]:
    shown = ("gradient descent", "AFL, λ ignored", "AFL", "q-FFL, q = 5", "TERM, t = 10")
    losses = {name: rows[name].loss for name in shown if name in rows}
    yield "loss.png", plots.grouped_bars(losses, task.domains, label="training loss in nats")
