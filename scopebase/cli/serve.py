"""`scopebase serve`: the HTTP API over a home."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schema.errors import InputError
from scopebase.cli.console import ERRORS
from scopebase.cli.live import (
    ChatTemplateOption,
    DeviceOption,
    EngineOption,
    SaeDirOption,
    check_engine,
    load_generator,
)
from scopebase.cli.logs import VARIABLE, LogFormat, check_format
from scopebase.cli.options import Home, MeaningOption, settings

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn

    from api.services.access.rates import Rate
    from schema.generation import Generator
    from schema.home import Home as OpenHome
    from scopebase.chat import ChosenExplainer

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
SHARED_RATE = "100/s"
GRACE = 5
"""Seconds that texts at work have when the service ends."""
_SIZE = re.compile(r"([1-9][0-9]*)(kB|MB|GB)")
_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    auth: Annotated[bool, typer.Option("--auth", help="Ask for a key on this machine too.")] = False,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Listen beyond this machine although nobody is asked for a key.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Load this model (hub id or directory) to read new texts and to generate; look-ups need none.",
            show_default=False,
        ),
    ] = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    chat_template: ChatTemplateOption = None,
    engine: EngineOption = "torch",
    max_rows: Annotated[
        int | None,
        typer.Option(
            "--max-rows",
            min=1,
            max=4096,
            help="Texts generated at once.  [default: 16 on a CPU, 64 on a GPU]",
            show_default=False,
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, max=100_000, help="Requests that may wait for the model.")
    ] = 64,
    max_generating: Annotated[
        int | None,
        typer.Option(
            "--max-generating",
            min=1,
            max=100_000,
            help="Requests for texts that are waiting, at work or being read.  [default: 256, or what fits rows and queue]",
            show_default=False,
        ),
    ] = None,
    meaning: MeaningOption = None,
    explainer: Annotated[
        str | None,
        typer.Option(
            "--explainer",
            envvar="SCOPEBASE_EXPLAINER",
            help="OpenAI-compatible endpoint that /v1/labels/explain asks, such as http://localhost:8001/v1.",
            show_default=False,
        ),
    ] = None,
    explainer_model: Annotated[
        str | None,
        typer.Option(
            "--explainer-model",
            envvar="SCOPEBASE_EXPLAINER_MODEL",
            help="The explainer model, as that endpoint calls it.",
            show_default=False,
        ),
    ] = None,
    explainer_key_env: Annotated[
        str, typer.Option("--explainer-key-env", help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes that answer.")] = 1,
    rate_limit: Annotated[
        str | None,
        typer.Option(
            "--rate-limit",
            help="Requests of a key or address: 50/s, 600/m, none.  [default: 100/s beyond this machine, none on it]",
            show_default=False,
        ),
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-minute",
            min=1,
            max=10**9,
            help="Tokens read and generated for a key or address.  [default: as many as it likes]",
            show_default=False,
        ),
    ] = None,
    max_concurrent: Annotated[int, typer.Option("--max-concurrent", min=1, help="Requests at work at once.")] = 64,
    max_body: Annotated[str, typer.Option("--max-body", help="Largest question.")] = "8MB",
    max_upload: Annotated[str, typer.Option("--max-upload", help="Largest file to import.")] = "4GB",
    time_limit: Annotated[float, typer.Option("--time-limit", min=0.1, help="Seconds until an answer begins.")] = 120,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            help="A name the service goes by; again for more.  [default: this machine's on this machine, else any]",
            show_default=False,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", help="A site whose pages may ask (CORS); again for more.", show_default=False),
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="One line of JSON a request on standard error.")
    ] = False,
    log_format: LogFormat = "text",
    home: Home = None,
) -> None:
    """Serve the HTTP API; look-ups load no model."""
    import uvicorn

    from api.gate.access import Access
    from api.services.access.rates import Rate
    from schema.home import open_home
    from scopebase.cli.listener import Listener
    from scopebase.cli.worker import hand_over, prepare

    if auth and no_auth:
        raise InputError("--auth and --no-auth exclude each other; leave one out")
    if model is not None and workers > 1:
        raise InputError("with --model every process would load the model; leave out --workers")
    check_engine(engine)
    explains = explainer_of(explainer, explainer_model, explainer_key_env)
    local = is_loopback(host)
    names = {name.lower() for name in (*(allow_host or ()), *LOCAL_NAMES, host)} if local or allow_host else set()
    access = Access(
        auth=auth or not (local or no_auth),
        rate=_share(Rate.parse(rate_limit or ("none" if local else SHARED_RATE)), workers),
        hosts=frozenset(names) or None,
        origins=tuple(origin.rstrip("/") for origin in allow_origin or ()),
        body_bytes=_size("--max-body", max_body),
        upload_bytes=_size("--max-upload", max_upload),
        seconds=time_limit,
        concurrent=math.ceil(max_concurrent / workers),
        tokens_per_minute=tokens_per_minute,
        generating=max_generating or max(Access.generating, max_queue + (max_rows or 0)),
        log=log_requests,
    )
    os.environ[VARIABLE] = check_format(log_format)
    where = settings(home)
    found = open_home(where)
    if access.auth:
        _check_keys(found, host)
    asks = "a key is asked for" if access.auth else "nobody is asked for a key"
    listening = (
        f"Scopebase on http://{host}:{port}/v1 · questions at http://{host}:{port}/docs · {asks} · Ctrl-C ends it"
    )
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "log_config": None,
        "log_level": "warning",
        "access_log": False,
        "http": Listener,
    }
    if workers == 1:
        live = None
        if model is not None:
            live = load_generator(
                found,
                model,
                sae_dir,
                device,
                engine=engine,
                max_rows=max_rows,
                max_queue=max_queue,
                chat_template=chat_template,
            )
        app = prepare(found, access, meaning, live, explains)
        ERRORS.print(listening, markup=False, soft_wrap=True)
        run_server(uvicorn.Config(app, timeout_graceful_shutdown=GRACE + 2, **options), live)
    else:
        found.close()
        hand_over(access, where, meaning, explains)
        ERRORS.print(listening, markup=False, soft_wrap=True)
        uvicorn.run("scopebase.cli.worker:make", factory=True, workers=workers, timeout_graceful_shutdown=5, **options)


def run_server(config: uvicorn.Config, generator: Generator | None) -> None:
    """Serves until it is told to end; then texts at work have `GRACE` seconds, and streams get their last event."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Not uvicorn's own, which sends the process the signal once more when all is done: it would die of it, and not exit with 0."""
            if generator is not None:
                threading.Thread(target=generator.close, args=(GRACE,), daemon=True).start()
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    try:
        Server(config).run()
    finally:
        if generator is not None:
            generator.close(0)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_keys(home: OpenHome, host: str) -> None:
    """A service that asks for a key nobody has would answer nobody."""
    from schema.keys import list_keys, state_of

    with home.database.reading() as session:
        if any(state_of(key) == "live" for key in list_keys(session)):
            return
    if is_loopback(host):
        raise InputError("--auth asks for a key and this home has none; make one with 'scopebase key create NAME'")
    raise InputError(
        f"--host {host} is reachable from other machines and this home has no key to ask for; "
        "make one with 'scopebase key create NAME', or add --no-auth if that is meant"
    )


def _share(rate: Rate | None, workers: int) -> Rate | None:
    """Each process counts for itself, and requests spread over them."""
    return None if rate is None else replace(rate, quota=math.ceil(rate.quota / workers))


def _size(option: str, text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InputError(f"{option} {text!r}: a size such as 500kB, 8MB or 4GB")
    return int(found[1]) * _BYTES[found[2]]


def explainer_of(url: str | None, model: str | None, key_env: str) -> ChosenExplainer | None:
    """The endpoint that the service asks to explain features; None where none is chosen."""
    from scopebase.chat import ChosenExplainer, check_address

    if url is None and model is None:
        return None
    if url is None or model is None:
        raise InputError("--explainer and --explainer-model come together: an endpoint, and the model to ask it for")
    check_address("--explainer", url)
    return ChosenExplainer(url, model, os.environ.get(key_env))
