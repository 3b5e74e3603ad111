"""A request for texts, checked and put into the engine's words. Nothing is queued before all of it is right."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from api.services.generation.conversation import read_conversation
from api.services.library import Library
from api.services.steering.resolve import resolve
from api.services.version import running_version
from schema.errors import BeyondContext, InputError, NotLoaded, WorkFailed
from schema.generation import Choice, Generator, Sampling
from schema.names import model_slug
from schema.wire.chat import DEFAULT_TOKENS as CHAT_TOKENS
from schema.wire.chat import ChatBody
from schema.wire.completions import DEFAULT_TOKENS, CompletionBody
from schema.wire.sampling import MOST_CHOICES, GenerationBody

SEED_BITS = 53
"""What a number in JavaScript holds exactly."""
_LENGTH = "This model's maximum context length is"
"""OpenAI's own words: some of its clients know the case by them, and shorten what they send."""


@dataclass(frozen=True)
class Prepared:
    """A request as the engine takes it."""

    model: str
    fingerprint: str
    choices: tuple[Choice, ...]
    """Those asked for, prompt by prompt; with `compare` the same once more, unsteered."""
    seeds: tuple[int, ...]
    """Of the choices asked for."""
    prompt_tokens: int
    """Of all prompts, each counted once."""
    steered: bool
    compare: bool
    logprobs: bool
    echo: tuple[str, ...] | None = None
    """The prompt of each choice asked for, where it is to stand in front."""

    @property
    def n(self) -> int:
        """Choices asked for."""
        return len(self.seeds)

    @property
    def most_tokens(self) -> int:
        """What `usage` may come to."""
        return self.prompt_tokens + sum(choice.sampling.max_tokens for choice in self.choices)


def prepare_completion(library: Library, generator: Generator, body: CompletionBody) -> Prepared:
    """Prompts to go on from.

    Raises:
        NotFound: another model than the loaded one, or a feature, vector or rule that is not there.
        InputError: prompts, lengths or operations that cannot be.
        WorkFailed: the engine is out of order.
    """
    _check_model(generator, body)
    prompts = _prompts(body)
    ids = [generator.tokenize(prompt) for prompt in prompts]
    logprobs = body.logprobs
    made = _prepare(library, generator, body, ids, body.max_tokens, DEFAULT_TOKENS, logprobs)
    if not body.echo:
        return made
    texts = [_spelled(generator, prompt) for prompt in prompts]
    return replace(made, echo=tuple(text for text in texts for _ in range(body.n or 1)))


def prepare_chat(library: Library, generator: Generator, body: ChatBody) -> Prepared:
    """A conversation to go on with. Raises what `prepare_completion` raises."""
    _check_model(generator, body)
    ids = read_conversation(generator, body)
    asked = body.max_completion_tokens or body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _prepare(library, generator, body, [ids], asked, CHAT_TOKENS, logprobs)


def seed_of(seed: int, index: int) -> int:
    """The seed of one choice: the request's own for the first, so that each can be repeated alone by its own."""
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def _prepare(
    library: Library,
    generator: Generator,
    body: GenerationBody,
    prompts: Sequence[Sequence[int]],
    asked: int | None,
    default: int,
    logprobs: int | None,
) -> Prepared:
    steering, n = body.steering, len(prompts) * (body.n or 1)
    compare = steering is not None and steering.compare
    if n * (1 + compare) > MOST_CHOICES:
        raise InputError(
            f"{len(prompts)} prompts with n={body.n or 1}{' and compare' if compare else ''} make {n * (1 + compare):,} texts, "
            f"more than the {MOST_CHOICES} of one request"
        )
    ops, condition = resolve(library, steering, generator.name) if steering else ((), None)
    seed = secrets.randbits(SEED_BITS) if body.seed is None else body.seed
    seeds = tuple(seed_of(seed, index) for index in range(n))
    plain = [
        Choice(tuple(ids), _sampling(body, _room(generator, len(ids), asked, default), seed, logprobs))
        for ids, seed in zip([ids for ids in prompts for _ in range(body.n or 1)], seeds, strict=True)
    ]
    kl = steering.kl if steering else "off"
    choices = [replace(each, ops=ops, when=condition, kl=kl) for each in plain]
    return Prepared(
        model=generator.name,
        fingerprint=f"scopebase-{running_version()}-{generator.engine}",
        choices=(*choices, *(plain if compare else ())),
        seeds=seeds,
        prompt_tokens=sum(map(len, prompts)),
        steered=steering is not None,
        compare=compare,
        logprobs=logprobs is not None,
    )


def _check_model(generator: Generator, body: GenerationBody) -> None:
    fault = generator.fault()
    if fault is not None:
        raise WorkFailed(fault)
    if body.model is not None and generator.name not in (body.model, model_slug(body.model)):
        raise NotLoaded(
            f"model {body.model!r} is not loaded here, {generator.name} is; name that one, or leave model out"
        )


def _prompts(body: CompletionBody) -> list[str | list[int]]:
    """Each prompt, whatever form the request has."""
    given = body.prompt
    if isinstance(given, str):
        return [given]
    return [given] if isinstance(given[0], int) else list(given)


def _spelled(generator: Generator, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return generator.read([prompt], (), mask="none", max_tokens=len(prompt))[0].text


def _room(generator: Generator, n_prompt: int, asked: int | None, default: int) -> int:
    """Most tokens of a choice.

    Raises:
        BeyondContext: the model cannot take so many.
    """
    context = generator.context
    if context is None:
        return asked or default
    left = context - n_prompt
    if left < 1:
        raise BeyondContext(
            f"{_LENGTH} {context:,} tokens with the answer, and the prompt alone has {n_prompt:,}; shorten the prompt"
        )
    if asked is not None and asked > left:
        raise BeyondContext(
            f"{_LENGTH} {context:,} tokens, and the prompt's {n_prompt:,} with max_tokens {asked:,} are {n_prompt + asked:,}; "
            f"ask for at most {left:,}, or shorten the prompt"
        )
    return min(default, left) if asked is None else asked


def _sampling(body: GenerationBody, max_tokens: int, seed: int, logprobs: int | None) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        seed=seed % (1 << 63),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        stop=body.stops,
        ignore_end=bool(body.ignore_eos),
        logprobs=logprobs,
    )
