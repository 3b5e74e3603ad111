"""`scopebase query`: the short form of conditions, and the command as people and scripts use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.errors import InputError
from schema.settings import Settings
from schema.wire.query import FeatureQuery
from scopebase.cli.expression import parse, parse_pair
from tests.scopebase.test_cli import Call, call  # noqa: F401 - a fixture

SAE = "tiny-qwen3/2-tiny"


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("gsm8k", {"dataset": "gsm8k"}),
        ("gsm8k@2", {"dataset": "gsm8k@2"}),
        ("2wiki.v1-a", {"dataset": "2wiki.v1-a"}),
        ("'not'", {"dataset": "not"}),
        ("gsm8k >= 5% <= 50%", {"dataset": "gsm8k", "min_rate": 0.05, "max_rate": 0.5}),
        ("gsm8k >= 3", {"dataset": "gsm8k", "min_count": 3}),
        ("gsm8k<=0.5", {"dataset": "gsm8k", "max_rate": 0.5}),
        ("gsm8k >= 1.0", {"dataset": "gsm8k", "min_rate": 1.0}),
        ("a and b or not c", {"or": [{"and": [{"dataset": "a"}, {"dataset": "b"}]}, {"not": {"dataset": "c"}}]}),
        ("a and (b or c)", {"and": [{"dataset": "a"}, {"or": [{"dataset": "b"}, {"dataset": "c"}]}]}),
        ("not not a", {"not": {"not": {"dataset": "a"}}}),
        ("mmlu[subject=anatomy]", {"dataset": "mmlu", "where": {"subject": "anatomy"}}),
        ("m[level=1|2, text~'red pears']", {"dataset": "m", "where": {"level": [1, 2], "text": {"contains": "red pears"}}}),
        ("m[level>=2<=5]", {"dataset": "m", "where": {"level": {"min": 2, "max": 5}}}),
        ("m[level>=2, level<=5.5]", {"dataset": "m", "where": {"level": {"min": 2, "max": 5.5}}}),
        ("m[not ok=true, x=null, zip=007]", {"dataset": "m", "where_not": {"ok": True}, "where": {"x": None, "zip": "007"}}),
        ("label ~ bone", {"label": "bone"}),
        ('label ~ "say \\"no\\""', {"label": 'say "no"'}),
        ("label and labelled", {"and": [{"dataset": "label"}, {"labelled": True}]}),
        ("density <= 1%", {"density": {"max": 0.01}}),
        ("density(songs) >= 0.1 <= 0.2", {"dataset": "songs", "density": {"min": 0.1, "max": 0.2}}),
        ("max(songs) >= 3", {"dataset": "songs", "max_activation": {"min": 3}}),
        ("lift(a, b[x=1]) >= 2", {"compare": [{"dataset": "a"}, {"dataset": "b", "where": {"x": 1}}], "min_lift": 2}),
        ("difference(a, b) >= -10%", {"compare": [{"dataset": "a"}, {"dataset": "b"}], "min_rate_difference": -0.1}),
        ("q(a, b) <= 0.05", {"compare": [{"dataset": "a"}, {"dataset": "b"}], "max_q_value": 0.05}),
    ],
)  # fmt: skip
def test_what_an_expression_means(text: str, condition: Any) -> None:
    assert parse(text) == condition
    FeatureQuery.model_validate({"where": condition})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a dataset, 'not' or '(' should come at character 1, not 'the end'"),
        ("a and", "should come at character 6, not 'the end'"),
        ("a b", "'and', 'or' or the end should come at character 3, not 'b'"),
        ("(a", "')' should come at character 3, not 'the end'"),
        ("a >= x", "a number should come at character 6, not 'x'"),
        ("a[x]", "'=' should come at character 4, not ']'"),
        ("density(a)", "'>=' or '<=' should come at character 11"),
        ("lift(a) >= 1", "',' should come at character 7"),
        ("a & b", "'& b' (character 3) is not understood"),
        ("not " * 100 + "a", "nested more than 60 deep"),
        ("(" * 100 + "a", "nested more than 60 deep"),
    ],
)
def test_what_is_no_expression_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        parse(text)
    assert words in str(refused.value)


def test_a_pair() -> None:
    assert parse_pair("a, b[x=1]") == [{"dataset": "a"}, {"dataset": "b", "where": {"x": 1}}]
    with pytest.raises(InputError, match="',' should come at character 2, not 'the end'"):
        parse_pair("a")


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True).map(lambda name: f"d{name}")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
VALUES = st.one_of(st.integers(-99, 99), TEXTS, st.booleans(), st.none())
PARTS = st.builds(
    lambda name, where: {"dataset": name} | ({"where": where} if where else {}),
    NAMES,
    st.dictionaries(
        NAMES, st.one_of(VALUES, st.lists(VALUES, min_size=2, max_size=3), TEXTS.map(lambda t: {"contains": t}))
    ),
)
TREES = st.recursive(
    st.one_of(PARTS, st.builds(lambda part, n: {**part, "min_count": n}, PARTS, st.integers(0, 999))),
    lambda below: st.one_of(
        st.lists(below, min_size=2, max_size=3).map(lambda parts: {"and": parts}),
        st.lists(below, min_size=2, max_size=3).map(lambda parts: {"or": parts}),
        below.map(lambda part: {"not": part}),
    ),
    max_leaves=6,
)


def written(condition: dict[str, Any]) -> str:
    """The expression of a condition, every part in brackets."""

    def value(each: Any) -> str:
        return json.dumps(each)

    def field(name: str, wanted: Any) -> str:
        if isinstance(wanted, dict):
            return f"{name}~{value(wanted['contains'])}"
        return f"{name}={'|'.join(map(value, wanted if isinstance(wanted, list) else [wanted]))}"

    for word in ("and", "or"):
        if word in condition:
            return f" {word} ".join(f"({written(part)})" for part in condition[word])
    if "not" in condition:
        return f"not ({written(condition['not'])})"
    fields = ", ".join(field(name, wanted) for name, wanted in condition.get("where", {}).items())
    bound = f" >= {condition['min_count']}" if "min_count" in condition else ""
    return condition["dataset"] + (f"[{fields}]" if fields else "") + bound


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_every_condition_can_be_written(condition: dict[str, Any]) -> None:
    assert parse(written(condition)) == condition


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=list("ab1.5%<>=~()[],|'\" notrd\n"), max_size=25))
def test_any_text_is_a_condition_or_is_refused(text: str) -> None:
    try:
        found = parse(text)
    except InputError:
        return
    assert isinstance(found, dict)


def test_the_command_prints_the_answer_of_the_route(call: Call, indexed: Settings) -> None:  # noqa: F811
    said = call(
        "--home", indexed.home, "--json", "query", "tales >= 10% and not songs >= 10%", "--sae", SAE, "--limit", 2
    )
    assert (said.status, said.err) == (0, "")
    assert [set(item["counts"]) for item in said.json["data"]] == [{"tales", "songs"}] * 2
    again = call("--home", indexed.home, "--json", "query", "tales >= 10% and not songs >= 10%", "--sae", SAE,
                 "--cursor", said.json["next_cursor"], "--limit", 1000)  # fmt: skip
    assert said.json["total"] == len(said.json["data"]) + len(again.json["data"])
    where = json.dumps({"and": [{"dataset": "tales", "min_rate": 0.1}, {"not": {"dataset": "songs", "min_rate": 0.1}}]})
    assert (
        call("--home", indexed.home, "--json", "query", "--where", where, "--sae", SAE, "--limit", 2).json == said.json
    )


def test_the_command_for_people(call: Call, indexed: Settings) -> None:  # noqa: F811
    said = call("--home", indexed.home, "query", "tales and not songs >= 50%", "--sae", SAE, "--length-control")
    assert said.status == 0
    assert "A: tales, 50 samples" in said.out
    assert "B: songs, 45 samples" in said.out
    assert "A − B" in said.out
    assert "alike: " in said.out
    assert max(map(len, said.out.splitlines())) <= 100
    proofs = call(
        "--home", indexed.home, "query", "songs", "--sae", SAE, "--samples", 1, "--limit", 2, "--sort", "weight"
    )
    assert proofs.out.count("fires on ") == 2
    assert proofs.out.count("  weight ") == 2
    assert "by weight" in proofs.out
    assert max(map(len, proofs.out.splitlines())) <= 100
    groups = call("--home", indexed.home, "query", "songs", "--sae", SAE, "--group-by", "mood", "--dataset", "tales")
    assert "C: songs[mood=gay]" in groups.out
    slices = call(
        "--home",
        indexed.home,
        "query",
        "problems",
        "--sae",
        SAE,
        "--compare",
        "problems[level=1], problems[not level=1]",
    )
    assert "A: problems[level=1], 20 samples" in slices.out
    assert "1 more column" not in slices.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["songs and"], "expression: a dataset, 'not' or '(' should come at character 10"),
        ([], "give the condition as an expression or with --where, one of them"),
        (["songs", "--where", "{}"], "give the condition as an expression or with --where, one of them"),
        (["--where", "{"], "--where: no JSON"),
        (["--where", "{}"], "where: a condition has one of: and, or, not"),
        (["--where", "@/nowhere/there.json"], "/nowhere/there.json: No such file or directory"),
        (["song"], "no dataset named 'song'; did you mean songs?"),
        (["songs >= 200%"], "min_rate: Input should be less than or equal to 1"),
    ],
)
def test_a_wrong_call_is_one_line(call: Call, indexed: Settings, args: list[str], words: str) -> None:  # noqa: F811
    said = call("--home", indexed.home, "query", *args, "--sae", SAE)
    assert (said.status, said.out) == (2, "")
    assert words in said.err
    assert len(said.err.splitlines()) == 1


def test_a_condition_from_a_file(call: Call, indexed: Settings, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "where.json"
    path.write_text('{"dataset": "songs"}')
    said = call("--home", indexed.home, "--json", "query", "--where", f"@{path}", "--sae", SAE)
    assert said.json["total"] == call("--home", indexed.home, "--json", "query", "songs", "--sae", SAE).json["total"]
