"""Who owns which examples, and how they become batches.

The examples of all clients lie in one array, client after client.

    federated    FederatedData, federate: everybody's examples on the device
    batching     Batching, take: the batches of a client's local steps
    partition    who owns which rows of a data set
    poisoning    what malicious clients train on
    disk         Population: clients that do not fit in memory
    datasets     examples from files: one file a format
"""

from fedjax_sim.data.batching import Batching, take
from fedjax_sim.data.federated_data import FederatedData, federate

__all__ = ["Batching", "FederatedData", "federate", "take"]
