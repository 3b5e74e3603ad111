"""One feature seen from all sides, and what texts and samples fire."""
