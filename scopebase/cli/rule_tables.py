"""What a person sees of rules."""

from __future__ import annotations

from collections.abc import Sequence

from rich.padding import Padding
from rich.text import Text

from schema.wire.discovery import Estimate, Metrics
from schema.wire.expressions import AllOf, AnyOf, Expression, FeatureAbove
from schema.wire.questions import SampleProof
from schema.wire.rules import Classified, ClassifyAnswer, DriftAnswer, EvaluateAnswer, RuleItem
from scopebase.cli.answers import snippet
from scopebase.cli.console import OUT, shown, table

MEASURES = ("F1", "95 %", "precision", "recall", "accuracy")


def show_evaluation(answer: EvaluateAnswer) -> None:
    title = f"{answer.rule}@{answer.version} on {answer.label_field} = {answer.positive}"
    OUT.print(Text(shown(title), style="bold"))
    numbers = ("samples", *MEASURES, "trivial F1")
    made = table("dataset", *numbers, right=set(numbers))
    for row in answer.data:
        name = row.dataset if row.group is None else f"{row.dataset} {row.group}"
        name += {"held_out": " (held out)", "all_with_discovery": " (with discovery)"}.get(row.part, "")
        made.add_row(shown(name), f"{row.metrics.n:,}", *cells_of(row.metrics), number_of(row.trivial.f1.value))
    macro = answer.macro
    cells = (number_of(macro.f1), "", number_of(macro.precision), number_of(macro.recall), number_of(macro.accuracy))
    made.add_row(f"mean of {macro.n_rows}", "", *cells, number_of(macro.trivial_f1), style="bold")
    OUT.print(made)
    _warn(answer.warnings)
    OUT.print("trivial F1: of calling every sample positive", style="dim")
    footnote(answer.provenance.pool, answer.provenance.mask, answer.provenance.snapshot)


def show_rules(rules: Sequence[RuleItem]) -> None:
    made = table(
        "rule", "features", "SAEs", "held-out F1", "author", "signed by", right={"features", "SAEs", "held-out F1"}
    )
    for rule in rules:
        f1 = rule.provenance.get("held_out", {}).get("f1", {}).get("value")
        made.add_row(
            rule.id,
            str(rule.n_features),
            str(len(rule.saes)),
            number_of(f1),
            shown(rule.author),
            shown(rule.signed_by or ""),
        )
    OUT.print(made if rules else "There is no rule yet; 'scopebase rule discover DATASET --save NAME' makes one.")


def show_rule(rule: RuleItem) -> None:
    OUT.print(Text(rule.id, style="bold"))
    if rule.description:
        OUT.print(shown(rule.description), markup=False)
    OUT.print(Padding(Text(written(rule.expression)), (0, 0, 0, 2)))
    made = table("", "")
    made.add_row("pool", rule.pool)
    made.add_row("made", f"{rule.provenance['made']} by {shown(rule.author)}, {rule.created_at:%Y-%m-%d %H:%M}")
    if "request" in rule.provenance:
        request, f1 = rule.provenance["request"], rule.provenance["held_out"]["f1"]
        made.add_row("discovered on", f"{request['dataset']}, {request['label_field']} = {request['positive']}")
        made.add_row(
            "held-out F1",
            f"{number_of(f1['value'])} (always positive: {number_of(rule.provenance['trivial']['f1']['value'])})",
        )
    signed = f"{shown(rule.signed_by)}, {rule.signed_at:%Y-%m-%d %H:%M}" if rule.signed_by else "by nobody"
    made.add_row("signed", signed)
    for name, bound in rule.saes.items():
        made.add_row(name, f"sha256 {bound.sha256[:12]}, model revision {bound.revision[:12]}")
    OUT.print(made)


def show_drift(answer: DriftAnswer) -> None:
    if not answer.data:
        OUT.print(f"{answer.rule}@{answer.version}: nothing changed since it was made.", markup=False)
    for item in answer.data:
        OUT.print(item.sentence, markup=False)
    if not answer.usable:
        OUT.print("The rule cannot be applied any more: discover it again.", style="bold")


def show_classified(answer: ClassifyAnswer) -> None:
    share = f" ({answer.n_positive / answer.n:.1%})" if answer.n else ""
    OUT.print(
        Text(
            f"{answer.rule}@{answer.version} calls {answer.n_positive:,} of {answer.n:,} samples positive{share}",
            style="bold",
        )
    )
    for item in answer.data:
        _classified(item)
    if answer.next_cursor:
        OUT.print(f"\n{answer.total:,} in all; the next page: --cursor {answer.next_cursor}", style="dim", markup=False)
    _warn(answer.warnings)
    footnote(answer.provenance.pool, answer.provenance.mask, answer.provenance.snapshot)


def _classified(item: Classified) -> None:
    tokens = [token for feature in item.features for token in feature.tokens]
    proof = SampleProof(
        dataset=item.dataset or "", id=item.id or "", activation=0.0, text=item.text, offset=item.offset, tokens=tokens
    )
    mark = Text.assemble((" positive  " if item.positive else " negative  ", "bold red" if item.positive else "green"))
    OUT.print(mark + snippet(proof))
    for feature in item.features:
        OUT.print(
            Padding(
                Text.assemble(
                    (("not " if feature.negated else "") + feature.feature, "cyan"),
                    f"  {feature.activation:.3g} on {feature.n_tokens} token{'s' if feature.n_tokens > 1 else ''}  ",
                    (shown(feature.label or ""), "italic"),
                ),
                (0, 0, 0, 11),
            )
        )


def written(expression: Expression) -> str:
    """An expression as a person reads it: `a or (b > 0.5 and not c)`."""
    if isinstance(expression, FeatureAbove):
        return expression.feature + (f" > {expression.above:g}" if expression.above else "")
    if isinstance(expression, AnyOf | AllOf):
        either = isinstance(expression, AnyOf)
        parts = expression.any if isinstance(expression, AnyOf) else expression.all
        return (" or " if either else " and ").join(
            f"({written(part)})" if isinstance(part, AnyOf | AllOf) else written(part) for part in parts
        )
    inner = written(expression.not_)
    return f"not ({inner})" if isinstance(expression.not_, AnyOf | AllOf) else f"not {inner}"


def cells_of(metrics: Metrics) -> tuple[str, ...]:
    return (
        number_of(metrics.f1.value),
        _interval(metrics.f1),
        number_of(metrics.precision.value),
        number_of(metrics.recall.value),
        number_of(metrics.accuracy.value),
    )


def _interval(estimate: Estimate) -> str:
    return "" if estimate.interval is None else f"{estimate.interval[0]:.2f}–{estimate.interval[1]:.2f}"


def number_of(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        OUT.print(f"warning: {warning}", style="yellow", markup=False)


def footnote(pool: str, mask: str, snapshot: int) -> None:
    OUT.print(f"pool: {pool} · mask: {mask} · snapshot {snapshot}", style="dim", markup=False)
