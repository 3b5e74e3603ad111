"""One process of a service: `scopebase serve` itself, or one of several that it starts."""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from schema import tracing
from schema.settings import Settings
from scopebase import __version__
from scopebase.cli.logs import VARIABLE, log_to_standard_error

if TYPE_CHECKING:
    from fastapi import FastAPI

    from api.gate.access import Access
    from schema.generation import Generator
    from schema.home import Home
    from scopebase.chat import ChosenExplainer

ACCESS = "SCOPEBASE_SERVE_ACCESS"
"""Between `serve` and its processes only: the rules, as JSON."""
MEANING = "SCOPEBASE_SERVE_MEANING"
EXPLAINER = "SCOPEBASE_SERVE_EXPLAINER"
SWITCH_SECONDS = 0.0005
"""How long one thread may keep the others waiting for the interpreter. Python's own 5 ms makes a short question wait for long ones."""


def hand_over(access: Access, settings: Settings, meaning: str | None, explainer: ChosenExplainer | None) -> None:
    """Leaves for the processes what they are to serve."""
    from api.gate.access import Access

    os.environ[ACCESS] = TypeAdapter(Access).dump_json(access).decode()
    os.environ[MEANING] = meaning or ""
    os.environ[EXPLAINER] = json.dumps(asdict(explainer) if explainer else None)
    os.environ["SCOPEBASE_HOME"] = str(settings.home)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared = tempfile.mkdtemp(prefix="scopebase-metrics-")
    atexit.register(shutil.rmtree, shared, ignore_errors=True)


def make() -> FastAPI:
    """The application of one process of several."""
    from api.gate.access import Access
    from schema.home import open_home
    from scopebase.chat import ChosenExplainer

    access = TypeAdapter(Access).validate_json(os.environ[ACCESS])
    explainer = json.loads(os.environ[EXPLAINER])
    return prepare(
        open_home(Settings.read()),
        access,
        meaning=os.environ[MEANING] or None,
        explainer=ChosenExplainer(**explainer) if explainer else None,
    )


def prepare(
    home: Home,
    access: Access,
    meaning: str | None = None,
    generator: Generator | None = None,
    explainer: ChosenExplainer | None = None,
) -> FastAPI:
    """The application, and this process made ready for it."""
    from api.app import create_app
    from scopebase.meaning import SentenceModel

    sys.setswitchinterval(SWITCH_SECONDS)
    log_to_standard_error(os.environ.get(VARIABLE) or "text", requests=access.log)
    tracing.start("serve", __version__)
    app = create_app(
        home,
        meaning=SentenceModel(meaning) if meaning else None,
        access=access,
        generator=generator,
        explainer=explainer,
    )
    gc.collect()
    gc.freeze()  # 400,000 objects of imported code, which a full collection would look through: 0.2 s in which nobody is answered
    return app
