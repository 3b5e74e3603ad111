"""Sweeps: finding the strength at which a direction does what it should, and what that costs."""
