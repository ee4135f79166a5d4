"""Parts by name: found by what they return, read from text, and built.

finding     which parts there are, and what each takes
text        values and parts as text: `krum(num_byzantine=2)`
building    a part from its text
"""

from fedjax_sim.parts.building import build, catalogue
from fedjax_sim.parts.finding import CONTRACTS, Option, find, options
from fedjax_sim.parts.text import Call, parse, show

__all__ = ["CONTRACTS", "Call", "Option", "build", "catalogue", "find", "options", "parse", "show"]
