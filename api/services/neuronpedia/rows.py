"""Rows of Neuronpedia's tables made of ours: features, activations, explanations, sources, sets, releases, models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from api.services.exchange.examples import TOP, Examples
from api.services.exchange.logits import Logits
from api.services.exchange.whole import Totals, Whole
from api.services.neuronpedia.names import CREATOR, cuid, hook_name, hub_repository, saelens_id, source_id
from schema.lab import Label
from schema.tables import Model, Sae
from schema.wire.neuronpedia import (
    NpActivation,
    NpExplanation,
    NpFeatureColumns,
    NpModel,
    NpRelease,
    NpScore,
    NpSource,
    NpSourceSet,
    NpUser,
)


def feature_row(sae: Sae, totals: Totals, feature: int, logits: Logits) -> NpFeatureColumns:
    """One feature's counts and logits."""
    heights, middles = totals.histogram(feature)
    return NpFeatureColumns(
        modelId=sae.model.name,
        layer=source_id(sae),
        index=str(feature),
        sourceSetName=sae.set_name,
        creatorId=CREATOR,
        createdAt=sae.created_at,
        maxActApprox=float(totals.largest[feature]),
        frac_nonzero=totals.density(feature),
        hookName=hook_name(sae),
        pos_str=logits.top_tokens,
        pos_values=logits.top_values,
        neg_str=logits.bottom_tokens,
        neg_values=logits.bottom_values,
        freq_hist_data_bar_heights=heights,
        freq_hist_data_bar_values=middles,
    )


def activation_rows(sae: Sae, feature: int, examples: Examples) -> list[NpActivation]:
    """A feature's examples, those of the top first."""
    rows = []
    # their client takes a share only; SAEDashboard's -1 for the strongest stops it
    strongest = sum(example.group == TOP for example in examples.found) / max(examples.n_samples, 1)
    for example in examples.found:
        top = example.group == TOP
        values = example.activations()
        sample = example.sample
        rows.append(
            NpActivation(
                id=cuid(
                    sae.sha256,
                    feature,
                    sample.dataset,
                    sample.id,
                    example.group,
                    example.first,
                    example.values.tobytes().hex(),
                ),
                tokens=example.tokens(),
                values=values,
                dataIndex=sample.id,
                dataSource=sample.dataset,
                modelId=sae.model.name,
                layer=source_id(sae),
                source=source_id(sae),
                index=str(feature),
                maxValue=example.maximum,
                maxValueTokenIndex=example.strongest,
                minValue=min(values),
                binMin=-1.0 if top else examples.edges[example.group],
                binMax=examples.found[0].maximum if top else examples.edges[example.group + 1],
                binContains=strongest if top else examples.shares[example.group],
                qualifyingTokenIndex=example.strongest,
                creatorId=CREATOR,
                createdAt=sae.created_at,
            )
        )
    return rows


def explanation_row(sae: Sae, label: Label) -> NpExplanation:
    """One label."""
    scores = []
    if label.score is not None:
        scores.append(
            NpScore(id=cuid(label.uid, "score"), value=label.score, explanationScoreTypeName=label.score_method)
        )
    return NpExplanation(
        id=label.uid.removeprefix("neuronpedia:"),  # as one that came from there had it
        modelId=sae.model.name,
        layer=source_id(sae),
        source=source_id(sae),
        index=str(label.feature),
        description=label.text,
        authorId=label.author,
        authorName=label.author,
        typeName=label.method,
        explanationModelName=label.explainer,
        triggeredByUser=NpUser(id=label.author, name=label.author) if label.source == "person" else None,
        triggeredById=label.author if label.source == "person" else None,
        scores=scores,
        notes=f"licence: {label.licence}" if label.licence else None,
        createdAt=label.created_at,
    )


def model_row(model: Model, saes: Sequence[Sae]) -> NpModel:
    """A model, with its real number of layers: 0 breaks their graph page."""
    owner = hub_repository(model.source)
    default = saes[len(saes) // 2] if saes else None
    return NpModel(
        id=model.name,
        displayName=PurePath(model.source).name or model.name,
        displayNameShort=model.name,
        layers=model.n_layers,
        dimension=model.d_model,
        instruct=any(word in model.name for word in ("instruct", "-it", "chat")),
        tlensId=owner,
        owner=owner.split("/")[0] if owner else CREATOR,
        defaultSourceSetName=default.set_name if default else None,
        defaultSourceId=source_id(default) if default else None,
        creatorId=CREATOR,
        createdAt=model.created_at,
        updatedAt=model.created_at,
        website=f"https://huggingface.co/{owner}" if owner else None,
    )


def source_row(sae: Sae, whole: Whole | None = None, *, live: bool = False) -> NpSource:
    """One SAE; with `whole`, also what it was run over."""
    release, id_ = saelens_id(sae)
    sources = whole.sources if whole else []
    return NpSource(
        id=source_id(sae),
        modelId=sae.model.name,
        setName=sae.set_name,
        creatorId=CREATOR,
        hasDashboards=bool(sources) or whole is None,
        inferenceEnabled=live,
        saelensConfig={
            "architecture": sae.activation,
            "d_in": sae.d_model,
            "d_sae": sae.d_sae,
            "k": sae.k,
            "hook_name": hook_name(sae),
            "sha256": sae.sha256,
        },
        saelensRelease=release,
        saelensSaeId=id_,
        hfRepoId=hub_repository(sae.release),
        hfFolderId=f"layer{sae.layer}.sae.pt" if hub_repository(sae.release) else None,
        dataset=", ".join(source.name for source in sources) or None,
        num_prompts=sum(source.n_samples for source in sources) if sources else None,
        num_tokens_in_prompt=max((source.recipe.max_tokens for source in sources), default=None),
        notes=f"mask: {whole.subject.mask}; tensors SHA-256 {sae.sha256}" if whole else None,
        createdAt=sae.created_at,
    )


def source_set_row(sae: Sae) -> NpSourceSet:
    """The set that an SAE belongs to."""
    return NpSourceSet(
        modelId=sae.model.name,
        name=sae.set_name,
        description=f"{PurePath(sae.release).name}: residual stream, {sae.d_sae:,} features",
        type="Residual Stream",
        creatorId=CREATOR,
        creatorName=_owner(sae),
        urls=_urls(sae),
        releaseName=release_name(sae),
        hasDashboards=True,
        createdAt=sae.created_at,
    )


def release_row(sae: Sae) -> NpRelease:
    """The release that an SAE came with."""
    return NpRelease(
        name=release_name(sae),
        description=f"SAEs of {sae.model.name}: {sae.activation}, {sae.d_sae:,} features",
        descriptionShort=PurePath(sae.release).name,
        creatorId=CREATOR,
        creatorName=_owner(sae),
        creatorNameShort=_owner(sae),
        urls=_urls(sae),
        defaultSourceSetName=sae.set_name,
        defaultSourceId=source_id(sae),
        createdAt=sae.created_at,
    )


def release_name(sae: Sae) -> str:
    return PurePath(sae.release).name.lower()


def _owner(sae: Sae) -> str:
    repository = hub_repository(sae.release)
    return repository.split("/")[0] if repository else CREATOR


def _urls(sae: Sae) -> list[str]:
    repository = hub_repository(sae.release)
    return [f"https://huggingface.co/{repository}"] if repository else []
