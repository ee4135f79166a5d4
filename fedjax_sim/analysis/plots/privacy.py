"""What attacks on privacy find."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fedjax_sim.analysis.inversion import Match
from fedjax_sim.analysis.membership import Membership
from fedjax_sim.analysis.plots._colours import COLOURS, INK
from fedjax_sim.analysis.plots._style import new_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reconstructions(
    true: ArrayLike, found: Mapping[str, Match], *, limits: tuple[float, float] = (0.0, 1.0)
) -> "Figure":
    """Draw images beside what was reconstructed of them, one column for each defence.

    All images have one scale, so that a pale one is pale. Below each stands its PSNR.

    Args:
        true: [n, H, W], [n, H, W, 1] or [n, H, W, 3], a row each.
        found: name -> what `inversion.matched` gives for the same images.
        limits: the values of black and of white.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape does not fit.
    """
    originals = np.asarray(true, float)
    if originals.ndim not in (3, 4) or originals.shape[3:] not in ((), (1,), (3,)):
        raise ValueError(
            f"true must be images [n, H, W], [n, H, W, 1] or [n, H, W, 3], got {originals.shape}."
        )
    for name, match in found.items():
        if match.inputs.shape != originals.shape:
            raise ValueError(
                f"found of {name!r} must hold images {originals.shape}, got {match.inputs.shape}."
            )
    low, high = limits
    columns = {"original": originals, **{name: match.inputs for name, match in found.items()}}
    with new_figure(0.2 + 1.25 * len(columns), 0.45 + 1.4 * len(originals)) as figure:
        grid = figure.subplots(len(originals), len(columns), squeeze=False)
        for j, (name, images) in enumerate(columns.items()):
            grid[0, j].set_title(wrapped(name, 16), fontsize=9)
            for i, image in enumerate(images):
                axes: Any = grid[i, j]
                pixels = np.clip((image - low) / (high - low), 0, 1)
                pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if name in found:
                    axes.set_xlabel(f"{found[name].psnr[i]:.0f} dB", fontsize=8)
    return figure


def roc(attacks: Mapping[str, Membership]) -> "Figure":
    """Draw how many members are found at how many false alarms, all clients together.

    On the right the same with logarithmic axes: an attack that is sure of a few has found those,
    however near its whole curve is to guessing.

    Args:
        attacks: name -> what `membership.loss_attack` gives.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not attacks:
        raise ValueError("attacks must hold at least one Membership, got none.")
    with new_figure(8.5, 3.2) as figure:
        panels = figure.subplots(1, 2)
        curves = [attack.curve for attack in attacks.values()]
        rates = np.concatenate(curves)
        least = rates[rates > 0].min()
        for axes, scale in zip(panels, ("linear", "log"), strict=True):
            for i, (name, attack) in enumerate(attacks.items()):
                label = f"{wrapped(name, 26)}\nAUC {attack.pooled_auc:.2f}"
                axes.plot(*attack.curve.T, color=COLOURS[i % len(COLOURS)], label=label)
            guess = np.geomspace(least, 1)
            axes.plot(guess, guess, color=INK, linestyle=":", linewidth=1, label="guessing")
            axes.set(xlabel="false-positive rate", ylabel="true-positive rate", xscale=scale)
            axes.set_yscale(scale)
            axes.grid(visible=True)
        panels[1].set(xlim=(least, 1), ylim=(least, 1.1))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure
