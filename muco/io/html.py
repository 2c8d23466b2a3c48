"""Templates of pages."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def html_templates(folder: str) -> Environment:
    """Return the templates of a folder of this package, `report/templates`; all text in them is escaped."""
    return Environment(
        loader=PackageLoader("muco", folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
