import contextlib
import io
import json
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim import models
from fedjax_sim.analysis import runfolder
from fedjax_sim.analysis.runfolder import RunFolder, check_output, load_params, plain, versions
from fedjax_sim.base import Mean, Params, Status


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def strict(text: str) -> Any:
    """JSON without the NaN and Infinity that Python's reader takes but others refuse."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# The folder


def test_config_says_what_was_run_and_where(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b", {"rounds": 3, "output": tmp_path})
    run.save_text("notes.txt", "x")
    config = strict((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["options"] == {"rounds": 3, "output": str(tmp_path)}
    assert config["versions"] == versions()
    assert {"fedjax_sim", "jax", "jaxlib", "numpy", "flax", "optax", "python"} <= versions().keys()
    assert config["versions"]["jax"] == jax.__version__
    assert config["device"]["platform"] == jax.local_devices()[0].platform
    assert config["files"] == ["config.json", "notes.txt"]
    assert config["date"][:2] == "20" and config["date"][-6] in "+-"


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    RunFolder(tmp_path, {"seed": 0}).save_text("notes.txt", "first")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        FileExistsError, match=r"already holds files.*another --output.*--overwrite"
    ):
        RunFolder(tmp_path, {"seed": 1})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    RunFolder(tmp_path, {})
    assert names(tmp_path) == {"config.json"}


def test_overwrite_replaces_the_files_of_the_run_and_nothing_else(tmp_path: Path) -> None:
    old = RunFolder(tmp_path, {"seed": 0})
    old.save_text("results.json", "old")
    old.log({"round": 1})
    (tmp_path / "mine.png").write_text("kept")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "results.json").write_text("kept")
    RunFolder(tmp_path, {"seed": 1}, overwrite=True)
    assert names(tmp_path) == {"config.json", "mine.png", "sub"}
    assert strict((tmp_path / "config.json").read_text())["options"] == {"seed": 1}
    assert names(tmp_path / "sub") == {"results.json"}


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "{",
        "[]",
        '"fedjax_sim"',
        "{}",
        '{"files": ["precious.txt"]}',
        '{"created_by": "another", "files": ["precious.txt"]}',
        '{"created_by": "fedjax_sim", "files": "precious.txt"}',
    ],
)
def test_overwrite_refuses_a_folder_that_no_run_wrote(tmp_path: Path, config: str | None) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = names(tmp_path)
    with pytest.raises(FileExistsError, match=r"no config\.json of an earlier run"):
        RunFolder(tmp_path, {}, overwrite=True)
    assert names(tmp_path) == before


def test_a_tampered_list_of_files_leads_nowhere_else(tmp_path: Path) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("kept")
    folder = tmp_path / "run"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "deep.txt").write_text("kept")
    files = ["../precious.txt", str(outside), "sub/deep.txt", "", ".", "..", 3, "gone.txt"]
    config = {"created_by": "fedjax_sim", "files": files}
    (folder / "config.json").write_text(json.dumps(config))
    RunFolder(folder, {}, overwrite=True)
    assert outside.exists() and (folder / "sub" / "deep.txt").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("kept")
    for overwrite in (False, True):
        with pytest.raises(NotADirectoryError, match=r"is a file\. Choose another --output"):
            check_output(tmp_path / "taken", overwrite=overwrite)


def test_check_output_makes_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folder")
    assert names(tmp_path) == set()


# Files


def test_a_write_that_fails_keeps_the_old_file_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {})
    run.save_json("results.json", {"accuracy": 0.5})
    with pytest.raises(RuntimeError), run.writing("results.json") as path:
        path.write_text("half")
        raise RuntimeError
    assert strict((tmp_path / "results.json").read_text()) == {"accuracy": 0.5}
    assert names(tmp_path) == {"config.json", "results.json"}


def test_a_killed_write_is_cleaned_up_by_overwrite(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {})
    killed = run.writing("results.json")  # entered, never left
    killed.__enter__().write_text("half")
    assert "results.json" not in names(tmp_path) and len(names(tmp_path)) == 2
    RunFolder(tmp_path, {}, overwrite=True)
    assert names(tmp_path) == {"config.json"}


@pytest.mark.parametrize("name", ["", "..", "../up.json", "sub/in.json", "/tmp/out.json"])
def test_file_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path / "run", {})
    with pytest.raises(ValueError, match="plain file name"):
        run.save_json(name, {})


def test_every_log_line_is_on_disk_at_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {})
    for i in range(3):
        run.log({"round": i, "loss": float("inf") if i else 1.5, "accuracy": np.float32(0.25)})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == i + 1
    assert [strict(line)["loss"] for line in lines] == [1.5, None, None]
    assert strict(lines[0]) == {"round": 0, "loss": 1.5, "accuracy": 0.25}


def test_plain_takes_what_results_are_made_of() -> None:
    value = {
        1: Mean(jnp.array([1.0, jnp.nan]), np.array([2, 0])),
        "status": Status.EMPTY_COHORT,
        "nested": [(True, None), {"x": np.float64("-inf")}, np.bool_(False), np.int64(7)],
        "names": np.array(["a", "b"]),
    }
    assert strict(json.dumps(plain(value), allow_nan=False)) == {
        "1": {"total": [1.0, None], "count": [2, 0]},
        "status": 2,
        "nested": [[True, None], {"x": None}, False, 7],
        "names": ["a", "b"],
    }
    with pytest.raises(TypeError, match="object"):
        plain(object())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(json_values)
def test_plain_only_changes_what_is_not_finite(value: Any) -> None:
    def expected(v: Any) -> Any:
        if isinstance(v, list):
            return [expected(each) for each in v]
        if isinstance(v, dict):
            return {k: expected(each) for k, each in v.items()}
        return None if isinstance(v, float) and not np.isfinite(v) else v

    assert strict(json.dumps(plain(value), allow_nan=False)) == expected(value)


# Arrays and parameters


def test_arrays_are_found_under_their_path(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {})
    tree = {
        "file": np.arange(3),
        "client_names": np.array(["a", "bc"]),
        "rounds": {"loss": jnp.ones((2, 4)), "absent": None},
        "pair": (np.float32(1), np.zeros(0)),
    }
    run.save_arrays("a.npz", tree)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays.keys() == {"file", "client_names", "rounds/loss", "pair/0", "pair/1"}
    assert arrays["client_names"].tolist() == ["a", "bc"]
    assert arrays["rounds/loss"].shape == (2, 4) and arrays["rounds/loss"].dtype == np.float32
    with pytest.raises(ValueError, match="same path"):
        run.save_arrays("b.npz", {"a/b": np.ones(1), "a": {"b": np.zeros(1)}})
    with pytest.raises(ValueError, match="Object arrays"):
        run.save_arrays("b.npz", {"a": np.array([None, 1])})
    assert names(tmp_path) == {"config.json", "a.npz"}


@pytest.fixture
def params(key: jax.Array) -> Params:
    return models.mlp(3, hidden=(4,)).init(key, jnp.zeros((1, 5)))


def test_parameters_come_back_as_they_were(tmp_path: Path, params: Params) -> None:
    tree = {
        "net": params,
        "half": jnp.array([1.5, -2.0], jnp.bfloat16),
        "list": [jnp.int32(3), jnp.zeros((0, 2))],
    }
    RunFolder(tmp_path, {}).save_params(tree)
    like = jax.eval_shape(lambda: tree)
    loaded = load_params(tmp_path / "params.npz", like)
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    for got, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree), strict=True):
        assert isinstance(got, jax.Array) and got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_parameters_of_another_model_are_refused_by_name(tmp_path: Path, params: Params) -> None:
    run = RunFolder(tmp_path, {})
    run.save_params(params)
    path = tmp_path / "params.npz"
    with pytest.raises(ValueError, match=r"lacks \['dense_2'\] and has \[\]"):
        load_params(path, {**params, "dense_2": jnp.zeros(1)})
    with pytest.raises(
        ValueError, match=r"lacks \[\] and has \['dense_1/bias', 'dense_1/kernel'\]"
    ):
        load_params(path, {"dense_0": params["dense_0"]})
    wide = jax.tree.map(lambda x: x, params)
    wide["dense_1"]["kernel"] = jnp.zeros((4, 7))
    with pytest.raises(
        ValueError, match=r"dense_1/kernel .* \(4, 3\), but the model has .* \(4, 7\)"
    ):
        load_params(path, wide)
    wide["dense_1"]["kernel"] = jnp.zeros((4, 3), jnp.int32)
    with pytest.raises(ValueError, match=r"dense_1/kernel .* is float32 .* has int32"):
        load_params(path, wide)


def lying() -> bytes:
    """An .npz whose array says that it has 10^13 numbers."""
    array, file = io.BytesIO(), io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(array, header)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("kernel.npy", array.getvalue())
    return file.getvalue()


def test_a_damaged_file_is_named(tmp_path: Path, params: Params) -> None:
    run = RunFolder(tmp_path, {})
    run.save_params(params)
    path = tmp_path / "params.npz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
    at = whole.index(b"PK\x01\x02")
    method = whole[: at + 10] + b"\x63" + whole[at + 11 :]  # 99: no compression that there is
    locked = whole[: at + 8] + bytes([whole[at + 8] | 1]) + whole[at + 9 :]
    for damaged in (b"", b"hello", whole[:middle], whole[:-30], flipped, method, locked, lying()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read parameters from .*params\.npz"):
            load_params(path, params)
    with pytest.raises(FileNotFoundError, match=r"no parameters at .*nowhere\.npz"):
        load_params(tmp_path / "nowhere.npz", params)


def test_pictures_are_written_in_the_format_of_their_name(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    run = RunFolder(tmp_path, {})
    run.save_figure("a.png", Figure())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert names(tmp_path) == {"config.json", "a.png"}


def test_a_run_is_resumed_among_its_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run in .* to continue"):
        RunFolder(tmp_path, {}, resume=True)
    first = RunFolder(tmp_path, {"rounds": 2})
    for number in (1, 2, 3):
        first.log({"round": number})
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"round": 4, "lo')  # as a killed process leaves it
    first.checkpoints().mkdir()
    (first.checkpoints() / "2").write_text("state")
    second = RunFolder(tmp_path, {"rounds": 3}, resume=True)
    second.edit_log(lambda record: record if record["round"] <= 2 else None)
    second.log({"round": 3, "again": True})
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"round": 1},
        {"round": 2},
        {"round": 3, "again": True},
    ]
    assert (second.checkpoints() / "2").read_text() == "state"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["options"] == {"rounds": 3}
    assert sorted(config["files"]) == ["checkpoints", "config.json", "metrics.jsonl"]
    RunFolder(tmp_path, {}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@contextlib.contextmanager
def no_file_above(num_bytes: int) -> Iterator[None]:
    """A disk that is full, as far as the process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {})
    run.log({"round": 1})
    run.save_arrays("a.npz", {"x": np.zeros(3)})
    before = (tmp_path / "a.npz").read_bytes()
    noise = np.random.default_rng(0).normal(size=1000)
    with no_file_above(600):
        for name, write in (
            ("metrics.jsonl", lambda: run.log({"round": 2, "name": "x" * 900})),
            ("a.npz", lambda: run.save_arrays("a.npz", {"x": noise})),
            ("b.json", lambda: run.save_json("b.json", [0] * 900)),
        ):
            with pytest.raises(OSError, match=rf"{tmp_path}/{name}"):
                write()
    assert names(tmp_path) == {"config.json", "metrics.jsonl", "a.npz"}
    assert (tmp_path / "a.npz").read_bytes() == before
    run.edit_log(lambda record: record)  # the line of which a part was written is no line
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 1}\n'
    run.save_json("b.json", [0] * 900)


def test_a_folder_made_by_another_run_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(runfolder, "check_output", lambda path, overwrite: None)
    exists = Path.exists

    def just_missed(path: Path) -> bool:
        found = exists(path)
        if path == folder:
            folder.mkdir(exist_ok=True)
        return found

    monkeypatch.setattr(Path, "exists", just_missed)
    with pytest.raises(FileExistsError, match="run"):
        RunFolder(folder, {})
