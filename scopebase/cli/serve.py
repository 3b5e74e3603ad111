"""`scopebase serve`: the HTTP API over a home."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import typer

from schema.errors import InputError
from scopebase.cli.console import ERRORS
from scopebase.cli.live import DeviceOption, SaeDirOption, load_live
from scopebase.cli.options import Home, MeaningOption, settings


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Listen beyond this machine although nobody is asked for a key.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Load this model (hub id or directory) for questions about new texts; look-ups need none.",
            show_default=False,
        ),
    ] = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    meaning: MeaningOption = None,
    home: Home = None,
) -> None:
    """Serve the HTTP API; look-ups load no model."""
    import uvicorn

    from api.app import create_app
    from schema.home import open_home
    from scopebase.meaning import SentenceModel

    if not _loopback(host) and not no_auth:
        raise InputError(
            f"--host {host} is reachable from other machines and nobody would be asked for a key; add --no-auth if that is meant"
        )
    found = open_home(settings(home))
    live = load_live(found, model, sae_dir, device) if model is not None else None
    app = create_app(found, live, SentenceModel(meaning) if meaning else None)
    ERRORS.print(
        f"Scopebase on http://{host}:{port}/v1 · questions at http://{host}:{port}/docs · Ctrl-C ends it", markup=False
    )
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
