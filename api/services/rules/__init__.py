"""Rules: boolean expressions over features that classify a text; how they are found, measured, stored and applied."""
