"""Other tools' names of an SAE, for those who come with one.

m/12-set                                        ours
m@12-set                                        Neuronpedia, as text
Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_100#layer12  the release and the layer's file
SAE-Res-Qwen3-8B-Base-W64K-L0_100/layer12       the same without its owner
qwen-scope-3-8b-base-w64k-l100/layer12          SAELens
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from schema.tables import Sae

_LAYER = re.compile(r"(?P<release>.+?)[#/]layer_?(?P<layer>\d+)(?:\.sae\.pt)?")
_QWEN_SCOPE = re.compile(r"SAE-Res-Qwen(?P<model>.+)-W(?P<width>\w+)-L0_(?P<k>\d+)", re.IGNORECASE)


def saelens_release(release: str) -> str | None:
    """What SAELens calls a Qwen-Scope release; None for any other."""
    match = _QWEN_SCOPE.fullmatch(_base(release))
    return f"qwen-scope-{match['model']}-w{match['width']}-l{match['k']}".lower() if match else None


def by_alias(saes: Iterable[Sae], text: str) -> Sae | None:
    """The SAE that another tool calls so; None where none, or more than one, is called so."""
    wanted = text.strip()
    found = [sae for sae in saes if any(_same(alias, wanted) for alias in _aliases(sae))]
    return found[0] if len(found) == 1 else None


def split_layer(text: str) -> tuple[str, int] | None:
    """`<release>#layer12` or `<release>/layer12` in its parts."""
    match = _LAYER.fullmatch(text.strip())
    return (match["release"], int(match["layer"])) if match else None


def _aliases(sae: Sae) -> Iterator[str]:
    yield f"{sae.model.name}@{sae.layer}-{sae.set_name}"
    names = {sae.release, _base(sae.release), saelens_release(sae.release)}
    yield from (f"{name}/layer{sae.layer}" for name in names if name)


def _same(alias: str, wanted: str) -> bool:
    parts = split_layer(wanted)
    return alias.lower() == (f"{parts[0]}/layer{parts[1]}" if parts else wanted).lower()


def _base(release: str) -> str:
    return release.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]
