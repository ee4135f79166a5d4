"""Pictures of what attacks on privacy find."""

import numpy as np
import pytest

from fedjax_sim.analysis import inversion, plots
from fedjax_sim.analysis.membership import Membership

RNG = np.random.default_rng(0)
TRUE = RNG.uniform(size=(2, 4, 4, 1))
FAINT = inversion.matched(0.5 * TRUE, TRUE)
FAR = inversion.matched(3.0 + TRUE, TRUE)


def test_reconstructions_stand_beside_the_originals_on_one_scale() -> None:
    figure = plots.reconstructions(TRUE, {"none": FAINT, "noise of size 3.0": FAR})
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "original",
        "none",
        "noise of size\n3.0",
    ]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_allclose(shown[0], TRUE[0, ..., 0])
    np.testing.assert_allclose(shown[1], 0.5 * TRUE[0, ..., 0])
    np.testing.assert_allclose(shown[4], 0.5 * TRUE[1, ..., 0])
    assert (shown[2] == 1).all()
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(0, 1)}
    below = [axes.get_xlabel() for axes in figure.axes]
    assert below[0] == below[3] == ""
    assert below[1] == f"{FAINT.psnr[0]:.0f} dB"
    assert below[5] == f"{FAR.psnr[1]:.0f} dB" == "-10 dB"


def test_pixels_are_shown_between_their_limits_and_colours_as_they_are() -> None:
    colours = RNG.uniform(-1, 1, size=(1, 3, 3, 3))
    figure = plots.reconstructions(
        colours, {"a": inversion.matched(colours, colours)}, limits=(-1.0, 1.0)
    )
    for axes in figure.axes:
        np.testing.assert_allclose(axes.images[0].get_array(), (colours[0] + 1) / 2)
    assert plots.svg(figure).startswith("<svg")


def membership(area: float, curve: list[list[float]]) -> Membership:
    return Membership(np.ones(1), np.ones(1), area, 0.0, np.array(curve))


def test_roc_draws_both_scales_and_says_the_area() -> None:
    attacks = {
        "none": membership(0.81, [[0, 0], [0, 0.4], [0.5, 1], [1, 1]]),
        "noise": membership(0.5, [[0, 0], [0.25, 0.25], [1, 1]]),
    }
    figure = plots.roc(attacks)
    linear, log = figure.axes
    assert (linear.get_xscale(), log.get_xscale(), log.get_yscale()) == ("linear", "log", "log")
    for axes in figure.axes:
        for line, attack in zip(axes.lines, attacks.values(), strict=False):
            np.testing.assert_array_equal(line.get_xydata(), attack.curve)
    assert log.get_xlim() == (0.25, 1)  # the least rate that is not zero
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["none\nAUC 0.81", "noise\nAUC 0.50", "guessing"]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found of 'a' must hold images \(2, 4, 4, 1\)"):
        plots.reconstructions(TRUE, {"a": inversion.matched(TRUE[:1], TRUE[:1])})
    with pytest.raises(ValueError, match="true must be images"):
        plots.reconstructions(TRUE[..., 0, 0], {})
    with pytest.raises(ValueError, match="at least one Membership, got none"):
        plots.roc({})
