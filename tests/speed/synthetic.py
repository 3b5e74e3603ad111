"""Homes of any size without a model: real rows, postings and profiles of invented activations, written by the real worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sqlalchemy import select, update

from indexer.run import register, tidy
from indexer.seal import profile_row
from schema.catalog import register_sae
from schema.home import Home, make_home
from schema.layout import sample_key
from schema.lookup import find_sae
from schema.publish import publish, write
from schema.recipe import Recipe
from schema.records import ModelCard, Profile, SaeCard, Tokens
from schema.settings import Settings
from schema.tables import RunSae, Shard
from schema.upkeep import maintain
from tests.speed.feeding import FeedingWorker, NoEngine, survey_of

D_SAE, K, BATCH_TOKENS = 32_768, 50, 2048
MODEL = ModelCard("synthetic", "memory", "0" * 64, "none", 1, 64, None, "0" * 64)
SAE = SaeCard(0, "synthetic", "none", "topk", K, 64, D_SAE, "1" * 64, "memory")
SAE_NAME = "synthetic/0-bench"


def make(
    folder: Path, n_datasets: int, n_samples: int, mean_tokens: int = 128, d_sae: int = D_SAE, prefix: str = "d"
) -> Home:
    """A home with datasets d0, d1, ... of so many samples each."""
    home = make_home(Settings.read(folder, {}))
    rng = np.random.default_rng(1)
    card = replace(SAE, d_sae=d_sae)
    for number in range(n_datasets):
        lengths = np.clip(rng.lognormal(np.log(mean_tokens) - 0.18, 0.6, n_samples), 8, 512).astype(int)
        found = survey_of(f"{prefix}{number}", lengths.tolist(), BATCH_TOKENS)
        run, _ = register(home, MODEL, "bench", [card], found, Recipe(tokenizer_sha256="0" * 64), BATCH_TOKENS, {})
        tokens = [_tokens(i, n) for i, n in enumerate(lengths)]
        FeedingWorker(home, NoEngine(d_sae, K, 1000 * number), run, found, tokens, texts=True).work()  # type: ignore[arg-type]
    tidy(home)
    return home


def invent_layers(home: Home, n_layers: int) -> list[str]:
    """Profiles of n further layers for every run, without activations: layer 0's, each feature under another number.

    Returns:
        The names of the SAEs, layer 0's first.
    """
    rng = np.random.default_rng(2)
    names = [SAE_NAME]
    for layer in range(1, n_layers + 1):
        moved = rng.permutation(D_SAE)
        with home.database.writing(alone=True) as session:
            first = find_sae(session, SAE_NAME)
            sae = register_sae(session, first.model, "bench", replace(SAE, layer=layer, sha256=f"{layer + 1:064x}"))
            old = list(session.scalars(select(RunSae).where(RunSae.sae_id == first.id)))
            new = [RunSae(run_id=pair.run_id, sae_id=sae.id) for pair in old]
            session.add_all(new)
            session.flush()
            names.append(sae.name)
            pairs = [(a.id, b.id) for a, b in zip(old, new, strict=True)]
            session.execute(update(Shard).where(Shard.sae_id == sae.id).values(state="committed"))
        rows = pa.concat_tables([_moved(home, *pair, moved) for pair in pairs])
        fragments = write(home.store, "profiles", rows)
        publish(home.store, "profiles", lambda fragments=fragments: fragments)
    maintain(home.store, "profiles", lambda: True)
    return names


def _moved(home: Home, old: int, new: int, moved: npt.NDArray[np.int64]) -> pa.Table:
    """The profile of a pair as that of another, feature i as feature moved[i]."""
    row = home.store.rows("profiles", [sample_key(old)])
    profile = Profile(D_SAE)
    profile.n_samples, profile.n_tokens = row.column("n_samples")[0].as_py(), row.column("n_tokens")[0].as_py()
    for name in ("samples_any", "samples_last", "tokens", "sums", "maxima"):
        getattr(profile, name)[moved] = row.column(name).combine_chunks().values.to_numpy()
    profile.histogram[moved] = row.column("histogram").combine_chunks().values.to_numpy().reshape(D_SAE, -1)
    return profile_row(new, profile)


def _tokens(ordinal: int, n: int) -> Tokens:
    counts = np.ones(n, bool)
    counts[0] = False
    starts = np.arange(n, dtype=np.int32) * 4
    return Tokens(ordinal, np.full(n, 5, np.int32), starts, starts + 4, counts)
