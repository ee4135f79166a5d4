"""The engine: parts -> Algorithm(init, step, params). It names no concrete part."""

from fedjax_sim.engine.round import FederatedState, Width, evaluator, federated

__all__ = ["FederatedState", "Width", "evaluator", "federated"]
