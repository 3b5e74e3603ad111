"""What happens to a home while it is written, one module for each kind of place where it happens."""
