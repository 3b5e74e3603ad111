"""`scopebase verify`: whether both stores tell the same, and SAEs encode as they should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from schema.errors import InputError
from schema.wire.verify import FindingItem, VerifyAnswer
from scopebase.cli.console import ERRORS, OUT, print_json, table
from scopebase.cli.live import DeviceOption, SaeDirOption
from scopebase.cli.options import Home, Json, settings, wants_json

if TYPE_CHECKING:
    from schema.home import Home as OpenHome
    from schema.verify import Verdict


def verify(
    mend: Annotated[
        bool, typer.Option("--mend", help="Remove rows that nobody owns, and damaged runs, to be indexed again.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Count every profile and posting anew; reads all activations once.")
    ] = False,
    saes: Annotated[
        bool, typer.Option("--saes", help="Also load every SAE: its hash, and what it fires on this machine.")
    ] = False,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    home: Home = None,
    json: Json = False,
) -> int:
    """Hold both stores against each other: everything listed is there, once, and nothing else. Exit 1 where it is not."""
    from schema.home import open_home
    from schema.verify import verify as look

    opened = open_home(settings(home))
    try:
        with ERRORS.status("verifying") as status:
            verdict = look(opened, mend=mend, deep=deep, tell=lambda what: status.update(f"verifying: {what}"))
            if saes:
                _look_at_saes(opened, verdict, sae_dir or [], device)
    finally:
        opened.close()
    items = [FindingItem(where=f.where, problem=f.problem, mend=f.mend, mended=f.mended) for f in verdict.findings]
    answer = VerifyAnswer(clean=verdict.clean, counts=verdict.counts, data=items)
    if wants_json(json):
        print_json(answer)
    else:
        _show(answer)
    return 0 if answer.clean else 1


def _look_at_saes(home: OpenHome, verdict: Verdict, places: list[str], device: str) -> None:
    try:
        from indexer.golden import check_golden, check_sae
        from indexer.saes import open_release
        from indexer.subject import choose_device
    except ImportError as error:
        raise InputError(f"--saes needs torch ({error.name} is missing); pip install 'scopebase[index]'") from None
    from sqlalchemy import select

    from schema.tables import Sae
    from schema.verify import Finding

    on, releases = choose_device(device), [open_release(place) for place in places]
    verdict.findings += [
        Finding(f"the arithmetic on {on}", problem, "nothing that is indexed here can be trusted; report it")
        for problem in check_golden(on)
    ]
    with home.database.reading() as session:
        known = list(session.scalars(select(Sae).order_by(Sae.id)))
    for sae in known:
        problem = check_sae(sae, on, releases)
        verdict.counts["SAEs encoded"] = verdict.counts.get("SAEs encoded", 0) + 1
        if problem:
            verdict.findings.append(Finding(f"SAE {sae.name}", problem, "look where its file is now (--sae-dir)"))


def _show(answer: VerifyAnswer) -> None:
    looked = table("looked at", "how many", right={"how many"})
    for what, n in answer.counts.items():
        looked.add_row(what, f"{n:,}")
    OUT.print(looked)
    for item in answer.data:
        OUT.print(f"{'mended' if item.mended else 'WRONG'}: {item.where}: {item.problem}", markup=False, soft_wrap=True)
        OUT.print(f"  {item.mend}", markup=False, soft_wrap=True)
    n = sum(not item.mended for item in answer.data)
    OUT.print("clean" if answer.clean else f"{n} {'thing is' if n == 1 else 'things are'} wrong", markup=False)
