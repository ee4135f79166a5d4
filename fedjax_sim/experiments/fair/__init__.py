"""Experiments of fair federated learning."""
