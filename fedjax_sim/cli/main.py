"""The command line: `fedjax-sim train | sweep | compare | report | reproduce | datasets | parts`.

Whatever needs jax is imported by the command that needs it, so that help and typing errors come at
once.
"""

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from fedjax_sim import __version__
from fedjax_sim.cli.options import CONFIG, from_arguments, show_help
from fedjax_sim.experiments import arguments
from fedjax_sim.ops import checks

_HELP = """\
usage: fedjax-sim COMMAND [OPTIONS]

Simulate federated learning on JAX: a round is one pure function, a training run one compiled scan.

commands:
  train             Train a model over clients: choose data, partition, model and algorithm.
  sweep [FILE] --over AXIS...
                    Train at all combinations of some options' values, in few programs.
  reproduce NAME    Repeat an experiment of a paper.
  compare RUN...    Show finished runs beside each other, those of several seeds as one row.
  report RUN...     Write report.html, a page with all of a run, into its folder.
  datasets          List the data sets, and how to get them.
  parts [KIND [NAME]]
                    Show which parts there are, such as aggregators, and what each takes.

`fedjax-sim COMMAND --help` shows the options of a command, `fedjax-sim --version` the version.

examples:
  fedjax-sim train                               # 100 clients on data that comes with the package
  fedjax-sim train --alpha 0.1 --algorithm fedadam --rounds 200 --output runs/skewed
  fedjax-sim train --config runs/skewed/config.toml --seed 1     # the same with another seed
  fedjax-sim sweep --over seed=0..4 "aggregator=mean,krum(num_byzantine=2)" --rounds 50
  fedjax-sim reproduce agnostic-adult            # the average and its smallest client
  fedjax-sim compare runs/*                      # what differed, with confidence intervals

A run writes a folder: config.json and config.toml (what was run), results.json (the summary),
metrics.jsonl (every evaluation, while it runs), per_client.npz, params.npz, pictures, and
report.html, which has it all on one page. It never overwrites a folder unless told to, and Ctrl-C
keeps what is done.
"""

_TRAIN_HELP = """\
Train a model over simulated clients.

Deals a data set out to clients, trains by federated rounds, evaluates every client, and writes the
results with pictures to a folder.

Examples:
- fedjax-sim train
- fedjax-sim train --dataset fashion_mnist --num-clients 1000 --cohort-size 100 --alpha 0.3
- fedjax-sim train --dataset adult --model logistic --partition by_group --group doctorate \
--algorithm agnostic --rounds 1000
- fedjax-sim train --config experiment.toml --seed 1 --output runs/seed-1
- fedjax-sim train --dataset patients.csv --label outcome --partition by_group --group hospital
- fedjax-sim train --rounds 10000 --checkpoint-every 500 --output runs/long
- fedjax-sim train --resume runs/long

Exit status: 0 done; 1 the training failed; 2 wrong options or data; 130 interrupted. After 1 and \
130, what was done is written."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    try:
        status = _dispatch(args)
    except KeyboardInterrupt:
        _complain("interrupted at once; only what had been written before is kept.")
        status = 130
    except BrokenPipeError:  # `fedjax-sim train --help | head`
        # What is still buffered would raise again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141  # what shells report for a closed pipe
    except (ValueError, TypeError, OSError, ImportError) as error:
        if debug:
            raise
        _complain(str(error))
        status = 2
    except (RuntimeError, MemoryError) as error:
        # The failures of a run, such as a diverged client, come with a message for its user.
        if debug:
            raise
        _complain(str(error))
        status = 1
    sys.exit(status)


def _complain(message: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    # Names of files and columns stand in messages, and must not act on the terminal.
    lines = checks.printable(message).split("\n")
    shown = (line if len(line) < 1000 else f"{line[:900]} ..." for line in lines)
    console.print("\n".join(shown), style="red", markup=False)


def _dispatch(args: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "sweep": _sweep,
        "report": _report,
        "reproduce": _reproduce,
        "compare": _compare,
        "datasets": _datasets,
        "parts": _parts,
    }
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0
    if command == "--version":
        print(f"fedjax-sim {__version__}")
        return 0
    if command not in commands:
        raise ValueError(_unknown("command", command, [*commands]))
    return commands[command](rest)


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    near = checks.nearest(name, known)
    return f"unknown {what} {checks.shown(name)}.{near} Choose one of: {', '.join(known)}."


def _train(args: list[str]) -> int:
    if {"-h", "--help"} & {*args}:
        show_help(args, prog="fedjax-sim train", description=_TRAIN_HELP)
    options = from_arguments(args)
    from fedjax_sim.cli import train

    _keep_programs(args)
    return train.main(options)


def _sweep(args: list[str]) -> int:
    if not args or {"-h", "--help"} & {*args}:
        print(_SWEEP_HELP, end="")
        return 0 if args else 2
    _keep_programs(args)
    from fedjax_sim.cli import sweep

    return sweep.main([arg for arg in args if arg != "--debug"])


_SWEEP_HELP = """\
usage: fedjax-sim sweep [FILE.toml] --over OPTION=VALUE,VALUE... [OPTION=...] [OPTIONS]

Train at all combinations of the options' values. Seeds, and numbers that a part may have traced,
such as learning rates, are runs of one program; other parts and sizes are a program each.

Options are those of `fedjax-sim train`, in a file or here; `fedjax-sim train --help` lists them.

options of a sweep:
  --over OPTION=VALUE,VALUE...
                    The axes: a number, a name, or a part in quotes; seed=0..9 is ten seeds. The
                    partition is the same for all seeds, unless partition.seed is an axis.
  --output FOLDER   Folder for all runs and the page that compares them.
  --overwrite       Replace an earlier sweep in it.
  --resume FOLDER   Go on with the sweep in a folder: what is done is not done again.
  --runs-at-once N  Runs in one program at most. By default as many as fit into the memory.
  --no-cache        Compile anew.

examples:
  fedjax-sim sweep --over seed=0..9 "client_optimizer.learning_rate=0.03,0.1,0.3" --rounds 50
  fedjax-sim sweep --num-clients 20 --cohort-size 15 --malicious 0 1 2 3 --rounds 30 --over \\
      "attack=no_attack,sign_flip,little_is_enough" seed=0..3 \\
      "aggregator=mean,coordinate_median,krum(num_byzantine=4)"
"""


def _report(args: list[str]) -> int:
    if not args or any(arg.startswith("-") for arg in args):
        print("usage: fedjax-sim report RUN...\n\nWrite report.html into the folders of runs.")
        return 0 if {*args} & {"-h", "--help"} else 2
    from fedjax_sim.analysis import report

    for name in args:
        path = Path(name).expanduser() / "report.html"
        path.write_text(report.of_run(path.parent), encoding="utf-8")
        print(checks.printable(str(path)))
    return 0


def _keep_programs(args: list[str]) -> None:
    """Use the cache of compiled programs, unless told not to or its folder cannot be made."""
    from fedjax_sim.ops import devices

    if "--no-cache" not in args:
        with contextlib.suppress(OSError):
            devices.use_compilation_cache()


def _reproduce(args: list[str]) -> int:
    from fedjax_sim.experiments import EXPERIMENTS

    if not args or args[0] in ("-h", "--help"):
        print("usage: fedjax-sim reproduce NAME [OPTIONS]\n\nRepeat an experiment of a paper.\n")
        print("experiments:")
        for name, where in EXPERIMENTS.items():
            print(f"  {name}\n      {_first_line(where)}")
        print("\n`fedjax-sim reproduce NAME --help` shows the options of an experiment.")
        print("--no-cache compiles anew, --debug shows where an error comes from.")
        return 0 if args else 2
    name, rest = args[0], args[1:]
    if name not in EXPERIMENTS:
        raise ValueError(_unknown("experiment", name, [*EXPERIMENTS]))
    module = importlib.import_module(EXPERIMENTS[name])
    known = {field.name for field in dataclasses.fields(module.Options)}
    ours = {"--debug": "debug", "--no-cache": "no_cache"}  # of every command
    rest = [arg for arg in rest if ours.get(arg) is None or ours[arg] in known]
    command = f"fedjax-sim reproduce {name}"
    arguments.check(rest, module.Options, command=command)
    options = tyro.cli(
        module.Options,
        prog=command,
        description=inspect.getdoc(module),
        args=rest,
        config=CONFIG,
    )
    _keep_programs(args)
    module.main(options)
    return 0


def _first_line(module: str) -> str:
    """The first line of a module's docstring, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no module {module}.")
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def _compare(args: list[str]) -> int:
    if not args or {"-h", "--help"} & {*args}:
        print(_COMPARE_HELP, end="")
        return 0 if args else 2
    from fedjax_sim.cli import compare

    return compare.main(args)


_COMPARE_HELP = """\
usage: fedjax-sim compare RUN... [OPTIONS]

Show finished runs beside each other, by their folders. Runs that differ by their seed only are one
row: the mean, the standard deviation, the 95% confidence interval of the mean, the worst client and
the worst tenth of the clients. Runs that did not finish, failed, repeat another one or have other
metrics are left out, and named.

options:
  --metric METRIC   Show this one only, such as test/accuracy.
  --output FOLDER   Write comparison.html (with curves), .csv, .md and .tex there.
  --overwrite       Replace earlier files of these names.

examples:
  fedjax-sim compare runs/fedavg-0 runs/fedavg-1 runs/fedprox-0 runs/fedprox-1
  fedjax-sim compare runs/* --metric test/accuracy --output runs/compared
"""


def _parts(args: list[str]) -> int:
    if any(arg.startswith("-") for arg in args) or len(args) > 2:
        print(_PARTS_HELP)
        return 0 if args[0] in ("-h", "--help") else 2
    from fedjax_sim.cli import parts

    return parts.main(args)


_PARTS_HELP = """\
usage: fedjax-sim parts [KIND [NAME]]

Show all kinds of parts, the parts of a kind, or what one part takes.

examples:
  fedjax-sim parts aggregator
  fedjax-sim parts attack little_is_enough
"""

_FROM_TFDS = "tensorflow-datasets downloads it, or --folder with its files"
_ORIGINS = {
    "adult": ("UCI Machine Learning Repository, CC BY 4.0", "comes with the package"),
    "fashion_small": ("Zalando Research, MIT", "comes with the package"),
    "fashion_mnist": (
        "Zalando Research, MIT",
        f"Debian's package dataset-fashion-mnist; or {_FROM_TFDS}",
    ),
    "mnist": ("LeCun et al. from NIST's, CC BY-SA 3.0", _FROM_TFDS),
    "cifar10": ("Krizhevsky, University of Toronto, no licence stated", _FROM_TFDS),
    "emnist": ("Cohen et al. from NIST's, no licence stated", _FROM_TFDS),
    "federated_emnist": (
        "LEAF and TensorFlow Federated from NIST's, no licence stated",
        "--folder with fed_emnist_train.h5 and fed_emnist_test.h5 of TensorFlow Federated",
    ),
    "shakespeare": (
        "LEAF and TensorFlow Federated from Project Gutenberg's, public domain",
        "--folder with shakespeare_train.h5 and shakespeare_test.h5 of TensorFlow Federated",
    ),
}
"""data set -> (where it comes from and its licence, how to get it)."""


def _datasets(args: list[str]) -> int:
    if args:
        print("usage: fedjax-sim datasets\n\nList the data sets, and how to get them.")
        return 0 if args[0] in ("-h", "--help") else 2
    from fedjax_sim.data.datasets import BY_CLIENT, DATASETS

    table = Table("name", "what", "how to get it", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for name, function in DATASETS.items():
        what = (inspect.getdoc(function) or "").partition("\n")[0]
        origin, source = _ORIGINS[name]
        table.add_row(name, f"{what}\n[dim]{origin}[/]", source, end_section=True)
    table.add_row(
        "tfds:NAME",
        "Any classification data set of tensorflow-datasets, such as tfds:svhn_cropped.",
        "tensorflow-datasets downloads it to --folder",
        end_section=True,
    )
    table.add_row(
        "FILE.csv",
        "A table of your own, also .tsv, .txt or .parquet.",
        "--label names its column with the labels",
        end_section=True,
    )
    for kind, function in BY_CLIENT.items():
        what = (inspect.getdoc(function) or "").partition("\n")[0]
        table.add_row(f"{kind}:PATH", what, "files of your own that have clients")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "More data of your own: datasets.from_images, from_arrays and from_clients of the library."
    )
    return 0
