"""Experiments of privacy: what it costs, and what it is worth."""
