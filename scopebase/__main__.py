"""`scopebase` and `python -m scopebase`."""

import sys


def main() -> None:
    """The command line. The light install has the client alone, and says how to get the rest."""
    try:
        from scopebase.cli import main as run
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"scopebase: the command line needs {error.name}, which the client alone does not bring; "
            "pip install 'scopebase[serve]' to ask and to serve, 'scopebase[all]' to index\n"
        )
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
