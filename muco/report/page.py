"""`muco report`: a run folder as one page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from muco import __version__
from muco.io.atomic import write_bytes
from muco.io.templates import html_templates
from muco.report import formatting as words
from muco.report.comparison import comparisons_of, differences_of
from muco.report.gallery import gallery_of, is_safe_image
from muco.report.read import RunFiles, read_run
from muco.report.scores import standard_error, suite_of
from muco.report.training import Training, training_of

TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path, others: Sequence[Path] = ()) -> Path:
    """Write `report.html` from the files of a run folder, compared with `others`, and return its path.

    The page is one file and loads nothing. The run may be unfinished: a section without data names the
    command that makes it. Raise MucoError if a folder is no run's, or a file is not what muco writes.
    """
    page = render(read_run(folder), [read_run(other) for other in others])
    path = folder / "report.html"
    write_bytes(path, page.encode(errors="replace"))
    return path


def render(run: RunFiles, others: Sequence[RunFiles] = ()) -> str:
    """Return the page of a run as HTML; every string of the run is escaped."""
    css, js = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    training = training_of(run.log, run.validations) if run.log else None
    gallery = gallery_of(run.galleries)
    template = _templates().get_template("page.html")
    return template.render(
        run=run,
        training=training,
        headlines=[
            (suite.suite, name, mean) for suite in run.suites for name, mean in suite.averages.items()
        ],
        suites=[suite_of(suite) for suite in run.suites],
        comparisons=comparisons_of(run, others),
        changed_recipes=differences_of(run, others),
        gallery=gallery,
        anchors={(task.suite, task.name): task.anchor for task in gallery},
        notices=list(_notices(run, training)),
        css=css,
        js=js,
        policy=content_policy(css, js),
        version=__version__,
    )


def _templates() -> Environment:
    templates = html_templates("report/templates")
    templates.globals |= {"words": words, "standard_error": standard_error}
    templates.tests["safe_image"] = is_safe_image
    return templates


def content_policy(css: str, js: str) -> str:
    """Allow only this style and this script: a string that was not escaped would still not run."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _notices(run: RunFiles, training: Training | None) -> Iterator[str]:
    for suite in run.suites:
        yield from (f"{suite.suite}: {warning}" for warning in suite.warnings)
    if len({str(suite.depends_on.get("weights")) for suite in run.suites}) > 1:
        scored = ", ".join(f"{suite.suite} after step {suite.depends_on.get('step')}" for suite in run.suites)
        yield f"The suites were scored with different weights: {scored}."
    if run.summary and run.summary.model_step not in (None, run.summary.steps):
        yield f"The model is of step {run.summary.model_step}: the best of the validations."
    if run.summary and run.summary.stopped_early:
        yield f"Training stopped early, after step {run.summary.steps}."
    if training and training.broken_steps:
        steps = training.broken_steps
        yield f"Logged steps whose loss is not finite: {len(steps)}, the first is step {steps[0]}."
    if run.unreadable:
        yield f"Training left out samples that could not be read: {len(run.unreadable)}."
