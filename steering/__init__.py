"""Generation with directions added to the residual stream. Imports `indexer` for the model and its SAEs; `api` does not know it."""
