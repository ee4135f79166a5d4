"""fedjax_sim: federated learning as one compiled program."""

__version__ = "0.1.0"
