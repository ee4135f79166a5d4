"""Experiments of attacks and defences."""
