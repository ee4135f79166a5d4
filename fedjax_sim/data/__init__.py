"""Who owns which examples, and how they become batches; `datasets` reads them from files."""

from fedjax_sim.data.federated import Batching, FederatedData, federate, take

__all__ = ["Batching", "FederatedData", "federate", "take"]
