"""The table of features that lm-evaluation-harness steers with (model `steered`): one row a feature, `action` add.

    loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,sae_id,description

It finds SAEs by SAELens's names and holds one feature a hook point, so only vectors made of such features can be said in it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from schema.aliases import saelens_release
from schema.errors import InputError
from schema.tables import Sae

COLUMNS = (
    "loader", "action", "sparse_model", "hookpoint", "feature_index", "steering_coefficient", "sae_id", "description",
)  # fmt: skip
BEGIN = b"loader,"
_HOOK = re.compile(r"(?:model\.)?(?:layers|blocks)\.(\d{1,5})(?:\..*)?")
MOST_ROWS = 256


@dataclass(frozen=True)
class Row:
    """One feature of the table, by SAELens's name of its SAE."""

    sae: str
    index: int
    coefficient: float


def write_lm_eval(features: Sequence[tuple[Sae, int, float, str]]) -> bytes:
    """The table of these features: (SAE, index, coefficient, description).

    Raises:
        InputError: an SAE that SAELens does not know, or two features of one layer.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    seen: set[int] = set()
    for sae, index, coefficient, description in features:
        release = saelens_release(sae.release)
        if release is None:
            raise InputError(f"lm-eval finds SAEs by SAELens's names, and {sae.name} has none; take another format")
        if sae.layer in seen:
            raise InputError(
                f"lm-eval steers one feature a layer, and layer {sae.layer} has several; take another format"
            )
        seen.add(sae.layer)
        layer = f"layer{sae.layer}"
        table.writerow(
            ("sae_lens", "add", release, f"layers.{sae.layer}", index, repr(coefficient), layer, description)
        )
    return out.getvalue().encode()


def read_lm_eval(data: bytes) -> list[Row]:
    """Its rows.

    Raises:
        InputError: no such table, or an action that is no addition.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the file is no table of lm-eval: {str(error)[:120]}") from None
    if not 0 < len(rows) <= MOST_ROWS:
        raise InputError(f"the table has {len(rows):,} rows; 1 to {MOST_ROWS} are taken")
    return [_row(line, row) for line, row in enumerate(rows, start=2)]


def _row(line: int, row: dict[str, str | None]) -> Row:
    missing = [name for name in COLUMNS[1:6] if not row.get(name)]
    if missing:
        raise InputError(f"line {line} of the table has no {missing[0]}")
    if row["action"] != "add":
        raise InputError(f"line {line}: action {str(row['action'])[:40]!r} is no vector; only `add` is read")
    hook = _HOOK.fullmatch(row["hookpoint"] or "")
    index = row["feature_index"] or ""
    if hook is None or not (index.isascii() and index.isdigit()) or len(index) > 9:
        raise InputError(f"line {line}: hookpoint looks like layers.20 and feature_index is a whole number")
    try:
        coefficient = float(row["steering_coefficient"] or "")
    except ValueError:
        raise InputError(f"line {line}: steering_coefficient is no number") from None
    return Row(f"{row['sparse_model']}/layer{int(hook[1])}", int(index), coefficient)
