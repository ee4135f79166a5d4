"""Who may import whom, and what may be imported when; read from the source with `ast`."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedjax_sim
from fedjax_sim.experiments import EXPERIMENTS

PACKAGE = Path(fedjax_sim.__file__).parent

# The rooms of the house, from the bottom up: each is a file or a folder of the package. A room
# imports rooms of lower tiers only, so two rooms of one tier never meet.
TIERS = [
    {"base"},
    {"ops"},
    {"metrics", "data", "privacy"},
    {"models", "clients", "uplink", "servers", "aggregators", "attacks", "matching"},
    {"engine"},
    {"algorithms", "simulate"},
    {"parts", "analysis"},
    {"experiments"},
    {"cli"},
    {"__init__", "__main__"},
]
TIER = {room: tier for tier, rooms in enumerate(TIERS) for room in rooms}
# The engine never names a concrete part: parts arrive as values.
ONLY = {"engine": {"base", "ops", "data"}}
# Slow to import or needed by few: imported inside the function that uses them.
HEAVY = {
    *(
        "array_record",
        "dp_accounting",
        "flax",
        "h5py",
        "jinja2",
        "matplotlib",
        "msgpack",
        "orbax",
        "PIL",
    ),
    *("mlflow", "pyarrow", "scipy", "sqlite3", "tensorboard", "tensorflow_datasets", "wandb"),
}


def sources() -> dict[str, Path]:
    """Every file of the package by dotted name, `__init__` for the package itself."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()
        names[".".join(parts)] = path
    return names


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute dotted names that a module imports anywhere; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The package writes absolute imports only, so that this test can read them.
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: function bodies and TYPE_CHECKING blocks left out."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def violations(module: str, source: str) -> list[str]:
    """Every way in which the source of `module` breaks the rules."""
    room = module.split(".")[0]
    if room not in TIER:
        return [f"{module} has no tier: give {room} one in TIERS"]
    tree = ast.parse(source)
    found = []
    for name in imports(tree):
        root, *rest = name.split(".")
        if not root:
            found.append(f"{module} imports relatively")
        elif root == "fedjax_sim" and rest != ["__version__"]:
            target = rest[0] if rest and rest[0] in TIER else "__init__"
            allowed = target in ONLY.get(room, TIER) and TIER[target] < TIER[room]
            if target != room and not allowed:
                found.append(f"{module} imports {name}")
    for name in top_level_imports(tree):
        if name.split(".")[0] in HEAVY:
            found.append(f"{module} imports {name} at module level")
    return found


def experiments_imported(module: str, source: str) -> list[str]:
    """The experiments that `module` imports: what they share stands in modules that are none."""
    named = [f"{name}." for name in imports(ast.parse(source))]
    return [
        experiment
        for experiment in EXPERIMENTS.values()
        if experiment != f"fedjax_sim.{module}"
        and any(name.startswith(f"{experiment}.") for name in named)
    ]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes that a cycle keeps from being put into an order, none if there is no cycle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def inner_imports(folder: str) -> dict[str, set[str]]:
    """file -> the files of the same folder that it imports, `__init__` apart."""
    files = {
        name
        for name, path in sources().items()
        if name.startswith(f"{folder}.") and path.name != "__init__.py"
    }
    graph = {}
    for file in files:
        tree = ast.parse(sources()[file].read_text(encoding="utf-8"))
        named = {name.removeprefix("fedjax_sim.") for name in imports(tree)}
        graph[file] = {
            other for other in files - {file} if any(f"{n}.".startswith(f"{other}.") for n in named)
        }
    return graph


def test_every_room_has_a_tier_and_every_tier_a_room() -> None:
    assert set(TIER) == {name.split(".")[0] for name in sources()}


def test_the_house_has_few_rooms() -> None:
    """A stranger should see what there is at a glance."""
    assert len({p.name for p in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}) <= 21


@pytest.mark.parametrize("folder", sorted(p.name for p in PACKAGE.iterdir() if p.is_dir()))
def test_files_of_a_folder_do_not_import_each_other_in_circles(folder: str) -> None:
    assert cycle(inner_imports(folder)) == []


def test_a_planted_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) != []
    assert cycle({"a": {"b"}, "b": {"c"}}) == []


@pytest.mark.parametrize("module", sources())
def test_module_keeps_the_import_rules(module: str) -> None:
    assert violations(module, sources()[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ops.trees", "import fedjax_sim.engine"),
        ("ops.trees", "from fedjax_sim import metrics"),
        ("ops.trees", "from fedjax_sim.data import partition"),
        ("base", "import fedjax_sim"),
        ("base", "from fedjax_sim import anything"),
        ("base", "from . import trees"),
        ("base", "from .trees import add"),
        ("engine.round", "from fedjax_sim.aggregators import weighted_mean"),
        ("engine.round", "def f():\n    from fedjax_sim import clients"),
        (
            "simulate",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fedjax_sim.cli",
        ),
        ("analysis.plots", "import fedjax_sim.experiments.study"),
        ("experiments.agnostic.adult", "from fedjax_sim.cli import main"),
        ("a_new_module", ""),
        ("analysis.plots", "import matplotlib.pyplot as plt"),
        ("models", "try:\n    from flax import nnx\nexcept ImportError:\n    pass"),
        ("data.datasets.images", "class A:\n    import h5py"),
        ("data.datasets.images", "import numpy, PIL.Image"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.round", "from fedjax_sim import base, data\nfrom fedjax_sim.ops import trees"),
        ("cli", "from fedjax_sim import __version__, experiments\nimport fedjax_sim.engine"),
        ("experiments.robust.lens", "from fedjax_sim.experiments import study"),
        ("data.datasets.images", "def f():\n    import h5py\n    return h5py"),
        ("models", "if TYPE_CHECKING:\n    from flax import nnx"),
        ("models", "import jax\nimport numpy as np\nimport optax"),
    ],
)
def test_what_is_allowed_is_not_reported(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize("module", sources())
def test_no_module_imports_an_experiment(module: str) -> None:
    assert experiments_imported(module, sources()[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from fedjax_sim.experiments.agnostic import adult as agnostic_adult",
        "from fedjax_sim.experiments.agnostic.adult import Row",
        "def f():\n    import fedjax_sim.experiments.agnostic.adult",
    ],
)
def test_a_planted_import_of_an_experiment_is_found(source: str) -> None:
    assert experiments_imported("experiments.fair.adult", source) == [EXPERIMENTS["agnostic-adult"]]
    assert experiments_imported("experiments.agnostic.adult", source) == []


def test_importing_every_module_loads_no_heavy_library() -> None:
    """Seen from outside: a fresh interpreter, beyond what jax and optax load by themselves."""
    modules = ["fedjax_sim"] + [f"fedjax_sim.{name}" for name in sources() if name != "__init__"]
    program = f"""
import importlib, sys
import jax, jax.numpy, optax
before = set(sys.modules)
for module in {modules}:
    importlib.import_module(module)
print(*sorted({HEAVY} & (set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_a_name_of_the_package_is_one_thing() -> None:
    """A module of a room does not hide what `engine`, `data` or `simulate` offer."""
    assert fedjax_sim.federated is fedjax_sim.engine.federated
    for face in fedjax_sim._FACES:
        for name, value in fedjax_sim._offered(face).items():
            assert getattr(fedjax_sim, name) is value, name
