"""Registering what a run needs: models, SAEs, datasets, runs and their shards. Functions on a Session; none commits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from schema.errors import Conflict
from schema.names import SaeName
from schema.recipe import Recipe
from schema.records import ModelCard, SaeCard, Survey
from schema.tables import Dataset, Model, Run, RunSae, Sae, Shard


def register_model(session: Session, card: ModelCard) -> Model:
    """The model under this name, made if it is new.

    Raises:
        Conflict: the name stands for other weights in this home.
    """
    model = check_model(session, card)
    if model is None:
        model = Model(**{name: getattr(card, name) for name in ModelCard.__dataclass_fields__})
        session.add(model)
        session.flush()
    return model


def check_model(session: Session, card: ModelCard) -> Model | None:
    """The model under this name, if there is one; raises Conflict where it stands for other weights."""
    model = session.scalars(select(Model).where(Model.name == card.name)).one_or_none()
    if model is None:
        return None
    if model.revision != card.revision or model.tokenizer_sha256 != card.tokenizer_sha256:
        what = "weights" if model.revision != card.revision else "a tokenizer"
        raise Conflict(
            f"model {card.name!r} in this home has other {what} than {card.source} "
            f"(revision {model.revision[:12]} against {card.revision[:12]}); {_mend(model)}index it under another name with --model-name"
        )
    return model


def _mend(model: Model) -> str:
    """How to name the revision of the hub that a home knows."""
    commit = len(model.revision) == 40
    return f"go on with --model {model.source.partition('@')[0]}@{model.revision}, or " if commit else ""


def register_sae(session: Session, model: Model, set_name: str, card: SaeCard) -> Sae:
    """The SAE under this name, made if it is new, with the shard that writes its directions.

    Raises:
        Conflict: the name stands for other tensors in this home.
    """
    name = str(SaeName(model.name, card.layer, set_name))
    sae = known_sae(session, name)
    if sae is None:
        fields = {field: getattr(card, field) for field in SaeCard.__dataclass_fields__}
        sae = Sae(model_id=model.id, name=name, set_name=set_name, **fields)
        session.add(sae)
        session.flush()
        session.add(Shard(kind="directions", sae_id=sae.id, ordinal=0))
    else:
        check_sae(sae, card)
        sae.source, sae.file_size, sae.file_time = card.source, card.file_size, card.file_time
    return sae


def check_sae(sae: Sae, card: SaeCard) -> None:
    """Raises Conflict where the name stands for other tensors, or the same with another k."""
    if sae.sha256 != card.sha256:
        raise Conflict(
            f"SAE {sae.name} in this home has tensors {sae.sha256[:12]}, {card.source} holds {card.sha256[:12]}: "
            "activations and labels of one say nothing of the other; index it under another name with --set"
        )
    if (sae.k, sae.activation) != (card.k, card.activation):
        raise Conflict(
            f"SAE {sae.name} was indexed with k={sae.k}, this call says k={card.k}; index it under another name with --set"
        )


def missing_logits(session: Session, saes: Sequence[int]) -> list[int]:
    """Those of the SAEs whose logits nobody has made; a shard that is open or in hands counts as missing."""
    made = select(Shard.sae_id).where(Shard.kind == "logits", Shard.state == "committed", Shard.sae_id.in_(saes))
    done = set(session.scalars(made))
    return [sae for sae in saes if sae not in done]


def open_logits(session: Session, saes: Sequence[int]) -> None:
    """Makes the shards that write these SAEs' logits, where there are none. Call it alone (`Database.writing(alone=True)`)."""
    there = set(session.scalars(select(Shard.sae_id).where(Shard.kind == "logits", Shard.sae_id.in_(saes))))
    session.add_all(Shard(kind="logits", sae_id=sae, ordinal=0) for sae in sorted(set(saes) - there))


def known_sae(session: Session, name: str) -> Sae | None:
    """The SAE of this id, if the home has it."""
    return session.scalars(select(Sae).where(Sae.name == name)).one_or_none()


def register_dataset(session: Session, survey: Survey) -> Dataset:
    """The version of the dataset with these rows, made if it is new, with the shard that writes them."""
    dataset = dataset_version(session, survey)
    if dataset is None:
        newest = session.scalar(select(func.max(Dataset.version)).where(Dataset.name == survey.name)) or 0
        dataset = Dataset(
            name=survey.name,
            version=newest + 1,
            sha256=survey.sha256,
            source=survey.source,
            id_field=survey.id_field,
            fields=survey.fields,
            n_samples=survey.n_samples,
            n_chars=survey.n_chars,
            n_skipped=survey.skipped,
        )
        session.add(dataset)
        session.flush()
        session.add(
            Shard(kind="samples", dataset_id=dataset.id, ordinal=0, stop=survey.n_samples, n_chars=survey.n_chars)
        )
    return dataset


def dataset_version(session: Session, survey: Survey) -> Dataset | None:
    """The version of the dataset with these rows, if the home has it."""
    return session.scalars(
        select(Dataset).where(Dataset.name == survey.name, Dataset.sha256 == survey.sha256)
    ).one_or_none()


def register_run(
    session: Session,
    dataset: Dataset,
    model: Model,
    saes: Sequence[Sae],
    recipe: Recipe,
    survey: Survey,
    batch_tokens: int,
    versions: dict[str, str],
) -> tuple[Run, bool]:
    """The run that gives these SAEs' features of the dataset, and whether it is finished.

    SAEs that an earlier run has finished under the same recipe are not indexed again; an interrupted run is taken up.
    """
    done = finished_pairs(session, dataset, recipe)
    missing = [sae for sae in saes if sae.id not in done]
    if not missing:
        return session.get_one(Run, done[saes[-1].id]), True
    key = _run_key(dataset, recipe, missing)
    run = session.scalars(select(Run).where(Run.key == key)).one_or_none()
    if run is None:
        run = Run(
            key=key,
            dataset_id=dataset.id,
            model_id=model.id,
            recipe=recipe.as_dict(),
            recipe_sha256=recipe.sha256,
            batch_tokens=batch_tokens,
            versions=versions,
        )
        run.pairs = [RunSae(sae_id=sae.id) for sae in missing]
        session.add(run)
        session.flush()
        session.add_all(
            Shard(kind="encode", run_id=run.id, ordinal=i, first=shard.first, stop=shard.stop, n_chars=shard.n_chars)
            for i, shard in enumerate(survey.shards)
        )
    return run, False


def finished_pairs(session: Session, dataset: Dataset, recipe: Recipe) -> dict[int, int]:
    """SAE id -> finished run, of this dataset under this recipe."""
    pairs = (
        select(RunSae.sae_id, RunSae.run_id)
        .join(Run)
        .where(Run.dataset_id == dataset.id, Run.recipe_sha256 == recipe.sha256, Run.finished.is_not(None))
        .order_by(Run.finished)
    )
    return {sae: run for sae, run in session.execute(pairs)}


def _run_key(dataset: Dataset, recipe: Recipe, saes: Sequence[Sae]) -> str:
    what = [dataset.name, dataset.sha256, recipe.sha256, sorted((sae.name, sae.sha256) for sae in saes)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
