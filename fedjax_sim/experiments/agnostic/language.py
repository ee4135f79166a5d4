"""Language model: conversation and documents, and the perplexity that the rarer one pays.

A word LSTM learns from two clients, conversations and documents: on either alone, on both weighted
by their amount of text, and on both by agnostic federated learning, with equally many steps each.
The model of the average is as good as it gets on the text there is most of; agnostic learning
lowers the perplexity of the worse domain.

References:
    Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, section 5 (language models:
    Cornell movie dialogues and the Penn Treebank).
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console

from fedjax_sim import algorithms, engine, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.analysis.runfolder import RunFolder
from fedjax_sim.data import FederatedData, datasets, federate, partition
from fedjax_sim.experiments import study
from fedjax_sim.experiments.study import Sheet
from fedjax_sim.ops import checks

DOMAINS = ("conversation", "document")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce agnostic-language`."""

    conversation: tuple[Path, ...]
    """Text of the first domain: files in UTF-8, folders or zip files, such as NLTK's
    switchboard.zip nps_chat.zip."""
    document: tuple[Path, ...]
    """Text of the second domain, such as NLTK's treebank.zip brown.zip."""
    output: Path = Path("runs/agnostic-language")
    """Folder for results, arrays and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    vocabulary_size: int = 10_000
    """Words of the vocabulary; all others are one unknown word."""
    hidden: int = 128
    """Width of the embedding and of both LSTM layers."""
    num_rounds: int = 3000
    """Steps of every row."""
    batch_size: int = 16
    """Sequences of each domain in a step."""
    sequence_length: int = 20
    """Words in a sequence."""
    learning_rate: float = 0.002
    """Of Adam, for the model."""
    mixture_step_size: float = 0.005
    """Of the mixture's projected ascent."""
    seed: int = 0
    """Of the initial model, the draw of batches and of test lines."""
    quick: bool = False
    """2,000 words, width 64 and 600 steps: its numbers are not those of the whole."""


class Row(NamedTuple):
    """What one model reached.

    steps: [E], how many steps it had made at each evaluation.
    perplexities: [E, 2] on the test text of both domains.
    path: [R, 2], the mixture before every step.
    seconds: wall time without compilation.
    """

    steps: np.ndarray
    perplexities: np.ndarray
    path: np.ndarray
    seconds: float

    @property
    def perplexity(self) -> np.ndarray:
        """[2] of the last model."""
        return self.perplexities[-1]

    @property
    def mixture(self) -> np.ndarray:
        """[2], the mean over the steps."""
        return self.path.mean(axis=0)


def main(options: Options) -> None:
    """Run the experiment and write its folder.

    Raises:
        FileExistsError: the output folder is taken.
        FileNotFoundError: no such text.
        ValueError: an option is out of range, or text is empty or not UTF-8.
    """
    if options.quick:
        options = dataclasses.replace(options, vocabulary_size=2000, hidden=64, num_rounds=600)
    checks.positive_int("num_rounds", options.num_rounds)
    checks.in_range("seed", options.seed, 0)
    text = datasets.text_domains(
        dict(zip(DOMAINS, (options.conversation, options.document), strict=True)),
        vocabulary_size=options.vocabulary_size,
        sequence_length=options.sequence_length,
        seed=options.seed,
    )
    train, test = (
        federate(examples, partition.by_group(groups["domain"], names=DOMAINS))
        for examples, groups in ((text.train, text.train_groups), (text.test, text.test_groups))
    )
    console = Console()
    folder = RunFolder(options.output, options, overwrite=options.overwrite)
    sizes = np.asarray(train.sizes)
    amounts = zip(DOMAINS, sizes * options.sequence_length, strict=True)
    console.print("Training words: " + ", ".join(f"{name} {n:,}" for name, n in amounts))

    mixtures = {
        f"{DOMAINS[0]} only": np.eye(2)[0],
        f"{DOMAINS[1]} only": np.eye(2)[1],
        "data-weighted": sizes / sizes.sum(),
        "agnostic": None,
    }
    rows: dict[str, Row] = {}
    for name, mixture in mixtures.items():
        rows[name] = _train(name, mixture, len(text.class_names), train, test, options)
        folder.save_json("results.json", {"complete": False, "rows": _plain(rows)})
    gain = 1 - rows["agnostic"].perplexity.max() / rows["data-weighted"].perplexity.max()
    note = f"Agnostic learning changes the worse domain's perplexity by {-100 * gain:+.1f} %."
    study.publish(folder, console, "Language model, two domains", [_table(rows)], note)
    folder.save_json(
        "results.json",
        {
            "complete": True,
            "experiment": "agnostic-language",
            "quick": options.quick,
            "train_sequences": dict(zip(DOMAINS, sizes, strict=True)),
            "rows": _plain(rows),
            "worst_perplexity_lowered_by": gain,
        },
    )
    folder.save_arrays("rows.npz", {name: row._asdict() for name, row in rows.items()})
    both = {name: rows[name] for name in ("data-weighted", "agnostic")}
    own = np.array([rows[f"{name} only"].perplexity[k] for k, name in enumerate(DOMAINS)])
    bars = plots.grouped_bars(
        {name: row.perplexity[None] for name, row in both.items()},
        DOMAINS,
        label="test perplexity",
        marks={"a model of its own": own},
    )
    folder.save_figure("perplexity.png", bars)
    curves = {
        f"{name}, {domain}": row.perplexities[1:, [k]]
        for name, row in both.items()
        for k, domain in enumerate(DOMAINS)
    }
    steps = rows["agnostic"].steps[1:]
    folder.save_figure("curves.png", plots.series(steps, curves, x="step", y="test perplexity"))
    console.print(f"Results, arrays and pictures are in {folder.path}/")


def _train(
    name: str,
    mixture: np.ndarray | None,
    num_words: int,
    train: FederatedData,
    test: FederatedData,
    options: Options,
) -> Row:
    """A fixed mixture is agnostic learning whose mixture stands still."""
    model = models.char_lstm(num_words, embedding=options.hidden, hidden=options.hidden)
    some: dict[str, Any] = {"mixture_step_size": options.mixture_step_size}
    if mixture is not None:
        some = {"mixture_step_size": 0.0, "initial_mixture": mixture}
    algorithm = algorithms.agnostic(
        model,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(options.learning_rate)),
        batch_size=options.batch_size,
        output="last",
        **some,
    )
    init_key, key = jax.random.split(jax.random.key(options.seed))
    evaluate = engine.evaluator(model, {"loss": metrics.cross_entropy}, block_size=64)
    with simulate.progress_bar(name) as show:
        result = simulate.run(
            algorithm,
            model.init(init_key, train.examples["x"][:1]),
            train,
            key=key,
            num_rounds=options.num_rounds,
            evaluate=evaluate,
            eval_data={"test": test},
            eval_every=-(-options.num_rounds // 10),
            progress=show,
        )
    study.stop_if_interrupted(result)
    evaluations = result.evaluations
    perplexities = np.exp(np.asarray(evaluations.values["test"]["loss"].value))
    return Row(evaluations.rounds, perplexities, result.info.server["mixture"], result.seconds)


def _plain(rows: dict[str, Row]) -> dict[str, Any]:
    return {
        name: {
            "test_perplexity": dict(zip(DOMAINS, row.perplexity, strict=True)),
            "worst_perplexity": row.perplexity.max(),
            "mean_lambda": dict(zip(DOMAINS, row.mixture, strict=True)),
            "seconds": row.seconds,
        }
        for name, row in rows.items()
    }


def _table(rows: dict[str, Row]) -> Sheet:
    lines = [
        (
            name,
            *(f"{value:.1f}" for value in (*row.perplexity, row.perplexity.max())),
            f"{row.mixture[0]:.3f}",
        )
        for name, row in rows.items()
    ]
    columns = ("trained on", *DOMAINS, "worst", "λ of conversation")
    return Sheet(
        "Perplexity per word of the test text",
        columns,
        lines,
        "all rows with equally many steps; λ is the mean over the steps",
    )
