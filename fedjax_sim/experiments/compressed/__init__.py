"""Experiments on what compression of updates costs and saves."""
