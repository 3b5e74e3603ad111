"""From a command to a plan: everything is read and checked, nothing is written, and the model's weights are not touched."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import torch

from indexer.config import IndexConfig
from indexer.logits import AUTO_WORK, logit_work
from indexer.progress import Bar, Progress
from indexer.readers import check_source
from indexer.saes import Release, open_release
from indexer.subject import Described, choose_device, choose_dtype
from indexer.survey import CheckedRows, DatasetSpec, ShardSize, survey
from schema.catalog import check_model, check_sae, known_sae, missing_logits
from schema.errors import InputError
from schema.home import Home
from schema.names import SaeName, check_set, set_from_release
from schema.recipe import Recipe, unescape
from schema.records import SaeCard, Survey

CPU_BATCH_TOKENS = 2_048  # larger ones leave the cache
GPU_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Plan:
    """What will be done, all of it checked."""

    config: IndexConfig
    model: Described
    release: Release
    set_name: str
    saes: list[SaeCard]
    device: torch.device
    dtype: torch.dtype
    batch_tokens: int
    recipe: Recipe
    datasets: list[tuple[DatasetSpec, Survey]]
    logits: list[SaeCard] = field(default_factory=list)
    """The SAEs whose logit effects are still to be made."""


def prepare(config: IndexConfig, home: Home | None, progress: Progress, device: torch.device | None = None) -> Plan:
    """Reads the model's description, the SAEs and the datasets.

    Args:
        home: where it exists already, for what it knows of the SAEs' files.
        device: where the work will be done, if that is not here.

    Raises:
        InputError: anything that would keep the work from being done.
    """
    for _, source in config.datasets:
        check_source(source)
    model = Described(config.model, config.model_name)
    if home is not None:
        with home.database.reading() as session:
            check_model(session, model.card)
    release = open_release(config.sae)
    layers = release.choose(config.layers)
    _check_layers(layers, model, release)
    device = device or choose_device(config.device)
    dtype = choose_dtype(config.dtype, device, model.config)
    batch_tokens = config.batch_tokens or (GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS)
    recipe = _recipe(config, model, dtype)
    datasets = [_survey(config, recipe, name, source, batch_tokens, progress) for name, source in config.datasets]
    for spec, _ in datasets:
        first = next(iter(CheckedRows(spec)))
        model.tokenizer.encode([recipe.render(json.loads(first.record))], [0], recipe)
    set_name = config.set_name or check_set(set_from_release(release.name))
    with progress.bar("checking SAEs", len(layers)) as bar:
        saes = [_card(release, layer, model, set_name, home, bar) for layer in layers]
    logits = _logits(config, model, set_name, saes, device, home, progress)
    return Plan(config, model, release, set_name, saes, device, dtype, batch_tokens, recipe, datasets, logits)


def _logits(
    config: IndexConfig,
    model: Described,
    set_name: str,
    saes: list[SaeCard],
    device: torch.device,
    home: Home | None,
    progress: Progress,
) -> list[SaeCard]:
    """The SAEs whose logits are wanted and not there."""
    wanted = saes if config.logits != "no" else []
    if home is not None and wanted:
        with home.database.reading() as session:
            known = [known_sae(session, str(SaeName(model.card.name, card.layer, set_name))) for card in wanted]
            missing = missing_logits(session, [sae.id for sae in known if sae is not None])
        wanted = [c for c, sae in zip(wanted, known, strict=True) if sae is None or sae.id in missing]
    work = sum(logit_work(card.d_sae, len(model.tokenizer), card.d_model) for card in wanted)
    if config.logits == "auto" and device.type == "cpu" and work > AUTO_WORK * len(wanted):
        progress.say(
            f"logit effects are left out: {work:.1e} multiply-adds are much for a CPU; --logits yes makes them all the same"
        )
        return []
    return wanted


def _check_layers(layers: list[int], model: Described, release: Release) -> None:
    beyond = [layer for layer in layers if layer >= model.card.n_layers]
    if beyond:
        raise InputError(
            f"{release.name} has an SAE of layer {beyond[0]}, but model {model.source} has {model.card.n_layers} blocks, "
            f"0 to {model.card.n_layers - 1}; choose with --layers, or check that the SAEs are this model's"
        )


def _recipe(config: IndexConfig, model: Described, dtype: torch.dtype) -> Recipe:
    return Recipe(
        text_field="" if config.template else config.text_field,
        template=unescape(config.template) if config.template else None,
        max_tokens=min(config.max_tokens, model.card.context or config.max_tokens),
        mask=config.mask,
        dtype=str(dtype).removeprefix("torch."),
        tokenizer_sha256=model.tokenizer.sha256,
    )


def _survey(
    config: IndexConfig, recipe: Recipe, name: str, source: str, batch_tokens: int, progress: Progress
) -> tuple[DatasetSpec, Survey]:
    progress.border()
    spec = DatasetSpec(name, source, recipe, config.id_field, config.limit, config.bad_rows == "skip")
    with progress.bar(f"reading {name}") as bar:
        found = survey(spec, ShardSize.for_batches(batch_tokens), bar.advance)
    if found.skipped:
        progress.say(f"{name}: {found.skipped:,} rows left out, for instance: {found.faults[0]}")
    return spec, found


def _card(release: Release, layer: int, model: Described, set_name: str, home: Home | None, bar: Bar) -> SaeCard:
    """The SAE's card; its tensors are read unless its file is known and unchanged."""
    name = str(SaeName(model.card.name, layer, set_name))
    known = None
    if home is not None:
        with home.database.reading() as session:
            known = known_sae(session, name)
    if known is not None and (known.source, known.file_size, known.file_time) == release.stamp(layer):
        card = SaeCard(**{field: getattr(known, field) for field in SaeCard.__dataclass_fields__})
    else:
        sae = release.load(layer)
        card = release.card(sae, sae.sha256())
    if card.d_model != model.card.d_model:
        raise InputError(
            f"the SAE of layer {layer} in {release.name} reads residuals of width {card.d_model}, "
            f"model {model.source} has width {model.card.d_model}: they do not belong together"
        )
    if known is not None:
        check_sae(known, card)
    bar.advance(1)
    return card
