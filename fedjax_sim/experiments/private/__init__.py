"""Experiments of privacy: attacks on it, and what defences buy."""
