"""What steering did, over all choices of an answer; and the proof, as far as there is one, that it was done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schema.errors import WorkFailed
from schema.generation import Choice, Ended
from schema.wire.steering import OpApplied, SteeringApplied


def check_applied(choice: Choice, ended: Ended) -> None:
    """Raises WorkFailed where a choice came back without the operations that it was asked for: such a text is not handed out."""
    if not choice.ops:
        return
    if ended.applied is None:
        raise WorkFailed(
            "the engine did not say that it steered, so its text is not handed out; tell who runs the service"
        )
    done = {(each.op, each.layer): each for each in ended.applied.ops}
    for op in choice.ops:
        found = done.get((op.place, op.layer))
        if found is None or (_is_everywhere(choice, op.place) and found.prompt_tokens < len(choice.ids)):
            raise WorkFailed(
                f"steering.ops.{op.place} ({op.target}, layer {op.layer}) was not applied where it should have been, "
                "so the text is not handed out; tell who runs the service"
            )


def merge(parts: Sequence[tuple[SteeringApplied, int]]) -> SteeringApplied:
    """One account of several choices: tokens add up, means are weighted by the tokens that they are means of.

    Args:
        parts: of each choice, with its number of generated tokens.
    """
    first = parts[0][0]
    return SteeringApplied(
        ops=[_merge([part.ops[place] for part, _ in parts]) for place in range(len(first.ops))],
        condition_tokens=_sum(part.condition_tokens for part, _ in parts),
        kl_first=_mean((part.kl_first, 1) for part, _ in parts),
        kl_mean=_mean((part.kl_mean, n) for part, n in parts),
        engine=first.engine,
        version=first.version,
    )


def _merge(parts: Sequence[OpApplied]) -> OpApplied:
    touched = [part.prompt_tokens + part.generated_tokens for part in parts]
    largest = [part.max_relative_norm for part in parts if part.max_relative_norm is not None]
    means = {
        name: _mean((getattr(part, name), n) for part, n in zip(parts, touched, strict=True))
        for name in ("mean_relative_norm", "activation_before", "activation_after")
    }
    return parts[0].model_copy(
        update={
            "prompt_tokens": sum(part.prompt_tokens for part in parts),
            "generated_tokens": sum(part.generated_tokens for part in parts),
            "max_relative_norm": max(largest, default=None),
            **means,
        }
    )


def _is_everywhere(choice: Choice, place: int) -> bool:
    """Whether an operation must touch each token of the prompt, whatever they are."""
    where = next(op.where for op in choice.ops if op.place == place)
    narrowed = (where.prompt_window, where.prompt_positions, where.tokens)
    excluded = (*where.exclude_prompt_positions, *where.exclude_tokens)
    whole = where.prompt == "all" and narrowed == (None, None, None) and not excluded and not where.skip_special
    return whole and choice.when is None


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(value, n) for value, n in weighted if value is not None and n > 0]
    return sum(value * n for value, n in known) / sum(n for _, n in known) if known else None
