"""How clients differ: in their data, in what they are served, in what they share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedjax_sim.analysis.plots._colours import COLOURS, PAPER
from fedjax_sim.analysis.plots._style import MAX_NAMES, MIN_SPREAD, names_of, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_COLUMNS = 600  # of a heat map, each still wider than a pixel


def label_counts(
    counts: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    client_names: Sequence[str] | None = None,
    sort: bool = False,
) -> "Figure":
    """Draw how many examples of each class every client has.

    Up to 40 clients and 8 classes are stacked bars of counts. More are a heat map of each client's
    label mixture below its number of examples, readable up to many thousands of clients.

    Args:
        counts: [N, K] numbers of examples, from `partition.label_counts`.
        class_names: [K]; default 0, 1, ...
        client_names: [N]; default 0, 1, ... With more than 40 clients the axis shows positions.
        sort: put clients with the same most frequent class side by side.

    Returns:
        The figure.

    Raises:
        ValueError: If the shape is wrong, a count is negative, or there are too few names.
    """
    table = np.asarray(counts, np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"counts must have shape [clients, classes], got {table.shape}.")
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise ValueError("counts must be finite and >= 0.")
    num_clients, num_classes = table.shape
    classes = names_of("class_names", class_names, num_classes)
    clients = names_of("client_names", client_names, num_clients)
    client_label = "client"
    if sort:
        share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        order = np.lexsort((-share.max(axis=1), share.argmax(axis=1)))
        table, clients = table[order], [clients[i] for i in order]
        client_label = "client (sorted by most frequent class)"
    if num_clients <= MAX_NAMES and num_classes <= len(COLOURS):
        return _count_bars(table, classes, clients, client_label)
    return _mixture_map(table, classes, clients, client_label)


def client_distribution(
    values: Mapping[str, ArrayLike], *, label: str, client_names: Sequence[str] | None = None
) -> "Figure":
    """Draw how a metric is distributed: the fraction of clients at or below each value.

    The steeper a curve, the more alike the clients fare. It crosses 0.1 at the 10th percentile.
    Fewer than ten clients have no distribution: each is a row with a mark for every curve.

    Args:
        values: curve name -> [N] one value a client; clients with NaN are left out.
        label: what the values are.
        client_names: [N] for the rows of few clients; default 0, 1, ...

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, or there is more than one value a client.
    """
    for name, each in values.items():
        if np.ndim(each) != 1:
            raise ValueError(
                f"values of {name!r} must be one a client [N], got shape {np.shape(each)}: take "
                "one evaluation, one run, and of a metric by class one class."
            )
    known = {name: np.asarray(each) for name, each in values.items() if np.isfinite(each).any()}
    if not known:
        raise ValueError("values must hold at least one finite value, got none.")
    num_clients = max(map(len, known.values()))
    if num_clients < MIN_SPREAD:
        return _client_rows(known, names_of("client_names", client_names, num_clients), label)
    with new_figure(7, 3) as figure:
        axes = figure.subplots()
        for i, (name, each) in enumerate(known.items()):
            finite = each[np.isfinite(each)]
            style: Any = {"linestyle": ("-", "--", ":")[i // len(COLOURS) % 3]}
            colour = COLOURS[i % len(COLOURS)]
            axes.ecdf(finite, color=colour, label=f"{name}, N = {finite.size:,}", **style)
        axes.set(xlabel=label, ylabel="share of clients at or below", ylim=(0, 1.02))
        axes.grid(visible=True)
        figure.legend(loc="outside right upper")
    return figure


def sharing(slots: ArrayLike, num_neurons: int) -> "Figure":
    """Draw which clients share which neurons of a matched layer.

    Above, how many neurons are shared by how many clients; below, one column a neuron, the most
    shared ones first, and one line a client, dark where the client uses it.

    Args:
        slots: [J, L] the global neuron of each client's neuron, in [0, num_neurons); anything else
            is padding.
        num_neurons: L of the global layer.

    Returns:
        The figure.

    Raises:
        ValueError: If slots is no table.
    """
    table = np.asarray(slots)
    if table.ndim != 2:
        raise ValueError(f"slots must have shape [clients, neurons], got {table.shape}.")
    used = np.zeros((len(table), num_neurons), bool)
    for row, own in zip(used, table, strict=True):
        row[own[(own >= 0) & (own < num_neurons)]] = True
    counts = used.sum(axis=0)
    # Among equally shared ones those of the same clients stand together.
    order = np.lexsort((*used[::-1], -counts))
    used, counts = used[:, order[counts[order] > 0]], counts[counts > 0]
    with new_figure(7, 1.9 + 0.16 * len(table)) as figure:
        top, bottom = figure.subplots(2, height_ratios=[1.3, 0.16 * len(table) + 0.4])
        sizes = np.arange(1, len(table) + 1)
        top.bar(sizes, (counts[None] == sizes[:, None]).sum(axis=1), color=COLOURS[0])
        top.set(xlabel="clients that share a neuron", ylabel="neurons", xticks=sizes)
        top.grid(visible=True, axis="y")
        bottom.imshow(used, aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        bottom.set(xlabel="global neuron, most shared first", ylabel="client")
    return figure


def _client_rows(values: Mapping[str, NDArray], clients: list[str], label: str) -> "Figure":
    with new_figure(7, 1.1 + 0.25 * max(len(clients), len(values))) as figure:
        axes = figure.subplots()
        for i, (name, each) in enumerate(values.items()):
            style: Any = {"linestyle": "none", "marker": "osD^vP"[i // len(COLOURS) % 6]}
            axes.plot(each, range(len(each)), color=COLOURS[i % len(COLOURS)], label=name, **style)
        axes.set(xlabel=label, ylabel="client")
        axes.set_yticks(range(len(clients)), clients)
        axes.set_ylim(len(clients) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=True)
        figure.legend(loc="outside right upper")
    return figure


def _count_bars(
    table: NDArray[np.float64], classes: list[str], clients: list[str], client_label: str
) -> "Figure":
    with new_figure(7, 1.3 + 0.22 * max(len(clients), len(classes))) as figure:
        axes = figure.subplots()
        rows = np.arange(len(clients))
        left = np.zeros(len(clients))
        for k, name in enumerate(classes):
            axes.barh(
                rows, table[:, k], left=left, color=COLOURS[k], label=name, edgecolor=PAPER,
                linewidth=0.5,
            )  # fmt: skip
            left += table[:, k]
        axes.set(xlabel="examples", ylabel=client_label)
        axes.set_yticks(rows, clients)
        axes.set_ylim(len(clients) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(title="class", loc="outside right upper")
    return figure


def _mixture_map(
    table: NDArray[np.float64], classes: list[str], clients: list[str], client_label: str
) -> "Figure":
    num_clients, num_classes = table.shape
    sizes = table.sum(axis=1)
    mixture = table / np.maximum(sizes[:, None], 1)
    # Neighbours that would be narrower than a pixel are averaged; dropping some would mislead.
    starts = np.linspace(0, num_clients, min(num_clients, _MAX_COLUMNS), endpoint=False).astype(int)
    widths = np.diff(starts, append=num_clients)
    mixture = np.add.reduceat(mixture, starts, axis=0) / widths[:, None]
    height = min(max(0.2 * num_classes, 1), 7)
    with new_figure(8, 2.2 + height) as figure:
        top, bottom = figure.subplots(2, sharex=True, height_ratios=[1.1, height])
        top.stairs(sizes, np.arange(num_clients + 1) - 0.5, fill=True, color=COLOURS[0])
        top.set_ylabel("examples")
        top.grid(axis="y")
        if sizes.max() > 30 * max(np.median(sizes), 1):
            top.set_yscale("log")
        image = bottom.imshow(
            mixture.T,
            aspect="auto",
            interpolation="nearest",
            vmin=0,
            vmax=max(mixture.max(), min(4 / num_classes, 1)),  # an even mixture is a light tone
            extent=(-0.5, num_clients - 0.5, num_classes - 0.5, -0.5),
        )
        bottom.set(xlabel=client_label, ylabel="class")
        step = -(-num_classes // MAX_NAMES)
        bottom.set_yticks(range(0, num_classes, step), classes[::step])
        if num_clients <= MAX_NAMES:
            upright = max(map(len, clients)) <= 3
            bottom.set_xticks(range(num_clients), clients, rotation=0 if upright else 90)
        figure.colorbar(image, ax=bottom, label="share of the client's examples")
    return figure
