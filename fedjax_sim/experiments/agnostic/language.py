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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import optax

from fedjax_sim import algorithms, engine, metrics, models
from fedjax_sim.analysis import plots
from fedjax_sim.data import FederatedData, datasets, federate, partition
from fedjax_sim.experiments import study

DOMAINS = ("conversation", "document")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(study.StudyOptions):
    """Options of `fedjax-sim reproduce agnostic-language`."""

    conversation: tuple[Path, ...]
    """Text of the first domain: files in UTF-8, folders or zip files, such as NLTK's
    switchboard.zip nps_chat.zip."""
    document: tuple[Path, ...]
    """Text of the second domain, such as NLTK's treebank.zip brown.zip."""
    output: Path = Path("runs/agnostic-language")
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

    QUICK: ClassVar = {"vocabulary_size": 2000, "hidden": 64, "num_rounds": 600}
    RANGES: ClassVar = {"num_rounds": (1,)}


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
    """Run the experiment and write its folder."""
    options = options.checked()
    text = datasets.text_domains(
        dict(zip(DOMAINS, (options.conversation, options.document), strict=True)),
        vocabulary_size=options.vocabulary_size,
        sequence_length=options.sequence_length,
        seed=options.seed,
    )
    train, test = (
        federate(examples, partition.by_group(groups["domain"], names=DOMAINS), ignore_label=-1)
        for examples, groups in ((text.train, text.train_groups), (text.test, text.test_groups))
    )
    report = study.Study("Language model, two domains, agnostic learning", options)
    sizes = np.asarray(train.sizes)
    amounts = zip(DOMAINS, sizes * options.sequence_length, strict=True)
    report.say("Training words: " + ", ".join(f"{name} {n:,}" for name, n in amounts))
    rows: dict[str, Row] = {}
    for name, mixture in {
        f"{DOMAINS[0]} only": np.eye(2)[0],
        f"{DOMAINS[1]} only": np.eye(2)[1],
        "data-weighted": sizes / sizes.sum(),
        "agnostic": None,
    }.items():
        rows[name] = _train(name, mixture, len(text.class_names), train, test, options)
        report.keep(rows=_plain(rows))
    gain = 1 - rows["agnostic"].perplexity.max() / rows["data-weighted"].perplexity.max()
    cells = {
        name: (*row.perplexity, row.perplexity.max(), f"{row.mixture[0]:.3f}")
        for name, row in rows.items()
    }
    sheet = study.table(
        "Perplexity per word of the test text",
        ("trained on", *DOMAINS, "worst", "λ of conversation"),
        cells,
        caption="all rows with equally many steps; λ is the mean over the steps",
    )
    report.publish(
        [sheet],
        pictures=_pictures(rows),
        arrays={"rows.npz": {name: row._asdict() for name, row in rows.items()}},
        note=f"Agnostic learning changes the worse domain's perplexity by {-100 * gain:+.1f} %.",
        train_sequences=dict(zip(DOMAINS, sizes, strict=True)),
        rows=_plain(rows),
        worst_perplexity_lowered_by=gain,
    )


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
    ascent = algorithms.Ascent(options.mixture_step_size)
    if mixture is not None:
        ascent = algorithms.Ascent(0.0, initial=mixture)
    algorithm = algorithms.agnostic(
        model,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(options.learning_rate)),
        batch_size=options.batch_size,
        output="last",
        ascent=ascent,
    )
    result = study.run(
        name,
        algorithm,
        lambda key: model.init(key, train.examples["x"][:1]),
        train,
        key=jax.random.key(options.seed),
        num_rounds=options.num_rounds,
        evaluate=engine.evaluator(model, {"loss": metrics.cross_entropy}, block_size=64),
        eval_data={"test": test},
        eval_every=-(-options.num_rounds // 10),
    )
    evaluations = result.evaluations
    perplexities = np.exp(np.asarray(evaluations.values["test"]["loss"].value))
    return Row(evaluations.rounds, perplexities, result.info.server["mixture"], result.seconds)


def _pictures(rows: dict[str, Row]) -> Iterator[tuple[str, Any]]:
    both = {name: rows[name] for name in ("data-weighted", "agnostic")}
    own = np.array([rows[f"{name} only"].perplexity[k] for k, name in enumerate(DOMAINS)])
    bars = plots.grouped_bars(
        {name: row.perplexity[None] for name, row in both.items()},
        DOMAINS,
        label="test perplexity",
        marks={"a model of its own": own},
    )
    yield "perplexity.png", bars
    curves = {
        f"{name}, {domain}": row.perplexities[1:, [k]]
        for name, row in both.items()
        for k, domain in enumerate(DOMAINS)
    }
    steps = rows["agnostic"].steps[1:]
    yield "curves.png", plots.series(steps, curves, x="step", y="test perplexity")


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
