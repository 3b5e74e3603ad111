"""Subsets of a dataset, and which datasets of a suite the rest covers."""
