"""Who may ask, how often and how long, and what was written by whom."""
