"""What an explainer model is asked, and what its answers mean. Texts in, texts out: knows neither stores nor endpoints.

Explaining: samples in which a feature fires, the firing tokens between << >>. Detection: does the label tell held-out samples that
fire the feature from samples of the same datasets that do not (Delphi's detection score)?
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from schema.errors import WorkFailed
from schema.wire.questions import SampleProof

Messages = list[dict[str, str]]

METHOD = "top-tokens-1"
AROUND = 160
"""Characters shown on either side of the strongest token."""
LONGEST = 300
"""Characters of a label; more is a chat, not a label."""
EXPLAIN = (
    "You study one feature of a language model. You are given texts in which it fires; the tokens on which it fires stand between "
    "<< and >>. Say in one phrase of at most 20 words what these tokens or their contexts have in common. Answer with the phrase alone."
)
DETECT = (
    "You are told what a feature of a language model is said to react to, and given numbered texts. Answer with a JSON list of the "
    "numbers of the texts in which it should fire, such as [1, 4], and with nothing else; [] if in none."
)


class Unusable(WorkFailed):
    """An answer that is no answer."""


def explanation(samples: Sequence[SampleProof], promoted: Sequence[str]) -> Messages:
    """What is asked for a label."""
    texts = "\n".join(f"{i}. {marked(sample)}" for i, sample in enumerate(samples, start=1))
    raised = f"\n\nThe feature raises the probability of: {', '.join(map(repr, promoted))}" if promoted else ""
    return [{"role": "system", "content": EXPLAIN}, {"role": "user", "content": texts + raised}]


def detection(label: str, texts: Sequence[str]) -> Messages:
    """What is asked for a score."""
    numbered = "\n".join(f"{i}. {one_line(text)}" for i, text in enumerate(texts, start=1))
    content = f"The feature is said to react to: {label}\n\n{numbered}"
    return [{"role": "system", "content": DETECT}, {"role": "user", "content": content}]


def read_label(answer: str) -> str:
    """The label in an answer.

    Raises:
        Unusable: there is none.
    """
    said = re.sub(r"(?s)<think>.*?(</think>|$)", "", answer).strip()
    first = next((line.strip() for line in said.splitlines() if line.strip()), "")
    label = re.sub(r"(?i)^(label|explanation|phrase)\s*:\s*", "", first).strip().strip("\"'*`").strip()
    if not label:
        raise Unusable("the answer is empty")
    if len(label) > LONGEST:
        raise Unusable(f"the answer is {len(label):,} characters long, no label")
    return label


def read_numbers(answer: str, n: int) -> set[int]:
    """The numbers from 1 to n in an answer.

    Raises:
        Unusable: it is no list of such numbers.
    """
    said = re.sub(r"(?s)<think>.*?(</think>|$)", "", answer)
    lists = re.findall(r"\[[\d\s,]*\]", said)
    try:
        numbers = set(json.loads(lists[-1])) if lists else None
    except ValueError:
        numbers = None
    if numbers is None or not numbers <= set(range(1, n + 1)):
        raise Unusable(f"asked for a JSON list of numbers from 1 to {n}, it answered {answer.strip()[:80]!r}")
    return numbers


def marked(sample: SampleProof) -> str:
    """The text around a sample's strongest token, firing tokens between << >>."""
    if not sample.tokens:
        return one_line(sample.text[: 2 * AROUND])
    begin, stop = _around(sample)
    parts, at = [], begin
    for token in sorted(sample.tokens, key=lambda token: token.start):
        if token.start < at or token.end > stop:
            continue
        parts += [sample.text[at : token.start], "<<", sample.text[token.start : token.end], ">>"]
        at = token.end
    return one_line("".join([*parts, sample.text[at:stop]]))


def plain(sample: SampleProof) -> str:
    """The same without marks."""
    begin, stop = _around(sample) if sample.tokens else (0, 2 * AROUND)
    return one_line(sample.text[begin:stop])


def _around(sample: SampleProof) -> tuple[int, int]:
    strongest = max(sample.tokens, key=lambda token: token.activation)
    return max(0, strongest.start - AROUND), strongest.end + AROUND


def one_line(text: str) -> str:
    return " ".join(text.split())
