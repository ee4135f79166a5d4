import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedjax_sim.analysis import plots
from fedjax_sim.analysis.runfolder import RunFolder
from fedjax_sim.base import Mean, MeanByClass
from fedjax_sim.simulate import Evaluations, Result


def drawn_bars(axes: Axes) -> np.ndarray:
    """[clients, classes] widths of the stacked bars, each bar starting where the last one ended."""
    stacks: list[Any] = list(axes.containers)
    left = np.array([[bar.get_x() for bar in stack] for stack in stacks]).T
    width = np.array([[bar.get_width() for bar in stack] for stack in stacks]).T
    np.testing.assert_allclose(left[:, 1:], np.cumsum(width, axis=1)[:, :-1])
    return width


def drawn_map(figure: Figure) -> np.ndarray:
    """[clients, classes] values of the heat map."""
    return np.asarray(figure.axes[1].images[0].get_array()).T


def tick_names(figure: Figure, axes: Axes, axis: str) -> list[str]:
    """The names along an axis as rendered; fails where two of them overlap."""
    figure.draw_without_rendering()
    labels = [label for label in getattr(axes, f"get_{axis}ticklabels")() if label.get_text()]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda b: (b.x0, b.y0))
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    return [label.get_text() for label in labels]


def test_few_clients_are_stacked_bars_of_counts() -> None:
    counts = np.array([[306, 107], [24_412, 0]])
    figure = plots.label_counts(
        counts, class_names=["<=50K", ">50K"], client_names=["doctorate", "others"]
    )
    (axes,) = figure.axes
    np.testing.assert_array_equal(drawn_bars(axes), counts)
    assert tick_names(figure, axes, "y") == ["doctorate", "others"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["<=50K", ">50K"]
    assert axes.get_ylim() == (1.5, -0.5)  # the first client on top
    assert figure.dpi == 150


def test_names_of_files_are_drawn_letter_by_letter(tmp_path: Path) -> None:
    """No formulas, no control characters, nothing left out, no warning for want of a letter."""
    names = ["$x^$", "_hidden", "\x1b[31m", "日本", "a" * 100]
    figure = plots.label_counts(np.eye(5, dtype=int), class_names=names, client_names=names)
    legend = figure.axes[0].get_legend() or figure.legends[0]
    drawn = [text.get_text() for text in legend.get_texts()]
    assert set(drawn) == {r"\$x^\$", " _hidden", r"\x1b[31m", "日本", "a" * 21 + "..."}
    folder = RunFolder(tmp_path / "run", {})
    folder.save_figure("counts.png", figure)
    assert (folder.path / "counts.png").read_bytes().startswith(b"\x89PNG")


def test_many_classes_are_a_heat_map_of_mixtures_below_the_sizes(rng: np.random.Generator) -> None:
    counts = rng.integers(0, 50, (12, 10))
    counts[3] = 0  # an empty client
    figure = plots.label_counts(counts, class_names=[f"class {k}" for k in range(10)])
    sizes, mixture = figure.axes[:2]
    np.testing.assert_allclose(
        drawn_map(figure), counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    )
    stairs: Any = sizes.patches[0]
    np.testing.assert_array_equal(stairs.get_data().values, counts.sum(axis=1))
    assert tick_names(figure, mixture, "y") == [f"class {k}" for k in range(10)]
    assert tick_names(figure, mixture, "x") == [str(i) for i in range(12)]
    assert sizes.get_xlim() == mixture.get_xlim() == (-0.5, 11.5)


@pytest.mark.parametrize(
    ("num_clients", "num_classes"), [(1, 1), (2, 8), (40, 8), (40, 62), (41, 2), (1_000, 10)]
)
@pytest.mark.parametrize("sort", [False, True])
def test_names_never_overlap(
    num_clients: int, num_classes: int, sort: bool, rng: np.random.Generator
) -> None:
    figure = plots.label_counts(
        rng.integers(0, 99, (num_clients, num_classes)),
        client_names=[f"writer {i}" for i in range(num_clients)],
        sort=sort,
    )
    axes = figure.axes[-2:][0]
    assert tick_names(figure, axes, "x")
    assert tick_names(figure, axes, "y")


def test_more_clients_than_columns_are_averaged(rng: np.random.Generator) -> None:
    counts = rng.integers(1, 9, (12_000, 3))
    mixture = counts / counts.sum(axis=1, keepdims=True)
    figure = plots.label_counts(counts)
    found = drawn_map(figure)
    assert len(found) < 1_000
    np.testing.assert_allclose(found, mixture.reshape(len(found), -1, 3).mean(axis=1))
    assert figure.axes[1].get_xlim() == (-0.5, 11_999.5)


def test_sort_puts_clients_with_the_same_main_class_side_by_side() -> None:
    counts = np.array([[1, 5], [9, 1], [0, 0], [2, 90], [3, 1]])
    figure = plots.label_counts(counts, client_names=list("abcde"), sort=True)
    (axes,) = figure.axes
    assert tick_names(figure, axes, "y") == ["b", "e", "c", "d", "a"]
    np.testing.assert_array_equal(drawn_bars(axes), counts[[1, 4, 2, 3, 0]])
    assert "sorted" in axes.get_ylabel()


@pytest.mark.parametrize(("largest", "scale"), [(100, "linear"), (100_000, "log")])
def test_sizes_are_logarithmic_only_when_one_client_dwarfs_the_rest(
    largest: int, scale: str
) -> None:
    counts = np.full((50, 2), 10)
    counts[7] = largest
    assert plots.label_counts(counts).axes[0].get_yscale() == scale


def spread(values: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "mean": values.mean(1),
        "worst": values.min(1),
        "percentile_10": np.percentile(values, 10, axis=1),
        "percentile_90": np.percentile(values, 90, axis=1),
    }


def test_learning_curves_draw_mean_worst_and_band(rng: np.random.Generator) -> None:
    at = np.array([0, 10, 20])
    train, test = rng.random((3, 7)), rng.random((3, 7))
    figure = plots.learning_curves(
        at,
        {
            "train/accuracy": spread(train),
            "test/accuracy": spread(test),
            "train/loss": {"mean": np.array([3.0, 2.0, 1.0])},
        },
    )
    accuracy, loss = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "loss"]
    drawn = [np.asarray(line.get_ydata()) for line in accuracy.lines]
    expected = [train.mean(1), train.min(1), test.mean(1), test.min(1)]
    np.testing.assert_allclose(drawn, expected)
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "--", "-", "--"]
    first, _, second, _ = (line.get_color() for line in accuracy.lines)
    assert first != second == accuracy.lines[3].get_color()
    bands = [band.get_paths()[0].vertices for band in accuracy.collections]
    for band, values in zip(bands, (train, test), strict=True):
        low, high = np.percentile(values, [10, 90], axis=1)
        assert band[:, 1].min() == low.min() and band[:, 1].max() == high.max()
    assert [line.get_ydata().tolist() for line in loss.lines] == [[3.0, 2.0, 1.0]]
    assert loss.lines[0].get_color() == first and not loss.collections
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["train mean", "train worst client", "test mean", "test worst client"]
    assert "10th to 90th" in legend.get_title().get_text()


def test_a_single_evaluation_is_visible() -> None:
    figure = plots.learning_curves([0], {"accuracy": {"mean": [0.5]}})
    (line,) = figure.axes[0].lines
    assert line.get_marker() == "." and line.get_label() is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean"]
    means = {"krum/loss": {"mean": [0.5]}, "median/loss": {"mean": [0.4]}}
    legend = plots.learning_curves([0], means).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["krum", "median"]


def test_client_distribution_is_the_share_of_clients_at_or_below() -> None:
    ten = [0.2, 0.8, 0.4, 0.6, 0.6, 0.4, 0.8, 0.2, 0.2, 0.4]
    values = {"train": ten, "test": [0.5, np.nan], "none": [np.nan]}
    figure = plots.client_distribution(values, label="accuracy")
    (axes,) = figure.axes
    train, test = axes.lines
    x, y = np.asarray(train.get_xdata()), np.asarray(train.get_ydata())
    assert [y[x <= at].max() for at in (0.2, 0.4, 0.6, 0.8)] == [0.3, 0.6, 0.8, 1.0]
    assert test.get_label() == "test, N = 1" and axes.get_xlabel() == "accuracy"


def test_few_clients_have_no_distribution_but_a_row_each() -> None:
    values = {"train": [0.2, 0.8, 0.4], "test": [0.5, np.nan, 0.1]}
    (axes,) = plots.client_distribution(values, label="loss", client_names=["a", "b", "$c$"]).axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0.2, 0], [0.8, 1], [0.4, 2]])
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[0.5, 0], [np.nan, 1], [0.1, 2]])
    assert [line.get_linestyle() for line in axes.lines] == ["None", "None"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", r"\$c\$"]


def test_fairness_tradeoff_joins_the_points_in_their_order() -> None:
    figure = plots.fairness_tradeoff({"q = 0": (50.0, 9.0), "q = 1": (49.5, 4.0)}, label="mean")
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[9, 50], [4, 49.5]])
    assert [text.get_text() for text in axes.texts] == ["q = 0", "q = 1"]
    assert axes.get_xlabel() == "variance over clients"
    runs = {"q = 0": ([50, 52], [9, 9]), "q = 1": ([49, 50], [4, 6])}
    (axes,) = plots.fairness_tradeoff(runs, label="mean").axes
    lines = [line.get_xydata().tolist() for line in axes.lines]
    assert lines == [[[9, 50], [4, 49]], [[9, 52], [6, 50]], [[9, 51], [5, 49.5]]]


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_save_makes_folders_and_a_file_of_the_named_format(
    tmp_path: Path, suffix: str, magic: bytes
) -> None:
    path = tmp_path / "new" / "folder" / f"counts{suffix}"
    plots.save(plots.label_counts([[1, 2], [3, 4]]), path)
    assert path.read_bytes().startswith(magic)


def test_the_picture_holds_every_colour_it_should(tmp_path: Path) -> None:
    plots.save(plots.label_counts(np.ones((3, 8))), tmp_path / "bars.png")
    from matplotlib.image import imread

    pixels = np.round(imread(tmp_path / "bars.png")[..., :3] * 255).astype(int)
    seen = {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0)}
    expected = {
        tuple(int(c[i : i + 2], 16) for i in (1, 3, 5))
        for c in ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
    }
    assert expected <= seen


def test_leaves_global_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    plots.label_counts([[1, 2], [3, 4]])
    with pytest.raises(ValueError):
        plots.label_counts([[1, 2]], class_names=["one"])
    assert dict(matplotlib.rcParams) == before


def test_titles_take_the_lines_they_need_and_hold_no_formulas() -> None:
    curves = {"train/loss": {"mean": [2.0, 1.0]}}
    title = "fedavg on $data$, " + "a long story " * 12
    figure = plots.titled(plots.learning_curves([0, 1], curves), title)
    lines = figure.get_suptitle().split("\n")
    assert lines[0].startswith(r"fedavg on \$data\$,") and len(lines) > 3
    figure.draw_without_rendering()
    (legend,), (above,) = figure.legends, figure.texts
    assert not above.get_window_extent().overlaps(legend.get_window_extent())
    assert not above.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def pictures(rng: np.random.Generator) -> dict[str, Figure]:
    """Lines, areas, images, clipped and many of them."""
    counts, image = rng.integers(0, 50, (12, 10)), rng.random((5, 5)) - 0.5
    return {
        "curves": plots.learning_curves(evaluated(())),
        "map": plots.label_counts(counts, class_names=["<script>", "$x$", "&", *"defghij"]),
        "cells": plots.heat_map(image, "abcde", "vwxyz", label="weight"),
        "images": plots.image_grid([[image, image]], ["row"], ["a", "b"]),
        "ecdf": plots.client_distribution({"test": rng.random(50_000)}, label="accuracy"),
        "sizes": plots.label_counts(rng.integers(1, 90, (50_000, 9))),
    }


def test_svg_is_one_element_that_can_stand_in_any_page() -> None:
    figures = pictures(np.random.default_rng(0))
    texts = {name: plots.svg(figure) for name, figure in figures.items()}
    again = {n: plots.svg(figure) for n, figure in pictures(np.random.default_rng(0)).items()}
    assert texts == again
    names: list[str] = []
    for text in texts.values():
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and len(text) < 400_000
        assert int(root.attrib["width"]) > 300 and len(root.attrib["viewBox"].split()) == 4
        own = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        values = [value for element in root.iter() for value in element.attrib.values()]
        links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
        referred = {name for v in values for name in re.findall(r"url\(#([^)]*)\)", v)}
        referred |= {link[1:] for link in links if link.startswith("#")}
        assert referred == {*own}
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
        assert not [e for e in root.iter() if e.tag.endswith(("}style", "}metadata", "}script"))]
        names += own
    assert len(names) == len({*names})


def test_svg_takes_the_colours_of_the_page() -> None:
    figure = plots.heat_map([[0.0, 1.0]], ["row"], ["a", "b"], label="share")
    root = ElementTree.fromstring(plots.svg(figure))
    styles = {e.text: e.attrib["style"] for e in root.iter() if e.tag.endswith("}text")}
    assert "fill: currentColor" in styles["row"] and "fill: currentColor" in styles["share"]
    # What stands on a colour of the picture keeps its own.
    assert "currentColor" not in styles["0.00"] + styles["1.00"]
    curves = plots.svg(plots.learning_curves([0, 1], {"loss": {"mean": [2.0, 1.0]}}))
    assert "stroke: var(--grid, #dddddd)" in curves and "var(--blue, #0072B2)" in curves
    assert "#101010" not in curves and "#ffffff" not in curves


def test_needs_neither_pyplot_nor_matplotlib_at_import(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from fedjax_sim import plots
        assert "matplotlib" not in sys.modules
        plots.save(plots.label_counts([[1, 2], [3, 4]]), sys.argv[1])
        assert "matplotlib.pyplot" not in sys.modules
    """
    path = tmp_path / "counts.png"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    assert path.exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.label_counts([1, 2]), r"counts must have shape .* got \(2,\)"),
        (lambda: plots.label_counts(np.zeros((0, 3))), r"got \(0, 3\)"),
        (lambda: plots.label_counts([[1, -1]]), "finite and >= 0"),
        (lambda: plots.label_counts([[1, np.nan]]), "finite and >= 0"),
        (lambda: plots.label_counts([[1, 2]], class_names=["a"]), "class_names must hold 2 names"),
        (lambda: plots.label_counts([[1, 2]], client_names=[]), "client_names must hold 1 names"),
        (lambda: plots.learning_curves([0], {}), "at least one metric"),
        (
            lambda: plots.learning_curves([0, 1], {"loss": {"mean": [1.0]}}),
            r"mean of loss must have a value for each of the 2 rounds.*got shape \(1,\)",
        ),
        (
            lambda: plots.learning_curves([0], {"a": {"mean": [[1, 2]]}}),
            r"got shape \(1, 2\): of a sweep give the result itself or take one run",
        ),
        (
            lambda: plots.learning_curves(evaluated((2,)), run=2),
            "run must be that of a sweep, got 2, but the sweep has 2 runs",
        ),
        (
            lambda: plots.learning_curves([0], {"a": {"mean": [1]}}, run=0),
            "got 0, but there is one run",
        ),
        (
            lambda: plots.minimax_path(np.ones((4, 6, 2)), np.ones((4, 6, 2)), ["a", "b"]),
            r"must have shape \[rounds, 2\], got \(4, 6, 2\). The arrays of a sweep",
        ),
        (
            lambda: plots.ranges(
                {"a": np.ones((4, 6, 2))},
                {"a": np.ones((4, 6, 2))},
                label="",
                inner_label="",
                outer_label="",
            ),
            r"inner and outer of 'a' must have shape \[rounds, 2\].*The arrays of a sweep",
        ),
        (
            lambda: plots.histograms({"a": {"b": np.ones((6, 2))}}, [0, 1, 2], x="", y=""),
            r"counts of 'a' must have shape \(2,\), one a bin, got \(6, 2\). The arrays of a sweep",
        ),
        (lambda: plots.client_distribution({}, label=""), "at least one finite value"),
        (lambda: plots.client_distribution({"a": [np.nan]}, label=""), "at least one finite"),
        (
            lambda: plots.client_distribution({"a": np.ones((4, 3))}, label=""),
            r"values of 'a' must be one a client \[N\], got shape \(4, 3\)",
        ),
        (
            lambda: plots.learning_curves([0, 1], {"loss": {"mean": np.ones((2, 3))}}),
            "of a metric by class one class",
        ),
        (lambda: plots.fairness_tradeoff({}, label="x"), "at least one method"),
        (
            lambda: plots.fairness_tradeoff({"a": (1.0, float("nan"))}, label="x"),
            "points must be finite, got .* for 'a'",
        ),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def evaluated(runs: tuple[int, ...], num_clients: int = 12) -> Evaluations:
    """Three evaluations of many clients, by a metric of the package and by one's own."""
    rng = np.random.default_rng(0)
    counts = np.full((3, *runs, num_clients), 4.0)
    values = {
        split: {name: Mean(4 * rng.random(counts.shape), counts) for name in ("accuracy", "own")}
        for split in ("train", "test")
    }
    return Evaluations(np.array([0, 5, 10]), values)


def test_learning_curves_of_a_result() -> None:
    evaluations = evaluated(())
    result = Result({}, (), 10, None, evaluations, 1.0, 1.0)
    for given in (result, evaluations):
        accuracy, own = plots.learning_curves(given).axes
        assert (accuracy.get_ylabel(), own.get_ylabel()) == ("accuracy", "own")
        assert [line.get_linestyle() for line in accuracy.lines] == ["-", "--", "-", "--"]
        assert [line.get_linestyle() for line in own.lines] == ["-", "-"]  # which is worse?
        assert len(accuracy.collections) == len(own.collections) == 2
        mean = evaluations.values["train"]["accuracy"]
        drawn = accuracy.lines[0].get_ydata()
        np.testing.assert_allclose(drawn, (mean.total / mean.count).mean(axis=1), rtol=1e-6)
        worst = accuracy.lines[1].get_ydata()
        np.testing.assert_allclose(worst, (mean.total / mean.count).min(axis=1), rtol=1e-6)
    few = plots.learning_curves(evaluated((), num_clients=9)).axes[0]
    assert len(few.lines) == 4 and not few.collections  # no percentiles of nine clients
    by_class = MeanByClass(np.full((3, 5, 2), 1.0), np.full((3, 5, 2), 4.0))
    recall = Evaluations(evaluations.rounds, {"test": {"recall": by_class}})
    assert plots.learning_curves(recall).axes[0].lines[0].get_ydata().tolist() == [0.25] * 3
    nothing = Evaluations(np.array([], int), {})
    with pytest.raises(ValueError, match="evaluate= and eval_data="):
        plots.learning_curves(nothing)
    with pytest.raises(ValueError, match="summaries with rounds as numbers only"):
        plots.learning_curves(result, {"a": {"mean": [1, 2, 3]}})


@pytest.mark.parametrize("num_runs", [6, 11])
def test_learning_curves_of_a_sweep_are_a_line_for_each_run(num_runs: int) -> None:
    evaluations = evaluated((num_runs,))
    figure = plots.learning_curves(evaluations)
    for axes, name in zip(figure.axes, ("accuracy", "own"), strict=True):
        drawn = np.array([line.get_ydata() for line in axes.lines])
        expected = [evaluations.values[split][name] for split in ("train", "test")]
        means = [(mean.total / mean.count).mean(axis=2).T for mean in expected]
        np.testing.assert_allclose(drawn, np.concatenate(means), rtol=1e-6)
        assert (
            len({str(line.get_color()) + line.get_linestyle() for line in axes.lines})
            == 2 * num_runs
        )
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    named = range(6) if num_runs == 6 else (0, 10)
    assert names == [f"{split}, run {i}" for split in ("train", "test") for i in named]

    one = plots.learning_curves(evaluations, run=4)
    alone = evaluated((num_runs,))
    chosen = {
        split: {k: Mean(v.total[:, 4], v.count[:, 4]) for k, v in by_name.items()}
        for split, by_name in alone.values.items()
    }
    same = plots.learning_curves(Evaluations(alone.rounds, chosen))
    for axes, other in zip(one.axes, same.axes, strict=True):
        for line, twin in zip(axes.lines, other.lines, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), twin.get_ydata())


def test_a_notebook_shows_what_is_returned() -> None:
    """By the protocol of IPython, which needs no pyplot for it."""
    figure = plots.learning_curves([0, 1], {"loss": {"mean": [2.0, 1.0]}})
    picture, shown = figure._repr_png_()  # type: ignore[attr-defined]
    assert picture.startswith(b"\x89PNG") and shown == {"width": 500}
    again = pickle.loads(pickle.dumps(figure))
    assert again._repr_png_()[0].startswith(b"\x89PNG")


def test_tradeoff_marks_means_and_spread():
    figure = plots.tradeoff({"a": ([1, 3], [5, 7]), "b": ([2], [4])}, x="size", y="gain")
    axes = figure.axes[0]
    lines = [line for line in axes.lines if line.get_marker() in "osD^vP"]
    marks = [(*line.get_xdata(), *line.get_ydata()) for line in lines]
    assert marks == [(2.0, 6.0), (2.0, 4.0)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("size", "gain")
    (axes,) = plots.tradeoff({"a": ([[1, 3], [4, 6]], [[5, 7], [8, 8]])}, x="", y="").axes
    path = next(line for line in axes.lines if line.get_linestyle() == "-")
    assert path.get_xydata().tolist() == [[2, 6], [5, 8]]
    with pytest.raises(ValueError, match="at least one row"):
        plots.tradeoff({}, x="", y="")
    with pytest.raises(ValueError, match="'a' must be two arrays"):
        plots.tradeoff({"a": ([1, 2], [1])}, x="", y="")


def test_series_draws_means_at_the_settings():
    figure = plots.series([10, 30], {"a": [[1, 3], [5, 5]]}, x="clients", y="accuracy")
    line = next(line for line in figure.axes[0].lines if line.get_linestyle() == "-")
    assert line.get_xdata().tolist() == [10, 30] and line.get_ydata().tolist() == [2.0, 5.0]
    with pytest.raises(ValueError, match=r"'a' must have shape \[1, runs\]"):
        plots.series([10], {"a": [[1], [2]]}, x="", y="")


def test_image_rows_leave_missing_images_blank():
    images = np.ones((2, 3, 4, 4))
    images[1, 2] = np.nan
    figure = plots.image_rows(images, row_names="ab", column_names="xyz")
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 1, 1, 0]
    coloured = plots.image_rows(np.ones((1, 1, 4, 4, 3)), row_names="a", column_names="x")
    assert coloured.axes[0].images[0].get_array().shape == (4, 4, 3)
    with pytest.raises(ValueError, match="images must have shape"):
        plots.image_rows(np.ones((2, 3, 4)), row_names="ab", column_names="xyz")


def test_sharing_sorts_the_most_shared_neurons_first():
    figure = plots.sharing([[0, 2, 3], [2, 1, 9], [2, 3, 9]], 4)
    top, bottom = figure.axes
    assert [patch.get_height() for patch in top.patches] == [2, 1, 1]
    table = np.asarray(bottom.images[0].get_array())
    assert table.sum(axis=0).tolist() == [3, 2, 1, 1]
    with pytest.raises(ValueError, match="slots must have shape"):
        plots.sharing([1, 2], 3)


def test_heat_map_writes_its_numbers_and_leaves_nan_blank():
    figure = plots.heat_map(
        [[0.25, np.nan], [0.5, 1.0]],
        ["one", "two"],
        ["a", "b"],
        label="share",
        limits=(0, 1),
        x="round",
        y="attack",
    )
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("round", "attack")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0.25", "0.50", "1.00"]
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    with pytest.raises(ValueError, match="shape"):
        plots.heat_map([[1.0]], ["one", "two"], ["a"], label="share")


def test_ranges_draw_a_band_and_two_lines_in_every_panel():
    outer = {"a": [[1, 2], [1, 3]], "b": [[1, 2], [2, 4]]}
    figure = plots.ranges(outer, outer, label="distance", inner_label="in", outer_label="out")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    for axes in figure.axes:
        assert len(axes.lines) == 2 and len(axes.collections) == 1


def test_histograms_step_through_the_bins_in_every_panel():
    counts = {"a": {"x": [3, 1], "y": [0, 2]}, "b": {"x": [4, 0], "y": [1, 1]}}
    figure = plots.histograms(counts, [-1, 0, 1], x="change", y="parameters")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    for axes, series in zip(figure.axes, counts.values(), strict=True):
        drawn = [patch.get_data() for patch in axes.patches]
        assert [values.tolist() for values, *_ in drawn] == list(series.values())
        assert drawn[0].edges.tolist() == [-1, 0, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]


def test_open_ended_histograms_say_what_is_outside():
    counts = {"a": {"x": [3, 5, 1, 1], "y": [0, 9, 0, 1]}}
    figure = plots.histograms(counts, [-2, -1, 0, 1, 2], x="change", y="n", open_ended=True)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["< -1", "0", "> 1"]
    assert axes.get_xticks().tolist() == [-1, 0, 1]
    assert [text.get_text() for text in axes.texts] == ["outside:\nx 40%\ny 10%"]
    shaded = [patch.get_extents().intervalx for patch in axes.patches[2:]]
    at = axes.transData.inverted()
    ends = [[round(at.transform((end, 0))[0], 9) for end in interval] for interval in shaded]
    assert ends == [[-2, -1], [1, 2]]


def test_no_curve_is_left_out_for_want_of_colours():
    many = {f"method {i}": [0.1 * i, 0.5] for i in range(11)}
    clients = {name: 5 * values for name, values in many.items()}
    (axes,) = plots.client_distribution(clients, label="accuracy").axes
    assert len(axes.lines) == 11
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 11
    figure = plots.histograms({"a": {name: [1, 2] for name in many}}, [0, 1, 2], x="x", y="y")
    assert len(figure.axes[0].patches) == 11


@pytest.mark.parametrize(
    ("largest", "text"), [(0.0042, "0.0042"), (0.42, "0.42"), (4.2, "4.20"), (42.0, "42")]
)
def test_the_cells_of_a_heat_map_do_not_all_say_zero(largest: float, text: str) -> None:
    figure = plots.heat_map([[largest, 0.0]], ["row"], ["a", "b"], label="value")
    assert figure.axes[0].texts[0].get_text() == text


def test_image_grid_centres_the_colours_of_signed_images():
    gray, signed = np.ones((3, 3, 1)), np.linspace(-1, 2, 9).reshape(3, 3)
    figure = plots.image_grid([[gray, signed]], ["row"], ["a", "b"])
    assert figure.axes[1].images[0].get_clim() == (-2, 2)
    assert figure.axes[0].get_ylabel() == "row"
