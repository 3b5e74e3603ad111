"""What Delphi wrote of latents: its explanations, and how they scored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schema.errors import Conflict, InputError
from schema.wire.packs import PackLabel

LATENT = re.compile(r"(?P<hookpoint>.+)_latent(?P<index>\d{1,9})")
_HALF = re.compile("[\ud800-\udfff]")
PREFERRED = "detection"
"""The scorer whose result ranks labels, where there are several; the others are kept in `examples`."""


def read_delphi_labels(folder: Path, hookpoint: str | None, layer: int) -> Iterator[PackLabel]:
    """The explanations of one hook point, each with its scores.

    Raises:
        InputError: there is none, or a file is none of Delphi's.
        Conflict: it cannot be told which hook point is meant.
    """
    files = _explanations(folder)
    name = hookpoint or _only([hook for hook, _ in files], layer, folder)
    explainer, method = _explainer(folder)
    for (hook, index), path in files.items():
        if hook == name:
            text = _loaded(path)
            if not isinstance(text, str) or _HALF.search(text):
                raise InputError(f"{path} is no explanation of Delphi: it holds no text, or half of a character")
            if text.strip():
                yield _label(index, text, _scores(folder, f"{hook}_latent{index}"), explainer, method)


def _explanations(folder: Path) -> dict[tuple[str, int], Path]:
    """(hook point, latent) -> file, by latent."""
    found = {}
    for path in (folder / "explanations").glob("*_latent*.txt"):
        match = LATENT.fullmatch(path.stem)
        if match:
            found[match["hookpoint"], int(match["index"])] = path
    if not found:
        raise InputError(f"{folder} holds no explanations of Delphi (explanations/<hookpoint>_latent<i>.txt)")
    return dict(sorted(found.items()))


def _only(hookpoints: list[str], layer: int, folder: Path) -> str:
    """The hook point that is meant where none is named."""
    names = sorted(set(hookpoints))
    of_layer = [name for name in names if str(layer) in name.split(".")]
    chosen = names if len(names) == 1 else of_layer
    if len(chosen) != 1:
        raise Conflict(f"name the hook point with --hookpoint; {folder} has {', '.join(names)}")
    return chosen[0]


def _explainer(folder: Path) -> tuple[str, str | None]:
    """The model that explained, and how, from the run's configuration where it lies beside."""
    path = folder / "run_config.json"
    config = _loaded(path) if path.exists() else {}
    if not isinstance(config, dict):
        raise InputError(f"{path} is no configuration of Delphi")
    explainer = config.get("explainer_model")
    return (str(explainer) if explainer else "delphi"), f"delphi {config.get('explainer', 'default')}"


def _scores(folder: Path, stem: str) -> dict[str, float]:
    """Scorer -> balanced accuracy, as Delphi's own report counts it; what failed is left out."""
    scores = {}
    for path in sorted((folder / "scores").glob(f"*/{stem.replace('/', '--')}.txt")):
        rows = _loaded(path)
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise InputError(f"{path} is no score of Delphi: it holds no list")
        accuracy = _balanced(rows)
        if accuracy is not None:
            scores[path.parent.name] = accuracy
    return scores


def _balanced(rows: list[dict[str, Any]]) -> float | None:
    """Mean of the shares of firing and of silent examples that were told right; None unless there are both."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        if row.get("prediction") is not None and row.get("activating") is not None:
            right[bool(row["activating"])].append(bool(row["prediction"]) == bool(row["activating"]))
    if not (right[True] and right[False]):
        return None
    return sum(sum(each) / len(each) for each in right.values()) / 2


def _label(index: int, text: str, scores: dict[str, float], explainer: str, method: str | None) -> PackLabel:
    scorer = PREFERRED if PREFERRED in scores else next(iter(scores), None)
    return PackLabel.model_validate(
        {
            "index": index,
            "text": text,
            "author": "delphi",
            "source": "model",
            "explainer": explainer,
            "method": method,
            "score": scores[scorer] if scorer else None,
            "score_method": f"delphi {scorer}, balanced accuracy" if scorer else None,
            "examples": [{"scores": scores}] if len(scores) > 1 else None,
        }
    )


def _loaded(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {str(error)[:200]}") from None
