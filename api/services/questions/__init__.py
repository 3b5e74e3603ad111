"""Overlap, difference and redundancy: the questions that profiles alone answer."""
