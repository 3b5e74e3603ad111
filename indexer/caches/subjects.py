"""Whose activations a cache holds: the model, the SAE and the tokenizer, from the home or from their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from indexer.caches.delphi import Cache
from indexer.progress import Progress
from indexer.saes import Release, open_release
from indexer.subject import Described
from indexer.tokens import Tokenizer
from schema.catalog import check_model, check_sae, known_sae
from schema.errors import Conflict, InputError, NotFound
from schema.home import Home
from schema.lookup import find_sae
from schema.names import SaeName, check_set, set_from_release
from schema.records import ModelCard, SaeCard
from schema.tables import Sae


@dataclass(frozen=True)
class Taking:
    """What is taken in, as it was asked."""

    folder: Path
    """The hook point's folder of the cache."""
    sae: str | None
    """An SAE of the home, or a release as `scopebase index` takes it; the home's only one unless given."""
    dataset: str
    layer: int | None = None
    """Of the release; by the hook point's name unless given."""
    model: str | None = None
    """By the home, or what the cache says, unless given."""
    model_name: str | None = None
    set_name: str | None = None
    mask: str | None = None
    """Under which the activations were made; what the cache says, else `none`."""
    dtype: str | None = None


@dataclass(frozen=True)
class Subjects:
    """Whose activations the cache holds."""

    model: ModelCard
    sae: SaeCard
    set_name: str
    tokenizer: Tokenizer | None
    release: Release | None
    known: Sae | None


def find_subjects(asked: Taking, cache: Cache, home: Home | None, progress: Progress) -> Subjects:
    """The SAE of the home under this name, else the one of a release.

    Raises:
        InputError, Conflict: there is none, or it cannot be that of the cache's hook point.
    """
    known = _known(asked.sae, home)
    if known is None:
        return _of_release(asked, cache, home)
    if asked.layer is not None and asked.layer != known.layer:
        raise InputError(f"--layer {asked.layer}: SAE {known.name} is of layer {known.layer}")
    _check_hookpoint(asked.folder.name, known.layer)
    model = ModelCard(**{name: getattr(known.model, name) for name in ModelCard.__dataclass_fields__})
    sae = SaeCard(**{name: getattr(known, name) for name in SaeCard.__dataclass_fields__})
    tokenizer = _tokenizer(asked.model or model.source, model, progress)
    return Subjects(model, sae, known.set_name, tokenizer, None, known)


def _known(name: str | None, home: Home | None) -> Sae | None:
    if home is None or (name is not None and Path(name).expanduser().exists()):
        return None
    with home.database.reading() as session:
        try:
            return find_sae(session, name)
        except NotFound:
            return None


def _tokenizer(source: str, model: ModelCard, progress: Progress) -> Tokenizer | None:
    """The model's tokenizer if it can be had, and is the one that the home knows."""
    try:
        tokenizer = Described(source).tokenizer
    except InputError as error:
        progress.say(f"samples are stored as token ids, because the tokenizer cannot be had: {error}")
        return None
    if tokenizer.sha256 != model.tokenizer_sha256:
        raise Conflict(
            f"the tokenizer of {source} is not that of model {model.name} in this home; give its own with --model"
        )
    return tokenizer


def _of_release(asked: Taking, cache: Cache, home: Home | None) -> Subjects:
    """An SAE that the home need not know yet."""
    if asked.sae is None:
        raise InputError("name the SAE with --sae: its release, as 'scopebase index' takes it")
    release = open_release(asked.sae)
    layer = asked.layer if asked.layer is not None else _layer(asked.folder.name, release)
    release.choose(str(layer))
    _check_hookpoint(asked.folder.name, layer)
    source = asked.model or cache.config.get("model_name")
    if not isinstance(source, str) or not source:
        raise InputError(f"{asked.folder} does not say which model it is of; name it with --model")
    model = Described(source, asked.model_name)
    sae = release.load(layer)
    if layer >= model.card.n_layers or sae.d_model != model.card.d_model:
        raise InputError(
            f"the SAE of layer {layer} in {release.name} has width {sae.d_model}, model {source} has "
            f"{model.card.n_layers} blocks of width {model.card.d_model}: they do not belong together"
        )
    set_name = check_set(asked.set_name or set_from_release(release.name))
    card = release.card(sae, sae.sha256())
    if home is not None:
        _check_home(home, model.card, set_name, card)
    return Subjects(model.card, card, set_name, model.tokenizer, release, None)


def _check_home(home: Home, model: ModelCard, set_name: str, sae: SaeCard) -> None:
    """Refuses names that stand for other weights or tensors in the home."""
    with home.database.reading() as session:
        check_model(session, model)
        known = known_sae(session, str(SaeName(model.name, sae.layer, set_name)))
        if known is not None:
            check_sae(known, sae)


def _layer(hookpoint: str, release: Release) -> int:
    numbers = [int(part) for part in hookpoint.split(".") if part.isdecimal() and len(part) < 5]
    if len(numbers) == 1:
        return numbers[0]
    if len(release.files) == 1:
        return next(iter(release.files))
    raise InputError(f"which layer hook point {hookpoint} is cannot be told; give it with --layer")


def _check_hookpoint(hookpoint: str, layer: int) -> None:
    """Refuses a name that says another layer, or something else of the layer than what it returns."""
    parts = hookpoint.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal() and place and parts[place - 1] in ("layers", "h", "blocks"):
            if int(part) != layer:
                raise Conflict(f"hook point {hookpoint} is of layer {int(part)}, the SAE of layer {layer}")
            if parts[place + 1 :] not in ([], ["hook_resid_post"]):
                raise InputError(
                    f"hook point {hookpoint} is not what block {layer} returns, the only place that is read"
                )
