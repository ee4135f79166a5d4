"""What methods share whose clients keep a part of the model to themselves."""

from typing import Any

from fedjax_sim import clients
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, ClientRule
from fedjax_sim.ops import leaf_names


def keeping(rule: ClientRule, local: leaf_names.Choice, **options: Any) -> Algorithm:
    """`averaging` of what clients do not keep, with their own models."""
    algorithm = averaging(clients.local_parts(rule, local), **options)
    return algorithm._replace(personal_params=lambda state: state.clients.own)
