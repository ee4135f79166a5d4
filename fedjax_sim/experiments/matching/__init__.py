"""Experiments of neuron matching."""
