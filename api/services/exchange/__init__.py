"""Feature data in other tools' shapes: what is exported, read and compared. Knows no HTTP."""
