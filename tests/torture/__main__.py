"""`make torture`: at least 200 seeded faults over the write path, and everything else that is too long for the tests of every day.

    python -m tests.torture --seed 1 --all               # everything, as `make torture` does
    python -m tests.torture --seed 1 --faults 200        # the faults alone
    python -m tests.torture --seed 1 --only disk-full    # of one kind
    python -m tests.torture --seed 1 --at 17             # one of them again

After each fault the same command is run again. Then every row of every table must be byte for byte that of a home where nothing
happened, `scopebase verify --deep` must find nothing, and no label that was acknowledged may be missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

from tests.torture import everything
from tests.torture.case import Case, make_case
from tests.torture.run_faults import KINDS, Outcome, run_faults

SAY = Console(stderr=True, highlight=False)
OUT = Console(highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--only", action="append", default=[], choices=list(KINDS), help="only faults of this kind")
    parser.add_argument("--at", type=int, help="only this one")
    parser.add_argument("--minutes", type=float, help="begin no fault after so long")
    parser.add_argument("--lanes", type=int, default=max(2, os.cpu_count() or 1), help="faults at a time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--all", action="store_true", help="then readers, fuzzers, state machines and Schemathesis too")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    folder.chmod(0o755)
    begin = time.monotonic()
    try:
        SAY.print(f"seed {args.seed}: making what is to be indexed")
        case = make_case(folder / "case")
        SAY.print(f"the undisturbed command: {case.events} events, {case.seconds:.1f} s")
        numbers = [args.at] if args.at is not None else list(range(args.faults))
        until = begin + 60 * args.minutes if args.minutes else None
        outcomes = []
        for outcome in run_faults(case, folder, args.seed, numbers, tuple(args.only), args.lanes, until):
            outcomes.append(outcome)
            _tell(args, outcome, len(outcomes), len(numbers))
        well = not args.all or _the_rest(case, folder, args.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - begin
    if args.json:
        OUT.print_json(json.dumps({"seed": args.seed, "seconds": seconds, "faults": [vars(each) for each in outcomes]}))
    else:
        _table(args.seed, outcomes, seconds)
    lost = len(numbers) - len(outcomes) if until is None else 0
    if lost:
        SAY.print(f"{lost} faults were never told of: a lane died", style="red")
    sys.exit(bool(lost or not well or not all(each.survived for each in outcomes)))


def _the_rest(case: Case, folder: Path, seed: int) -> bool:
    """Each in a process that is forked from one that has touched nothing; whether all went well."""
    parts = {
        f"{everything.READERS} readers while indexing writes": lambda: everything.readers(
            case, folder / "readers", seed, _line
        ),
        "damaged files": lambda: everything.fuzzers(folder / "fuzz", seed, _line),
        "state machines and Schemathesis": lambda: everything.long_tests(seed, _line),
    }
    well = True
    for name, part in parts.items():
        SAY.print(f"{name}:")
        begin = time.monotonic()
        good = part()
        SAY.print(
            f"  {'well' if good else 'NOT WELL'}, {time.monotonic() - begin:.0f} s", style=None if good else "red"
        )
        well = well and good
    return well


def _line(text: str) -> None:
    SAY.print(text, markup=False, soft_wrap=True)


def _tell(args: argparse.Namespace, outcome: Outcome, n: int, total: int) -> None:
    line = f"{n}/{total} #{outcome.at} {outcome.kind}: {outcome.said} ({outcome.seconds:.1f} s)"
    SAY.print(line, style=None if outcome.survived else "red", markup=False, soft_wrap=True)
    if not outcome.survived:
        only = "".join(f" --only {kind}" for kind in args.only)
        SAY.print(f"  again: python -m tests.torture --seed {args.seed} --at {outcome.at}{only}", style="red")


def _table(seed: int, outcomes: Sequence[Outcome], seconds: float) -> None:
    outcomes = [each for each in outcomes if not each.skipped]
    made = Table(title=f"seed {seed}, {len(outcomes)} faults in {seconds / 60:.1f} min")
    for name in ("kind", "what happens"):
        made.add_column(name)
    for name in ("tried", "hit", "survived", "seconds"):
        made.add_column(name, justify="right")
    for name, kind in KINDS.items():
        mine = [each for each in outcomes if each.kind == name]
        if mine:
            good, hit = sum(each.survived for each in mine), sum(not each.missed for each in mine)
            each_took = sum(each.seconds for each in mine) / len(mine)
            style = None if good == len(mine) else "red"
            made.add_row(name, kind.does, str(len(mine)), str(hit), str(good), f"{each_took:.1f}", style=style)
    made.add_section()
    survived, hit = sum(each.survived for each in outcomes), sum(not each.missed for each in outcomes)
    made.add_row(
        "all", "", str(len(outcomes)), str(hit), str(survived), f"{sum(each.seconds for each in outcomes):.0f}"
    )
    OUT.print(made)


if __name__ == "__main__":
    main()
