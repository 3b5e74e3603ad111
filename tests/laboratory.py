"""A home with SAEs and no activations, for what people add: quick to make on either database."""

from __future__ import annotations

import hashlib
from pathlib import Path

from api.services.library import Library
from schema.home import make_home
from schema.settings import Settings
from schema.tables import Model, Sae

SAES = ("m/3-tiny", "m/4-tiny")
D_SAE = 1000


def sha_of(name: str, seed: int = 0) -> str:
    return hashlib.sha256(f"{name} {seed}".encode()).hexdigest()


def make_lab(folder: Path, database_url: str | None = None, seed: int = 0, saes: tuple[str, ...] = SAES) -> Library:
    """A home of its own; homes of one seed have the same tensors."""
    url = database_url or f"sqlite:///{folder / 'scopebase.db'}"
    home = make_home(Settings(folder, url, str(folder / "store")))
    with home.database.writing() as session:
        model = Model(
            name="m",
            source="m",
            revision="1",
            family="x",
            n_layers=8,
            d_model=4,
            context=None,
            tokenizer_sha256="0" * 64,
        )
        session.add(model)
        session.flush()
        for name in saes:
            layer, _, set_name = name.removeprefix("m/").partition("-")
            session.add(
                Sae(
                    model_id=model.id,
                    name=name,
                    set_name=set_name,
                    layer=int(layer),
                    release="r",
                    format="qwen_scope",
                    activation="topk",
                    k=2,
                    d_model=4,
                    d_sae=D_SAE,
                    sha256=sha_of(name, seed),
                    source="s",
                    file_size=0,
                    file_time=0,
                )
            )
    return Library(home)
