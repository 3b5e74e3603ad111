"""What a dataset lacks of a target."""
