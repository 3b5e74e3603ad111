"""`python -m scopebase`."""

from scopebase.cli import main

main()
