"""Differential privacy: noise, and what it is worth.

discrete    integer noise for sums of integers, and the privacy of distributed noise
"""
