"""Run an algorithm: scan over rounds in segments, evaluate, show progress, keep what is done.

`run` drives one program on the host: it starts a segment of rounds, and while the device works it
reads the results of the segment before. `sweep` makes many runs one program and hands it to `run`.

    run            run: rounds, evaluations and checkpoints of one algorithm
    sweep          sweep, vmapped, product: seeds and hyperparameters as one program
    result         Result, Evaluations, SimulationError: what a run leaves
    progress       Progress, progress_bar: what it tells while it goes on
    stopping       patience: what ends a run early
    keeping        NotKept: what stands for the infos that a run was not asked to keep
    segments       round_key, and how rounds become a few calls of one program
    interrupts     DeferredInterrupt: Ctrl-C, kept from losing rounds that are done
    checkpoints    Checkpoints: what a run needs to go on as if it had never stopped
"""

from fedjax_sim.simulate.keeping import NotKept
from fedjax_sim.simulate.progress import Progress, progress_bar
from fedjax_sim.simulate.result import Evaluate, Evaluations, Result, SimulationError
from fedjax_sim.simulate.run import run
from fedjax_sim.simulate.segments import round_key
from fedjax_sim.simulate.stopping import StopWhen, patience
from fedjax_sim.simulate.sweep import product, sweep, vmapped

__all__ = [
    "Evaluate",
    "Evaluations",
    "NotKept",
    "Progress",
    "Result",
    "SimulationError",
    "StopWhen",
    "patience",
    "product",
    "progress_bar",
    "round_key",
    "run",
    "sweep",
    "vmapped",
]
