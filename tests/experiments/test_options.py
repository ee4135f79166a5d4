import dataclasses
import inspect
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.data import datasets
from fedjax_sim.data.datasets import from_table
from fedjax_sim.experiments import options as options_of
from fedjax_sim.experiments.options import (
    KINDS,
    ClientFileOptions,
    DataOptions,
    Options,
    PlainOptions,
    TableOptions,
    flat,
    from_file,
    from_mapping,
    has_clients,
    resolve,
    to_toml,
)

GROUPS = tuple(typing.get_type_hints(PlainOptions).values())


def resolved(**values: Any) -> Options:
    return resolve(from_mapping(values))


def loaded(tmp_path: Path, text: str) -> Options:
    path = tmp_path / "options.toml"
    path.write_text(text, encoding="utf-8")
    return resolve(from_file(path))


def test_groups_share_no_option() -> None:
    fields = [f.name for group in GROUPS for f in dataclasses.fields(group)]
    assert len(fields) == len(set(fields)) == len(KINDS)
    assert resolved().plain.data.dataset in datasets.DATASETS


def test_the_options_of_a_table_are_those_of_its_reader() -> None:
    ours, readers = typing.get_type_hints(TableOptions), typing.get_type_hints(from_table)
    elsewhere = {"train", "test", "label_column", "group_columns", "seed", "name", "return"}
    assert ours.keys() == readers.keys() - elsewhere
    for name, kind in ours.items():
        assert literals(kind) == literals(readers[name]) - {"auto"}, name  # without it, "auto"


def test_the_options_of_files_with_clients_are_those_of_their_readers() -> None:
    readers = [*datasets.BY_CLIENT.values(), datasets.from_clients, datasets.from_arrays]
    known = {name for reader in readers for name in inspect.signature(reader).parameters}
    ours = typing.get_type_hints(ClientFileOptions)
    assert ours.keys() < known
    help_text = inspect.getdoc(DataOptions) or ""
    assert all(f"{kind}:" in help_text and has_clients(f"{kind}:x") for kind in datasets.BY_CLIENT)
    assert not has_clients("tfds:x") and not any(map(has_clients, datasets.DATASETS))
    assert not has_clients("mine.py:data")


def literals(kind: Any) -> set[str]:
    if typing.get_origin(kind) is typing.Literal:
        return {*typing.get_args(kind)}
    return {each for part in typing.get_args(kind) for each in literals(part)}


def test_groups_are_the_partition_where_they_are_named_or_natural() -> None:
    def partition(**values: Any) -> tuple[str, str | None]:
        options = resolved(**values)
        return flat(options)["partition"], options.plain.data.group

    assert partition() == ("dirichlet", None)
    assert partition(dataset="adult", group="race") == ("by_group", "race")
    assert partition(dataset="leaf:there") == ("by_group", "client")
    assert partition(dataset="shakespeare", partition="by_group") == ("by_group", "client")
    assert partition(dataset="leaf:there", partition="iid") == ("iid", None)
    with pytest.raises(ValueError, match="--group belongs to --partition by_group, but partition"):
        partition(dataset="adult", group="race", partition="iid")


def test_a_cohort_is_no_larger_than_the_population_unless_asked_for() -> None:
    cohort = "algorithm.sampler.cohort_size"
    assert flat(resolve(num_clients=4))[cohort] == 4
    assert flat(resolve(num_clients=40))[cohort] == 10
    assert flat(resolve(from_mapping({"cohort_size": 10}), num_clients=4))[cohort] == 10
    drfa = {"algorithm": "drfa", "num_steps": 2}
    assert flat(resolve(from_mapping(drfa), num_clients=4))["algorithm.cohort_size"] == 4


# TOML


def test_toml_sets_options(tmp_path: Path) -> None:
    text = (
        'rounds = 7\nalpha = 1\nhidden = [3, 4]\nsampler = "everyone"\noverwrite = true\n'
        'folder = "~/data"\naggregator = "krum"\nnum_byzantine = 2\n'
        '[algorithm.client_optimizer]\npart = "adam"\nlearning_rate = 0.01\n'
    )
    options = loaded(tmp_path, text)
    found = flat(options)
    wanted = {
        "rounds": 7,
        "partition.alpha": 1,
        "model.hidden": (3, 4),
        "algorithm.sampler": "everyone",
        "overwrite": True,
        "folder": Path("~/data"),
        "algorithm.aggregator.num_byzantine": 2,
        "algorithm.client_optimizer": "adam",
        "algorithm.client_optimizer.learning_rate": 0.01,
    }
    assert wanted.items() <= found.items()
    assert "algorithm.sampler.cohort_size" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alhpa = 0.3", "unknown option .*alhpa'. Did you mean .*alpha'"),
        ("num-clients = 3", "unknown option .*num-clients'. Did you mean .*num_clients'"),
        ("qqqqqqqq = 3", "unknown option .*qqqqqqqq'.$"),
        ("debug = true", "debug is an option of the command line alone"),
        ('rounds = "ten"', "rounds must be an integer, got 'ten'"),
        ("rounds = 1.0", "rounds must be an integer, got 1.0"),
        ("rounds = true", "rounds must be an integer, got True"),
        ("alpha = true", "alpha must be a number, got True"),
        ('alpha = "a third"', "alpha must be a number, got 'a third'"),
        ("num_clients = 0.5", "num_clients must be an integer, got 0.5"),
        ("hidden = [3, true]", "hidden must be an integer, got True"),
        ('width = "most"', """width must be an integer or "auto", got 'most'"""),
        ('algorithm = "fedagv"', "algorithm: there is no algorithm 'fedagv'. Did you mean 'fedavg"),
        ("overwrite = 1", "overwrite must be true or false, got 1"),
        ("dataset = 3", "dataset must be text in quotes, got 3"),
        ("folder = 3", "folder must be text in quotes, got 3"),
        ("[partition]\nalhpa = 1.0", "unknown option .*alhpa'. Did you mean .*alpha'"),
        ("[aggregator]\nnum_byzantine = 1", "aggregator must be an aggregator or none: say which"),
        ("rounds = 0", "rounds must be >= 1, got 0"),
        ("rounds = 4294967296", "rounds must be <= 2147483647, got 4294967296"),
        ('folder = "a\\u0000b"', r"folder must be text in quotes, got 'a\\x00b'"),
        ("'\\x1b' = 3", r"unknown option"),
        ("rounds = x", "not a TOML file: .*line 1"),
        ("rounds = 3\nrounds = 4", "not a TOML file"),
        ("mu = 0.1", r"mu belongs to what is not chosen \(fednova, fedprox, moon, prox\)"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"options.toml.*{message}"):
        loaded(tmp_path, text)


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*nowhere\.toml"):
        from_file(tmp_path / "nowhere.toml")
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"picture\.toml is not a TOML file"):
        from_file(tmp_path / "picture.toml")


texts = st.text(st.characters(codec="utf-8")).filter(
    lambda text: not options_of.is_table(text) and not has_clients(text)
)
numbers = st.floats(1e-30, 1e9)


@settings(max_examples=60)
@given(
    dataset=texts,
    alpha=numbers,
    rounds=st.integers(1, 2**31 - 1),
    hidden=st.lists(st.integers(1, 9), min_size=1).map(tuple),
    cohort_size=st.integers(1, 9),
    metrics=st.none() | st.lists(texts).map(tuple),
    aggregator=st.sampled_from(["mean", "nnm(krum(num_byzantine=1), num_byzantine=1)"]),
    batch_size=st.none() | st.integers(1, 99),
    activation=st.sampled_from(["relu", "gelu"]),
)
def test_every_configuration_survives_toml(
    tmp_path_factory: pytest.TempPathFactory, **values: Any
) -> None:
    options = resolved(**values)
    text = to_toml(options)
    tomllib.loads(text)
    again = loaded(tmp_path_factory.mktemp("toml"), text)
    assert again.plain == options.plain and again.parts == options.parts


def test_toml_leaves_out_what_belongs_to_one_run() -> None:
    own = {"output": "x", "overwrite": True, "config": "y", "debug": True}
    assert to_toml(resolved(**own)) == to_toml(resolved())


def test_a_part_that_is_finished_has_no_text() -> None:
    with pytest.raises(ValueError, match="model is a Model, which has no text"):
        to_toml(resolved(model=fs.models.mlp(10)))
