"""Folding: parts of many shards are summed while the run goes on, so that its profiles need few when all is encoded.

Shards leave one row of `parts` a pair each. Whenever FAN_IN fragments of about the same weight lie there, their rows are replaced by the
sums, one row a pair, in one commit. Sums of sums weigh more and are folded among themselves, so that each count is added up once for
each power of FAN_IN, and a run of any length leaves fewer than FAN_IN rows a pair of each weight. Sums are exact, in any order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyarrow as pa

from indexer.seal import MOST_NARROW, summed
from indexer.shard import part_row
from schema.layout import SAMPLE_BITS, sample_key
from schema.publish import FAULTS, discard, fence_id, overtaken, replace, storage_faults, write
from schema.store import Store

FAN_IN = 32


def fold(store: Store, widths: dict[int, int], staged: Callable[[], Collection[str]]) -> int:
    """Folds the parts of a run as far as there are enough of one weight.

    Whoever is overtaken by another commit leaves it to the next one: profiles do not depend on it.

    Args:
        widths: pair -> d_sae, of the run.
        staged: files that wait for publication, asked after the manifest was read. Those may be named there already, and folding would
            erase the names by which their shards are recognised.

    Returns:
        How many fragments were replaced.
    """
    snapshot = store.latest("parts")
    waiting = staged()
    done = 0
    for group in _alike(snapshot, widths, waiting):
        if not _replace(store, snapshot, group, widths):
            break
        done += len(group)
        snapshot = store.latest("parts")
    return done


def _alike(snapshot: Any, widths: dict[int, int], waiting: Collection[str]) -> list[list[Any]]:
    """Groups of enough fragments that hold parts of the run alone, of about the same weight."""
    groups: dict[int, list[Any]] = defaultdict(list)
    fence = fence_id(snapshot)
    for fragment in snapshot.get_fragments():
        if fragment.fragment_id == fence or any(file.path in waiting for file in fragment.metadata.files):
            continue
        rows = fragment.to_table(columns=["key", "n_tokens"])
        pairs = {key >> SAMPLE_BITS for key in rows.column("key").to_pylist()}
        if pairs and pairs <= widths.keys():
            weight = sum(rows.column("n_tokens").to_pylist()) / len(pairs)
            if weight * FAN_IN <= MOST_NARROW:
                groups[round(math.log(max(weight, 1), FAN_IN))].append(fragment)
    return [group[:FAN_IN] for group in groups.values() if len(group) >= FAN_IN]


def _replace(store: Store, snapshot: Any, group: list[Any], widths: dict[int, int]) -> bool:
    """Puts the sums of some fragments in their place; False where somebody was quicker."""
    with storage_faults(store):
        new = write(store, "parts", _sums(snapshot, group, widths))
        try:
            replace(store, "parts", snapshot, [fragment.fragment_id for fragment in group], new)
        except FAULTS as error:
            if not overtaken(error):
                raise
            discard(store, {"parts": new})
            return False
    return True


def _sums(snapshot: Any, group: list[Any], widths: dict[int, int]) -> Iterator[pa.RecordBatch]:
    """One row a pair, under the key of its first shard."""
    for pair, d_sae in widths.items():
        within = f"key >= {sample_key(pair)} AND key < {sample_key(pair + 1)}"
        keys = snapshot.scanner(columns=["key"], filter=within, fragments=group).to_table().column("key")
        if len(keys):
            rows = snapshot.scanner(filter=within, fragments=group, batch_size=16).to_batches()
            for some in summed(rows, d_sae):
                yield part_row(pair, min(keys.to_pylist()) - sample_key(pair), some)
