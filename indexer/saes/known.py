"""The SAEs that a home lists, found again: at the place where they were read from, or where somebody says that they are now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from indexer.saes import Release, Sae
from indexer.saes.place import Folder
from schema.errors import Conflict, InputError
from schema.tables import Sae as KnownSae


def load_known(known: KnownSae, releases: Sequence[Release] = ()) -> Sae:
    """The SAE with the very tensors that were indexed.

    Args:
        releases: where to look beside the place that the home remembers.

    Raises:
        InputError: its file is nowhere.
        Conflict: what is there holds other tensors.
    """
    places = [release for release in (_remembered(known), *releases) if release and known.layer in release.files]
    for place in places:
        sae = place.load(known.layer)
        if sae.sha256() == known.sha256:
            return sae
    if places:
        raise Conflict(
            f"SAE {known.name} was indexed from other tensors ({known.sha256[:12]}) than {places[0].name} holds now; "
            "give the place of its own with --sae-dir"
        )
    raise InputError(f"the file of SAE {known.name} is not at {known.source} any more; say where with --sae-dir")


def _remembered(known: KnownSae) -> Release | None:
    """The release as it was when the SAE was indexed, if its file is still there."""
    path = Path(known.source)
    if not path.is_file():
        return None
    place = Folder(path)
    place.name = known.release  # the name may hold k, and the hub's cache calls the folder after a commit
    return Release(known.source, place, known.format, {known.layer: path.name})
