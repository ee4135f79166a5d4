"""Colours of all pictures."""

# Okabe and Ito, Color Universal Design, 2008: told apart with every common colour blindness. Their
# black is left to text, and grey stands in for it.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
# Nothing else is drawn in these, so that they can give way to the colours of a page.
INK, GRID, PAPER = "#101010", "#dddddd", "#fefefe"
OF_PAGE = {
    INK: "currentColor",
    GRID: f"var(--grid, {GRID})",
    PAPER: f"var(--paper, {PAPER})",
    COLOURS[0].lower(): f"var(--blue, {COLOURS[0]})",  # the only one too dark for dark ground
}
