"""What exports, imports and comparisons with other tools' files say when they are done."""

from __future__ import annotations

from pydantic import Field

from schema.wire.base import Provenance, Wire


class ExportReport(Wire):
    """An export that was made."""

    format: str
    folder: str
    files: int = Field(description="Files that the export consists of")
    n_features: int
    n_firing: int = Field(description="Those of them that fire somewhere")
    n_examples: int | None = Field(
        description="Examples, or activations of a Delphi cache; null where an earlier run wrote some of them"
    )
    provenance: Provenance


class Compared(Wire):
    """One feature as it is here and as a file says."""

    feature: str
    index: int
    max_activation: float
    their_max_activation: float
    density: float
    their_density: float | None


class CompareAnswer(Wire):
    """How far another tool's file agrees with the index."""

    format: str
    sae: str
    n_compared: int = Field(description="Features that the file speaks of and that fire here or there")
    n_same_max: int = Field(description="Those whose largest activations differ by less than 1 %")
    n_only_here: int = Field(description="Fire here and not in the file")
    n_only_there: int
    rank_correlation_max: float | None = Field(description="Spearman; null for fewer than 3 features")
    rank_correlation_density: float | None
    furthest: list[Compared] = Field(description="The ten whose largest activations differ most")
    provenance: Provenance
