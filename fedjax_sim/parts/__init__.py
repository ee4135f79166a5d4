"""Parts by name: found by what they return, read from text, chosen for an experiment, and built.

signatures  what parts take, read from their source without importing it
finding     which parts there are, and what each takes
text        values and parts as text: `krum(num_byzantine=2)`
completing  values made complete: parts with all their options
spec        the parts of an experiment and their options, each by its own name
building    a part from its text
"""

import importlib
from typing import TYPE_CHECKING, Any

from fedjax_sim.parts.text import Call, parse, show

if TYPE_CHECKING:
    from fedjax_sim.parts.building import build, catalogue
    from fedjax_sim.parts.finding import CONTRACTS, Option, find, options

__all__ = ["CONTRACTS", "Call", "Option", "build", "catalogue", "find", "options", "parse", "show"]


def __getattr__(name: str) -> Any:
    """What needs jax is imported when it is asked for."""
    if name in __all__:
        module = "building" if name in ("build", "catalogue") else "finding"
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
