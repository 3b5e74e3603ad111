"""The demonstration: a small model, its SAEs and datasets, all made on the spot from what every machine has."""
