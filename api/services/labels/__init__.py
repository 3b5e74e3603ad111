"""Labels: kept, searched, exchanged, made."""
