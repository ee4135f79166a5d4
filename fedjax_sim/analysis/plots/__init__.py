"""Pictures of partitions and runs.

Every function returns a matplotlib `Figure` of its own and leaves pyplot alone, so nothing needs a
display, nothing has to be closed, and a notebook shows what is returned.

    clients        label_counts, client_distribution, sharing: how clients differ
    curves         learning_curves, minimax_path, series, ranges, bands: what changes over rounds
    comparisons    grouped_bars, heat_map, tradeoff, fairness_tradeoff, histograms: methods beside
                   each other
    images         image_rows, image_grid: weights and examples
    privacy        reconstructions, roc: what attacks on privacy find
    files          save, png, svg
    _style         titled: a title above any of them
"""

from fedjax_sim.analysis.plots._style import MIN_SPREAD, titled
from fedjax_sim.analysis.plots.clients import client_distribution, label_counts, sharing
from fedjax_sim.analysis.plots.comparisons import (
    fairness_tradeoff,
    grouped_bars,
    heat_map,
    histograms,
    tradeoff,
)
from fedjax_sim.analysis.plots.curves import bands, learning_curves, minimax_path, ranges, series
from fedjax_sim.analysis.plots.files import png, save, svg
from fedjax_sim.analysis.plots.images import image_grid, image_rows
from fedjax_sim.analysis.plots.privacy import reconstructions, roc

__all__ = [
    "MIN_SPREAD",
    "bands",
    "client_distribution",
    "fairness_tradeoff",
    "grouped_bars",
    "heat_map",
    "histograms",
    "image_grid",
    "image_rows",
    "label_counts",
    "learning_curves",
    "minimax_path",
    "png",
    "ranges",
    "reconstructions",
    "roc",
    "save",
    "series",
    "sharing",
    "svg",
    "titled",
    "tradeoff",
]
