"""Steering vectors: a feature's direction, saved ones, and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schema.wire.base import Page
from schema.wire.vectors import FeatureVector, SavedVector, VectorFormat, VectorItem
from scopebase.client.asking import Asking
from scopebase.client.rows import Rows


class Vectors(Asking):
    def feature_vector(self, feature: str, *, neighbours: int = 0, as_of: int | None = None) -> FeatureVector:
        """A feature's decoder column, how large its activations usually are, and strengths to begin with."""
        asked = {"neighbours": neighbours, "as_of": as_of}
        return self._get("/steering-vectors/{feature}", FeatureVector, asked, feature=feature)

    def vector(self, name: str) -> SavedVector:
        """A saved vector, `<name>` or `<name>@<version>`, with its numbers."""
        return self._get("/steering-vectors/{name}", SavedVector, {}, name=name)

    def vectors(self, name: str | None = None, **which: Any) -> Rows[VectorItem]:
        """Saved vectors, narrowed by `model`, `layer`, `author`, `made`, `text`, `deleted`; with a name, every version of it."""
        return self._all("/steering-vectors", Page[VectorItem], {"name": name, **which})

    def save_vector(
        self,
        name: str,
        components: Sequence[Mapping[str, Any]] | None = None,
        *,
        decoded_means: Mapping[str, Any] | None = None,
        residual_means: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> SavedVector:
        """The next version of a vector: a sum of components, or a difference of means. Needs the scope `write`."""
        means = {"decoded_means": decoded_means, "residual_means": residual_means}
        return self._post("/steering-vectors", SavedVector, {"name": name, "components": components, **means, **more})

    def delete_vector(self, name: str) -> Page[VectorItem]:
        """Takes a version, or every version of a name, out of use. Needs the scope `write`."""
        return self._delete("/steering-vectors/{name}", Page[VectorItem], {}, name=name)

    def export_vector(self, name: str, to: str | Path, format: VectorFormat = "safetensors") -> Path:
        """A feature's direction or a saved vector, as a file."""
        return self._save("GET", f"/steering-vectors/{name}", to, params={"format": format})

    def import_vector(
        self,
        file: str | Path,
        name: str | None = None,
        *,
        model: str | None = None,
        description: str | None = None,
        layer_shift: int = 0,
        based_on: int | None = None,
    ) -> SavedVector:
        """Takes a vector in from a file: safetensors, GGUF or JSON. Needs the scope `write`."""
        asked = {"name": name, "model": model, "description": description, "layer_shift": layer_shift}
        asked |= {"file": Path(file).name, "based_on": based_on}
        return self._transport.ask(
            "POST", "/steering-vectors/import", SavedVector, params=asked,
            content=Path(file).read_bytes(), headers={"content-type": "application/octet-stream"},
        )  # fmt: skip
