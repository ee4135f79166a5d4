"""Who may import whom, and what may be imported when; read from the source with `ast`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedjax_sim

PACKAGE = Path(fedjax_sim.__file__).parent

# A module imports modules of lower tiers only, so two modules of one tier never meet.
TIERS = [
    {"base"},
    {"trees", "checks", "shuffling", "convolution", "products", "ordering", "stacks", "tuning"},
    {"geometry"},
    {
        *("data", "datasets", "devices", "partition", "models", "metrics", "sampling"),
        *("clients", "uplink", "simplex", "matching", "attacks", "aggregators"),
        *("poisoning", "explanations"),
    },
    {"rounds", "streaming", "checkpoints"},
    {"algorithms", "simulate"},
    {"options", "plots", "runfolder"},
    {"experiments", "train"},
    {"cli"},
    {"__init__"},
]
TIER = {module: tier for tier, modules in enumerate(TIERS) for module in modules}
# The engine never names a concrete part: parts arrive as values.
ONLY = {"rounds": {"base", "trees", "checks", "shuffling", "stacks", "tuning", "data"}}
# Slow to import or needed by few: imported inside the function that uses them.
HEAVY = {
    *("array_record", "flax", "h5py", "matplotlib", "orbax", "PIL", "scipy"),
    "tensorflow_datasets",
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
    part = module.split(".")[0]
    if part not in TIER:
        return [f"{module} has no tier: give it one in TIERS"]
    tree = ast.parse(source)
    found = []
    for name in imports(tree):
        root, *rest = name.split(".")
        if not root:
            found.append(f"{module} imports relatively")
        elif root == "fedjax_sim" and rest != ["__version__"]:
            target = rest[0] if rest and rest[0] in TIER else "__init__"
            allowed = target in ONLY.get(part, TIER) and TIER[target] < TIER[part]
            if target != part and not allowed:
                found.append(f"{module} imports {name}")
    for name in top_level_imports(tree):
        if name.split(".")[0] in HEAVY:
            found.append(f"{module} imports {name} at module level")
    return found


@pytest.mark.parametrize("module", sources())
def test_module_keeps_the_import_rules(module: str) -> None:
    assert violations(module, sources()[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("trees", "import fedjax_sim.rounds"),
        ("trees", "from fedjax_sim import checks"),
        ("trees", "from fedjax_sim.checks import in_range"),
        ("base", "import fedjax_sim"),
        ("base", "from fedjax_sim import anything"),
        ("base", "from . import trees"),
        ("base", "from .trees import add"),
        ("rounds", "from fedjax_sim.aggregators import weighted_mean"),
        ("rounds", "def f():\n    from fedjax_sim import clients"),
        (
            "simulate",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fedjax_sim.cli",
        ),
        ("plots", "import fedjax_sim.experiments.agnostic_adult"),
        ("experiments.agnostic_adult", "from fedjax_sim.cli import main"),
        ("a_new_module", ""),
        ("plots", "import matplotlib.pyplot as plt"),
        ("models", "try:\n    from flax import nnx\nexcept ImportError:\n    pass"),
        ("datasets", "class A:\n    import h5py"),
        ("datasets", "import numpy, PIL.Image"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rounds", "from fedjax_sim import base, checks, data, trees"),
        ("cli", "from fedjax_sim import __version__, experiments\nimport fedjax_sim.rounds"),
        ("experiments", "from fedjax_sim.experiments import agnostic_adult"),
        ("datasets", "def f():\n    import h5py\n    return h5py"),
        ("models", "if TYPE_CHECKING:\n    from flax import nnx"),
        ("models", "import jax\nimport numpy as np\nimport optax"),
    ],
)
def test_what_is_allowed_is_not_reported(module: str, source: str) -> None:
    assert violations(module, source) == []


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
