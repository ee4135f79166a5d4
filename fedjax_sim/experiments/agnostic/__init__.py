"""Experiments of agnostic federated learning."""
