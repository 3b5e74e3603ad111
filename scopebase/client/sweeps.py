"""Features proposed for a behaviour, and strengths tried beside controls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schema.wire.base import Page
from schema.wire.contrast import ProposeAnswer
from schema.wire.sweeps import SweepAnswer, SweepItem, SweepText
from scopebase.client.asking import Asking
from scopebase.client.rows import Rows


class Sweeps(Asking):
    def propose(self, positive: Any, negative: Any, **more: Any) -> ProposeAnswer:
        """Features that stand for the positive texts, or dataset slice, over several layers, with strengths to begin with."""
        return self._post("/features/propose", ProposeAnswer, {"positive": positive, "negative": negative, **more})

    def begin_sweep(self, request: Mapping[str, Any]) -> SweepAnswer:
        """Begins a sweep in the background, or goes on with the one that the same request began."""
        return self._post("/sweeps", SweepAnswer, dict(request))

    def sweep(self, name: str) -> SweepAnswer:
        """A sweep with the points that are done; `suggestion` once all are."""
        return self._get("/sweeps/{name}", SweepAnswer, {}, name=name)

    def sweeps(self) -> Rows[SweepItem]:
        """The newest first."""
        return self._all("/sweeps", Page[SweepItem], {})

    def sweep_texts(self, name: str, *, point: int = 0, limit: int = 50, cursor: str | None = None) -> Page[SweepText]:
        """What was generated at one point."""
        asked = {"point": point, "limit": limit, "cursor": cursor}
        return self._get("/sweeps/{name}/texts", Page[SweepText], asked, name=name)

    def save_sweep_plot(self, name: str, to: str | Path) -> Path:
        """Its picture, into an SVG file."""
        return self._save("GET", f"/sweeps/{name}/plot.svg", to)

    def save_sweep_page(self, name: str, to: str | Path) -> Path:
        """The picture with the suggestion and a text of each point, into an HTML file."""
        return self._save("GET", f"/sweeps/{name}/plot.html", to)

    def stop_sweep(self, name: str) -> SweepAnswer:
        """Points that are done stay done."""
        return self._post("/sweeps/{name}/stop", SweepAnswer, {}, name=name)

    def delete_sweep(self, name: str) -> SweepItem:
        """Removes a sweep with its points and texts."""
        return self._delete("/sweeps/{name}", SweepItem, {}, name=name)
