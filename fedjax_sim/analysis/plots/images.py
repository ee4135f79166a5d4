"""Images of weights and of examples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fedjax_sim.analysis.plots._style import names_of, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_rows(
    images: ArrayLike, *, row_names: Sequence[str], column_names: Sequence[str]
) -> "Figure":
    """Draw images of weights in a table, each on its own scale; NaN images are left blank.

    Args:
        images: [rows, columns, height, width], or with a last axis of 3 colours.
        row_names, column_names: what stands beside and above.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape does not fit.
    """
    table = np.asarray(images, float)
    if table.ndim not in (4, 5) or table.shape[4:] not in ((), (3,)):
        raise ValueError(
            f"images must have shape [rows, columns, height, width] or [..., 3], got {table.shape}."
        )
    rows = names_of("row_names", row_names, table.shape[0])
    columns = names_of("column_names", column_names, table.shape[1])
    with new_figure(1 + 0.62 * len(columns), 0.5 + 0.62 * len(rows)) as figure:
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for i, j in np.ndindex(grid.shape):
            axes: Any = grid[i, j]
            image = table[i, j]
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if j == 0:
                axes.set_ylabel(rows[i], rotation=0, ha="right", va="center")
            if i == 0:
                axes.set_title(columns[j], fontsize=8)
            if np.isfinite(image).all():
                # Zero is the middle: grey, or white between blue and red.
                scale = max(np.abs(image).max(), 1e-12)
                if image.ndim == 3:
                    axes.imshow(0.5 + 0.5 * image / scale, interpolation="nearest")
                else:
                    axes.imshow(
                        image, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest"
                    )
    return figure


def image_grid(
    images: Sequence[Sequence[ArrayLike]], row_names: Sequence[str], column_names: Sequence[str]
) -> "Figure":
    """Draw grey images in a grid; where one has both signs, red is positive and blue negative.

    Args:
        images: rows of images [H, W] or [H, W, 1], each drawn on a scale of its own.
        row_names, column_names: of the grid.

    Returns:
        The figure.
    """
    with new_figure(0.8 + 1.3 * len(column_names), 0.4 + 1.3 * len(row_names)) as figure:
        grid = figure.subplots(len(row_names), len(column_names), squeeze=False)
        for i, row in enumerate(images):
            for j, image in enumerate(row):
                axes, pixels = grid[i, j], np.asarray(image, float)
                largest = np.abs(pixels).max()
                signed: Any = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
                axes.imshow(
                    pixels.reshape(pixels.shape[:2]),
                    **(signed if pixels.min() < 0 else {"cmap": "gray"}),
                )
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
                if i == 0:
                    axes.set_title(column_names[j], fontsize=9)
                if j == 0:
                    axes.set_ylabel(row_names[i])
    return figure
