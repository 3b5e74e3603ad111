"""Results of evaluated models, and what features tell of them."""
