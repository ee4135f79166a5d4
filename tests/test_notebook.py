"""A notebook: what cells show. In a kernel where there is nbclient, else by IPython's protocols."""

import sys
import types
from typing import Any

import pytest

from fedjax_sim import simulate
from fedjax_sim.base import Status
from fedjax_sim.simulate import Progress

SETUP = """
import jax, optax
import fedjax_sim as fs
data = fs.datasets.fashion_small()
parts = fs.partition.iid(2500, 5, seed=0)
train = fs.federate(data.train, parts)
model = fs.models.logistic(10)
params = model.init(jax.random.key(0), data.train["x"][:1])
fedavg = fs.algorithms.fedavg(
    model, client_optimizer=optax.sgd(0.1), batching=fs.Batching(100), width=1
)
plan = {"evaluate": fs.evaluator(model, {"accuracy": fs.metrics.accuracy}),
        "eval_data": {"train": train}, "eval_every": 2}
"""
RUN = """
with fs.progress_bar("fedavg") as show:
    result = fs.run(
        fedavg, params, train, key=jax.random.key(1), num_rounds=4, progress=show, **plan
    )
"""
CURVES = "fs.plots.learning_curves(result)"


def outputs_of(cells: list[str]) -> list[list[Any]]:
    """What every cell shows, in a fresh kernel."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


def test_cells_of_a_kernel() -> None:
    with_pyplot = f"%matplotlib inline\nimport matplotlib.pyplot\n{CURVES}"
    setup, run, result, curves, again, assigned = outputs_of(
        [SETUP, RUN, "result", CURVES, with_pyplot, f"figure = {CURVES}"]
    )
    assert setup == [] and assigned == []  # no warnings, and nothing is shown that was not asked
    (bar,) = run
    assert "4/4" in bar.data["text/plain"] and "train/accuracy" in bar.data["text/plain"]
    (shown,) = result
    assert shown.data["text/plain"].startswith("Result:\n    params: {bias: float32[10]")
    for cell in (curves, again):
        (picture,) = cell  # once, whether pyplot was set up or not
        assert "image/png" in picture.data


def test_progress_in_a_notebook_is_text_without_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw
            shown.append(data["text/plain"])

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw and display_id
        shown.append(data["text/plain"])
        return Handle()

    module = types.ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with simulate.progress_bar("fedavg") as show:
        show(Progress(0, 3, 4, 1.5, 60, Status.OK, {"test/accuracy": 0.75}))
        show(Progress(0, 4, 4, 2.0, 80, Status.OK, {"test/accuracy": 0.8}))
    assert "compiling" in shown[0]
    assert len(shown) == 2  # what follows within a quarter of a second is shown at the end
    assert "4/4 2.0 rounds/s, 40 client-steps/s" in shown[-1]
    assert shown[-1].endswith("test/accuracy 0.8")
