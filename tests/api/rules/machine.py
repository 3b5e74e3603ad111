"""Two processes at one home's rules, and what they should hold, in plain Python: versions under names, who made and who signed them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import func, select

from api.services.library import Library
from api.services.rules.book import list_rules, make_rule, show_rule, sign_rule
from schema.errors import Conflict, InputError, NotFound
from schema.lab import AuditEntry
from schema.wire.rules import RuleBody

HANDLES = st.integers(0, 1)
NAMES = st.sampled_from(["toxic", "sad", "sums"])
PEOPLE = st.sampled_from(["ann", "bob"])
FEATURES = st.builds("m/{}-tiny/{}".format, st.sampled_from([3, 4]), st.integers(0, 999))
LEAVES = st.builds(lambda feature, above: {"feature": feature, "above": above}, FEATURES, st.sampled_from([0.0, 0.5]))
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"any": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"all": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=5,
)
WRONG = st.sampled_from(
    [{"feature": "m/3-tiny/1000", "above": 0.0}, {"feature": "m/9-tiny/1", "above": 0.0}, {"feature": "m/3", "above": 0.0}]
)  # fmt: skip


class RuleMachine(RuleBasedStateMachine):
    """Subclasses say how two handles on one empty home are made."""

    make: Callable[[Path], list[Library]]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="scopebase-rules-"))
        self.handles = type(self).make(self.folder)
        self.expected: dict[str, list[dict[str, Any]]] = {}
        self.writes = 0

    def teardown(self) -> None:
        if hasattr(self, "handles"):
            for each in self.handles:
                each.home.close()
            shutil.rmtree(self.folder)

    @rule(
        at=HANDLES,
        name=NAMES,
        expression=EXPRESSIONS,
        pool=st.sampled_from(["any", "last"]),
        author=PEOPLE,
        back=st.none() | st.integers(-1, 2),
    )
    def store(self, at: int, name: str, expression: Any, pool: Any, author: str, back: int | None) -> None:
        """Whatever is the newest, or as a change of the version so far back."""
        versions = self.expected.setdefault(name, [])
        based_on = None if back is None else max(0, len(versions) - back)
        body = RuleBody(name=name, expression=expression, pool=pool, description=f"of {author}", based_on=based_on)
        try:
            made = make_rule(self.handles[at], body, author)
        except Conflict:
            assert based_on not in (None, len(versions))
            return
        assert based_on in (None, len(versions))
        assert made.version == len(versions) + 1
        versions.append({"expression": body.expression, "pool": pool, "author": author, "signed_by": None})
        self.writes += 1

    @rule(at=HANDLES, name=NAMES, part=WRONG, right=EXPRESSIONS)
    def refuse(self, at: int, name: str, part: Any, right: Any) -> None:
        """One wrong feature somewhere, and nothing is stored."""
        body = RuleBody(name=name, expression={"any": [right, {"not": part}]})
        try:
            make_rule(self.handles[at], body, "ann")
        except InputError:
            return
        raise AssertionError("a rule over a feature that is not there was stored")

    @rule(at=HANDLES, name=NAMES, back=st.integers(0, 3), newest=st.booleans(), signer=PEOPLE)
    def sign(self, at: int, name: str, back: int, newest: bool, signer: str) -> None:
        versions = self.expected.get(name, [])
        version = None if newest else max(1, len(versions) - back)
        meant = versions[(version or len(versions)) - 1] if versions else None
        try:
            signed = sign_rule(self.handles[at], name, version, signer)
        except NotFound:
            assert meant is None
        except Conflict:
            assert meant is not None
            assert meant["signed_by"] is not None
        else:
            assert meant is not None
            assert (meant["signed_by"], signed.signed_by) == (None, signer)
            meant["signed_by"] = signer
            self.writes += 1

    @rule(at=HANDLES, name=NAMES, beyond=st.integers(1, 3))
    def ask_for_what_is_not_there(self, at: int, name: str, beyond: int) -> None:
        try:
            show_rule(self.handles[at], name, len(self.expected.get(name, [])) + beyond)
        except NotFound:
            return
        raise AssertionError("a version that nobody made is there")

    @invariant()
    def both_see_every_version(self) -> None:
        if not hasattr(self, "handles"):
            return
        there = {name: versions for name, versions in self.expected.items() if versions}
        for handle in self.handles:
            newest = list_rules(handle).data
            assert [(each.name, each.version) for each in newest] == [(n, len(there[n])) for n in sorted(there)]
            for name, versions in there.items():
                found = list_rules(handle, name).data
                said = [{key: getattr(each, key) for key in versions[0]} for each in found]
                assert said == versions
                assert show_rule(handle, name).id == f"{name}@{len(versions)}"

    @invariant()
    def the_log_has_every_write_and_no_other(self) -> None:
        if hasattr(self, "handles"):
            with self.handles[0].home.database.reading() as session:
                logged = session.scalar(
                    select(func.count()).select_from(AuditEntry).where(AuditEntry.action.like("rule.%"))
                )
            assert logged == self.writes
