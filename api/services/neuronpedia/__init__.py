"""Neuronpedia's read routes over our data, and the rows that its exports hold. Knows no HTTP."""
