"""What a sweep's request comes to: the token ids of its prompts, its points, and the operations of each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field
from sqlalchemy import select

from api.services.evidence import Place, read_texts
from api.services.features.reading import DEFAULT_MASK, usual_mask
from api.services.library import Library
from api.services.slices import select_samples
from api.services.steering.models import find_model
from api.services.steering.resolve import resolve
from api.services.sweeps.controls import check_directions, draw_features, with_directions, with_features
from api.services.sweeps.effects import saes_of
from schema.errors import InputError, NotFound
from schema.generation import Choice, Condition, Generator, Op, Sampling
from schema.lookup import Source, find_all_sources, find_sae, find_sources, newest_snapshot
from schema.tables import Model, Sae
from schema.wire.base import Provenance, Wire
from schema.wire.steering import Steering
from schema.wire.sweeps import PointKind, PromptSlice, SweepMade, SweepRequest

PACKAGES = ("scopebase", "torch", "transformers")


class PlannedPrompt(Wire):
    text: str
    ids: list[int]


class PlannedPoint(Wire):
    kind: PointKind
    strength: float
    control: int | None = Field(default=None, description="Which of the random features or directions")


class Plan(Wire):
    """As it is stored with the sweep: a sweep that goes on does what it began."""

    model_config = ConfigDict(extra="ignore")
    prompts: list[PlannedPrompt]
    points: list[PlannedPoint]
    features: list[list[str]]
    """One a control and operation."""
    made: SweepMade
    provenance: list[Provenance]


Operations = tuple[tuple[Op, ...], Condition | None]


def make_plan(library: Library, generator: Generator, request: SweepRequest) -> Plan:
    """Looks everything up and refuses what cannot be done.

    Raises:
        NotFound, Conflict, InputError: see `resolve`; an effect, dataset, prompt or control that is not there or does not fit.
    """
    operations = {s: operations_at(library, generator.name, request, s) for s in _strengths(request)}
    ops = operations[request.strengths[0]][0]
    check_directions(ops, request.controls.random_directions)
    saes = saes_of(library, generator.name, request.effects)
    prompts = _prompts(library, generator, request)
    _check_context(generator, prompts, request)
    mask, provenance = _reading(library, dict.fromkeys([*saes, *(op.sae for op in ops if op.sae)]))
    return Plan(
        prompts=prompts,
        points=_points(request, ops),
        features=draw_features(library, generator.name, ops, request.controls.random_features, request.seed),
        made=_made(library, generator, ops, prompts, mask),
        provenance=provenance,
    )


def operations_at(library: Library, model: str, request: SweepRequest, strength: float) -> Operations:
    """The target's operations at a strength."""
    scaled = [spec.model_copy(update={"strength": spec.strength * strength}) for spec in request.target]
    return resolve(library, Steering(ops=scaled, when=request.when, compare=False, kl="off"), model)


def operations_of(
    library: Library, model: str, request: SweepRequest, plan: Plan, point: PlannedPoint
) -> tuple[Operations, str | None]:
    """A point's operations, and the name of its control."""
    if point.kind == "unsteered":
        return ((), None), None
    ops, when = operations_at(library, model, request, point.strength)
    if point.kind == "random_feature":
        assert point.control is not None
        names = plan.features[point.control]
        return (with_features(library, ops, names), when), " + ".join(names)
    if point.kind == "random_direction":
        assert point.control is not None
        seed = direction_seed(request, point.control)
        return (with_directions(ops, seed), when), f"direction {seed}"
    return (ops, when), None


def choices_of(
    request: SweepRequest, prompts: Sequence[PlannedPrompt], operations: Operations
) -> list[tuple[int, int, Choice]]:
    """(prompt, sample, what to generate). Seeds are the same at every point, so that differences come from the steering."""
    ops, when = operations
    found = []
    for place, prompt in enumerate(prompts):
        for sample in range(request.samples):
            sampling = Sampling(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=sample_seed(request.seed, place, sample),
            )
            found.append((place, sample, Choice(tuple(prompt.ids), sampling, ops, when if ops else None)))
    return found


def shown_text(text: str) -> str:
    """A text as it is kept to be shown: databases take no NUL, which models of bytes may write. The token ids keep it."""
    return text.replace("\0", "\ufffd")


def sample_seed(seed: int, prompt: int, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt}/{sample}".encode()).digest()[:4]) >> 1


def direction_seed(request: SweepRequest, control: int) -> int:
    return sample_seed(request.seed, -1, control)


def _strengths(request: SweepRequest) -> list[float]:
    return [*request.strengths, *_negatives(request)]


def _negatives(request: SweepRequest) -> list[float]:
    if not request.controls.negative or any(spec.mode != "add" for spec in request.target):
        return []
    return [-s for s in request.strengths if -s not in request.strengths]


def _points(request: SweepRequest, ops: Sequence[Op]) -> list[PlannedPoint]:
    """Unsteered first, for it is what all else is held against; then each strength with its controls, the smallest first."""
    points = [PlannedPoint(kind="unsteered", strength=0.0)]
    kinds: list[tuple[PointKind, int]] = [
        ("random_feature", request.controls.random_features),
        ("random_direction", request.controls.random_directions),
    ]
    for strength in sorted(request.strengths, key=lambda s: (abs(s), -s)):
        points.append(PlannedPoint(kind="target", strength=strength))
        points += [PlannedPoint(kind=kind, strength=strength, control=place) for kind, n in kinds for place in range(n)]
    negative = sorted(_negatives(request), key=abs)
    return points + [PlannedPoint(kind="target", strength=strength) for strength in negative]


def _prompts(library: Library, generator: Generator, request: SweepRequest) -> list[PlannedPrompt]:
    given, cut = request.prompts, None
    if isinstance(given, PromptSlice):
        cut, texts = given.tokens, _beginnings(library, request, given)
    else:
        texts = list(given)
    prompts = []
    for text in texts:
        if request.chat:
            said = text if cut is None else _cut(generator, text, cut)[0]
            prompts.append(
                PlannedPrompt(text=shown_text(said), ids=generator.chat([{"role": "user", "content": said}]))
            )
        else:
            shown, ids = (text, generator.tokenize(text)) if cut is None else _cut(generator, text, cut)
            prompts.append(PlannedPrompt(text=shown_text(shown), ids=ids))
    return prompts


def _cut(generator: Generator, text: str, n: int) -> tuple[str, list[int]]:
    """A text's first n tokens."""
    read = generator.read([text], [], mask="none", max_tokens=n)[0]
    return read.text[: int(read.ends.max())], read.ids[:n].tolist()


def _beginnings(library: Library, request: SweepRequest, given: PromptSlice) -> list[str]:
    """Texts of a dataset: the first ones or random ones, in their order there."""
    source = _source(library, given.dataset)
    ordinals = select_samples(library, source, given.where)
    if len(ordinals) < given.n:
        raise InputError(
            f"prompts: {given.n} texts of {given.dataset} are asked for and {len(ordinals)} are there; ask for fewer"
        )
    if given.draw == "random":
        ordinals = np.sort(np.random.default_rng(request.seed).choice(ordinals, given.n, replace=False))
    places = [Place(source, int(ordinal)) for ordinal in ordinals[: given.n]]
    texts = read_texts(library.store, places)
    return [texts[place.key].text for place in places]


def _source(library: Library, dataset: str) -> Source:
    """A dataset through any SAE that it was indexed with: its texts are the same."""
    with library.home.database.reading() as session:
        for sae in session.scalars(select(Sae.name).order_by(Sae.name)):
            try:
                return find_sources(session, sae, [dataset]).sources[0]
            except NotFound as error:
                refused = error
    raise refused


def _check_context(generator: Generator, prompts: Sequence[PlannedPrompt], request: SweepRequest) -> None:
    longest = max(len(prompt.ids) for prompt in prompts)
    if generator.context is not None and longest + request.max_tokens > generator.context:
        raise InputError(
            f"the longest prompt has {longest:,} tokens and {request.max_tokens:,} are to be generated, but {generator.name} "
            f"reads {generator.context:,} at most; lower max_tokens or cut the prompts"
        )


def _reading(library: Library, names: Any) -> tuple[str, list[Provenance]]:
    """The mask that texts are read back with, and where each SAE stands."""
    found, mask = [], DEFAULT_MASK
    with library.home.database.reading() as session:
        for place, name in enumerate(names):
            sae = find_sae(session, name)
            mask = usual_mask(session, sae) if not place else mask
            try:
                runs = {source.name: source.run for source in find_all_sources(session, name)[0].sources}
            except NotFound:
                runs = {}
            snapshot = newest_snapshot(session)
            found.append(
                Provenance(sae=sae.name, sae_sha256=sae.sha256, runs=runs, pool="any", mask=mask, snapshot=snapshot)
            )
    return mask, found


def _made(
    library: Library, generator: Generator, ops: Sequence[Op], prompts: Sequence[PlannedPrompt], mask: str
) -> SweepMade:
    with library.home.database.reading() as session:
        model: Model = find_model(session, generator.name)
    ids = "\n".join(" ".join(map(str, prompt.ids)) for prompt in prompts)
    return SweepMade(
        engine=generator.engine,
        versions={name: found for name in PACKAGES if (found := _version(name))},
        dtype=getattr(generator, "dtype", None),
        model=model.name,
        revision=model.revision,
        tokenizer_sha256=generator.tokenizer_sha256,
        vectors=[hashlib.sha256(op.vector.astype("<f4").tobytes()).hexdigest() for op in ops],
        prompts_sha256=hashlib.sha256(ids.encode()).hexdigest(),
        n_prompts=len(prompts),
        mask=mask,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
