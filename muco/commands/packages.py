"""The installed packages, compared with what muco and its plugins need."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

_FOR_DEVELOPERS = {"dev", "docs"}


def package_problems(distribution: str) -> dict[str, str]:
    """Return, by name, what is wrong with the packages that a distribution needs."""
    needs = _requirements(distribution, extra="")
    return {need.name: state for need in needs if (state := _problem(need))}


def optional_packages(distribution: str) -> dict[str, str]:
    """Return, by name, the version of the packages of a distribution's extras, or what is wrong with them."""
    needed = {need.name for need in _requirements(distribution, extra="")}
    extras = set(metadata(distribution).get_all("Provides-Extra") or ()) - _FOR_DEVELOPERS
    return {
        need.name: _problem(need) or version(need.name)
        for extra in sorted(extras)
        for need in _requirements(distribution, extra)
        if need.name not in needed | {distribution}
    }


def _requirements(distribution: str, extra: str) -> list[Requirement]:
    try:
        needs = map(Requirement, requires(distribution) or ())
    except PackageNotFoundError:  # a plugin that was added without being installed
        return []
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]


def _problem(need: Requirement) -> str | None:
    """Return what is wrong with a package; None if it is installed in a version that fits."""
    install = f"pip install '{need.name}{need.specifier}'"
    try:
        installed = version(need.name)
    except PackageNotFoundError:
        return f"not installed; {install}"
    if not need.specifier.contains(installed, prereleases=True):
        return f"version {installed} is installed; {install}"
    return None
