"""The table of a grid as Markdown, CSV and LaTeX. It has no times: the same runs give the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from muco.ablation.cells import Plan
from muco.ablation.points import in_words
from muco.ablation.results import RowResult, Scores

NOTE = (
    "Scores are x 100: mean and standard deviation over seeds. The difference to the baseline is a mean over "
    "tasks, with the 95% interval of a paired bootstrap over queries within tasks. p is of a paired "
    "permutation test, adjusted by Holm's method for all rows. Both take the trained models as given: they "
    "do not cover the spread over seeds."
)
MARK = "*"


def header(plan: Plan, results: Sequence[RowResult]) -> list[str]:
    """Return the titles of the columns."""
    return [
        *plan.axes,
        "seeds",
        *score_columns(plan, results),
        f"difference in {plan.metrics[0]}",
        "95% interval",
        "p",
        "samples",
        *([unit.name] if (unit := flops_unit(results)) else []),
    ]


@dataclass(frozen=True)
class Unit:
    """A unit of FLOPs."""

    name: str
    size: float


def flops_unit(results: Sequence[RowResult]) -> Unit | None:
    """Return the unit in which the FLOPs of the largest row are at least 1; None where none are known."""
    most = max((each.budget.flops or 0 for each in results if each.budget), default=0)
    units = (Unit("PFLOPs", 1e15), Unit("TFLOPs", 1e12), Unit("GFLOPs", 1e9))
    return next((unit for unit in units if most >= unit.size), None)


def score_columns(plan: Plan, results: Sequence[RowResult]) -> list[str]:
    """Return the metrics that have a column: the grid's, then those of earlier stages."""
    known = dict.fromkeys(name for each in results for name in each.scores)
    own = [name for name in plan.metrics if name in known or not known]
    return [*own, *(name for name in known if name not in own)]


def cells_of(plan: Plan, results: Sequence[RowResult], each: RowResult) -> list[str]:
    """Return the texts of one row."""
    budget, difference = each.budget, each.difference
    compared = [
        f"{100 * difference.mean:+.1f}" if difference else "baseline" if each.is_baseline else "",
        f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}" if difference else "",
        p_in_words(each.adjusted_p) if each.adjusted_p is not None else "",
    ]
    unit = flops_unit(results)
    flops = (
        f"{budget.flops / unit.size:,.4g}{_mark(each, 'FLOPs')}" if budget and budget.flops and unit else ""
    )
    return [
        *(in_words(each.row.point.values[axis]) for axis in plan.axes),
        f"{len(each.seeds)} of {len(plan.grid.seeds)}" if len(each.seeds) < len(plan.grid.seeds) else
        f"{len(each.seeds)}",
        *(score_in_words(each.scores.get(name)) for name in score_columns(plan, results)),
        *compared,
        f"{budget.samples:,.0f}{_mark(each, 'samples')}" if budget else "",
        *([flops] if unit else []),
    ]  # fmt: skip


def _mark(each: RowResult, name: str) -> str:
    return f" {MARK}" if name in each.unequal else ""


def score_in_words(scores: Scores | None) -> str:
    """Return mean and deviation, x 100."""
    if scores is None:
        return ""
    deviation = "" if scores.deviation is None else f" ± {100 * scores.deviation:.1f}"
    return f"{100 * scores.mean:.1f}{deviation}"


def p_in_words(p: float) -> str:
    """Return a p value in three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def notes(plan: Plan, results: Sequence[RowResult]) -> list[str]:
    """Return the notes below the table."""
    marked = sorted({name for each in results for name in each.unequal})
    mark = f"Marked {MARK}: {' and '.join(marked)} differ by more than 1% from the baseline's."
    return [NOTE, *([mark] if marked else [])]


def markdown(plan: Plan, results: Sequence[RowResult]) -> str:
    """Return the table as Markdown."""
    rows = [header(plan, results), *(cells_of(plan, results, each) for each in results)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    rule = "|" + "---|" * len(rows[0])
    title = [plan.grid.title, ""] if plan.grid.title else []
    text = [f"# {plan.grid.name}", "", *title, lines[0], rule, *lines[1:], ""]
    return "\n".join([*text, *(f"{note}\n" for note in notes(plan, results))])


def csv_text(plan: Plan, results: Sequence[RowResult]) -> str:
    """Return the numbers in full precision, one line a row, one column a seed."""
    names, seeds = score_columns(plan, results), plan.grid.seeds
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            *plan.axes,
            *(f"{name} mean" for name in names),
            *(f"{name} deviation" for name in names),
            *(f"{plan.metrics[0]} seed {seed}" for seed in seeds),
            "difference", "low", "high", "p", "p_holm", "samples", "flops", "unequal_budget",
            *(f"cell seed {seed}" for seed in seeds),
        ]
    )  # fmt: skip
    for each in results:
        scores = [each.scores.get(name) for name in names]
        by_seed = dict(zip(each.seeds, each.scores[plan.metrics[0]].values, strict=True)) if (
            plan.metrics[0] in each.scores
        ) else {}  # fmt: skip
        difference = each.difference
        writer.writerow(
            [
                *(in_words(each.row.point.values[axis]) for axis in plan.axes),
                *("" if score is None else repr(score.mean) for score in scores),
                *(repr(score.deviation) if score and score.deviation is not None else "" for score in scores),
                *(by_seed.get(seed, "") for seed in seeds),
                *([difference.mean, difference.low, difference.high, difference.p_value]
                  if difference else [""] * 4),
                "" if each.adjusted_p is None else each.adjusted_p,
                each.budget.samples if each.budget else "",
                each.budget.flops if each.budget and each.budget.flops else "",
                " ".join(each.unequal),
                *(each.row.cells[seed].fingerprint for seed in seeds),
            ]
        )  # fmt: skip
    return buffer.getvalue()


_TEX = str.maketrans(
    {
        "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
        "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
    }
)  # fmt: skip


def latex(plan: Plan, results: Sequence[RowResult]) -> str:
    """Return a `booktabs` table; the best mean is bold."""
    rows = [cells_of(plan, results, each) for each in results]
    titles = header(plan, results)
    first = len(plan.axes)
    best = max((e.scores[plan.metrics[0]].mean for e in results if plan.metrics[0] in e.scores), default=None)
    lines: list[str] = []
    for each, row in zip(results, rows, strict=True):
        cells = [cell.translate(_TEX) for cell in row]
        scores = each.scores.get(plan.metrics[0])
        if scores is not None and scores.mean == best:
            cells[first + 1] = rf"\textbf{{{cells[first + 1]}}}"
        lines.append("  " + " & ".join(cells) + r" \\")
    columns = "l" * first + "r" * (len(titles) - first)
    head = "  " + " & ".join(title.translate(_TEX) for title in titles) + r" \\"
    caption = " ".join([plan.grid.title, *notes(plan, results)]).translate(_TEX).strip()
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
        ]
    )  # fmt: skip
