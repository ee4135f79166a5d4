import dataclasses
import inspect
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim import models
from fedjax_sim.cli.train_options import (
    DEFAULTS,
    ClientFileOptions,
    DataOptions,
    TableOptions,
    TrainOptions,
    dump_toml,
    flat,
    has_clients,
    load_toml,
    replaced,
    resolve,
)
from fedjax_sim.data import datasets
from fedjax_sim.data.datasets import from_table

GROUPS = tuple(typing.get_type_hints(TrainOptions).values())


def choices(option: str) -> list[str]:
    """The values that a choice allows."""
    hints: dict[str, Any] = {}
    for group in GROUPS:
        hints |= typing.get_type_hints(group)
    return sorted(literals(hints[option]))


def loaded(tmp_path: Path, text: str) -> TrainOptions:
    path = tmp_path / "options.toml"
    path.write_text(text, encoding="utf-8")
    return load_toml(path)


def test_the_help_names_what_there_is() -> None:
    assert choices("model") == sorted(models.MODELS)
    assert TrainOptions().data.dataset in datasets.DATASETS


def test_groups_share_no_option_and_every_default_belongs_to_a_choice() -> None:
    fields = [f.name for group in GROUPS for f in dataclasses.fields(group)]
    assert len(fields) == len(set(fields)) == len(flat(TrainOptions()))
    for name, (choice, defaults) in DEFAULTS.items():
        assert flat(TrainOptions())[name] is None
        assert defaults and set(defaults) <= set(choices(choice))


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


def literals(kind: Any) -> set[str]:
    if typing.get_origin(kind) is typing.Literal:
        return {*typing.get_args(kind)}
    return {each for part in typing.get_args(kind) for each in literals(part)}


@pytest.mark.parametrize("algorithm", choices("algorithm"))
def test_defaults_depend_on_what_was_chosen(algorithm: str) -> None:
    values = flat(resolve(replaced(TrainOptions(), {"algorithm": algorithm})))
    for name, (choice, defaults) in DEFAULTS.items():
        assert values[name] == defaults.get(values[choice])
    assert values["client_learning_rate"] > 0
    assert resolve(resolve(TrainOptions())) == resolve(TrainOptions())


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_option_that_would_do_nothing_is_refused(name: str) -> None:
    choice, defaults = DEFAULTS[name]
    for value in choices(choice):
        options = replaced(TrainOptions(), {choice: value, name: 1})
        if value in defaults:
            assert flat(resolve(options))[name] == 1
        else:
            with pytest.raises(
                ValueError, match=f"--{name.replace('_', '-')} belongs to --{choice}"
            ):
                resolve(options)


def test_local_steps_replace_epochs() -> None:
    steps = resolve(replaced(TrainOptions(), {"local_steps": 5})).training
    assert (steps.epochs, steps.local_steps) == (None, 5)
    with pytest.raises(ValueError, match="--epochs or --local-steps, not both"):
        resolve(replaced(TrainOptions(), {"local_steps": 5, "epochs": 2.0}))


# TOML


def test_toml_sets_options(tmp_path: Path) -> None:
    text = 'rounds = 7\nalpha = 1\nhidden = [3, 4]\ncohort_size = "all"\noverwrite = true\n'
    options = loaded(tmp_path, text + 'folder = "~/data"\n')
    assert options == replaced(
        TrainOptions(),
        {
            "rounds": 7,
            "alpha": 1.0,
            "hidden": (3, 4),
            "cohort_size": "all",
            "overwrite": True,
            "folder": Path("~/data"),
        },
    )
    assert type(options.data.alpha) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alhpa = 0.3", "unknown option 'alhpa'. Did you mean 'alpha'"),
        ("num-clients = 3", "unknown option 'num-clients'. Did you mean 'num_clients'"),
        ("qqqqqqqq = 3", "unknown option 'qqqqqqqq'.$"),
        ("debug = true", "unknown option 'debug'"),
        ('rounds = "ten"', "rounds must be an integer, got 'ten'"),
        ("rounds = 1.0", "rounds must be an integer, got 1.0"),
        ("rounds = true", "rounds must be an integer, got True"),
        ("alpha = true", "alpha must be a number, got True"),
        ('alpha = "0.3"', "alpha must be a number, got '0.3'"),
        ("hidden = [3, 0.5]", r"hidden must be a list \[...\], each an integer, got \[3, 0.5\]"),
        ("hidden = 3", "hidden must be a list"),
        ('cohort_size = "most"', """cohort_size must be an integer or "all", got 'most'"""),
        ('algorithm = "fedagv"', "algorithm must be \"fedavg\" or .*, got 'fedagv'"),
        ("overwrite = 1", "overwrite must be true or false, got 1"),
        ("dataset = 3", "dataset must be text in quotes, got 3"),
        ("folder = 3", "folder must be text in quotes, got 3"),
        ("[data]\nalpha = 1.0", r"has a table \[data\]: write all options at the top"),
        ("rounds = 0", "rounds must be >= 1, got 0"),
        ("rounds = 4294967296", "rounds must be <= 2147483647, got 4294967296"),
        ("hidden = [3, 0]", "hidden must be >= 1, got 0"),
        ("epochs = nan", r"epochs must lie in \(0, 1e\+06\], got nan"),
        ("epochs = 1e-320", r"epochs must lie in .* got 1e-320, which is 0 in float32"),
        ("alpha = 1" + 400 * "0", r"alpha must be <= 1000000000, got 100.*00"),
        ('folder = "a\\u0000b"', r"folder must be text in quotes, got 'a\\x00b'"),
        ("'\\x1b' = 3", r"unknown option"),
        ("rounds = x", "not a TOML file: .*line 1"),
        ("rounds = 3\nrounds = 4", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"options.toml.*{message}"):
        loaded(tmp_path, text)


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*nowhere\.toml"):
        load_toml(tmp_path / "nowhere.toml")
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"picture\.toml is not a TOML file"):
        load_toml(tmp_path / "picture.toml")


texts = st.text(st.characters(codec="utf-8"))
numbers = st.floats(1e-30, 1e9)


@settings(max_examples=100)
@given(
    dataset=texts,
    group=texts,
    alpha=numbers,
    rounds=st.integers(1, 2**31 - 1),
    hidden=st.none() | st.lists(st.integers(1, 9)).map(tuple),
    cohort_size=st.integers(1, 9) | st.just("all"),
)
def test_every_configuration_survives_toml(
    tmp_path_factory: pytest.TempPathFactory, **values: Any
) -> None:
    options = replaced(TrainOptions(), values)
    text = dump_toml(options)
    tomllib.loads(text)
    assert loaded(tmp_path_factory.mktemp("toml"), text) == options


def test_toml_leaves_out_what_belongs_to_one_run() -> None:
    own = {"output": Path("x"), "overwrite": True, "config": Path("y"), "debug": True}
    assert dump_toml(replaced(TrainOptions(), own)) == dump_toml(TrainOptions())
