"""The suites of a recipe, and which of their data is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muco.config.recipe import EvaluateSettings
from muco.core.errors import DataError
from muco.core.suite import Suite


@dataclass(frozen=True)
class NamedSuite:
    """A suite to run."""

    name: str
    settings: dict[str, Any]
    """The mapping of the recipe, defaults filled in."""
    suite: Suite


def make_suites(settings: EvaluateSettings) -> list[NamedSuite]:
    """Return the suites of a recipe."""
    return [NamedSuite(ref.label, ref.dump(), ref.make()) for ref in settings.suites]


def missing_suites(suites: Sequence[NamedSuite]) -> dict[str, str]:
    """Return, by key of the recipe, which suites' data is missing and how to get it."""
    missing: dict[str, str] = {}
    for index, each in enumerate(suites):
        try:
            each.suite.verify_data()
        except DataError as error:
            missing[f"evaluate.suites.{index}"] = f"{each.name}: {error}"
    return missing
