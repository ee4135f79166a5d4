"""Numerics and checks that know nothing of federated learning."""
