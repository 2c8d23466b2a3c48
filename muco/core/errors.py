"""User-facing errors."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace


class MucoError(Exception):
    """An error that a user can fix. The command line prints it without a traceback and exits with 2."""


@dataclass(frozen=True)
class Problem:
    """One problem of a recipe: where it is, what is wrong and what to do."""

    path: str
    """Dotted key, `train.num_steps`; empty for the file as a whole."""
    message: str
    line: int | None = None
    """1-based line of the recipe file; None where the value does not come from the file."""

    def __str__(self) -> str:
        head = f"  {f'line {self.line}':<8} " if self.line is not None else "  "
        text = f"{self.path}: {self.message}" if self.path else self.message
        return head + text.replace("\n", "\n" + " " * len(head))


class RecipeError(MucoError):
    """All problems of one recipe."""

    def __init__(self, recipe: str, problems: Sequence[Problem]) -> None:
        self.recipe = recipe
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{recipe}: {count}", *map(str, problems)]))

    def naming_option(self, path: str, option: str) -> RecipeError:
        """Return this error with the option of the command that gives the value at `path`."""
        problems = [
            replace(each, message=f"{each.message}. Give it as {option}") if each.path == path else each
            for each in self.problems
        ]
        return RecipeError(self.recipe, problems)


class PluginError(MucoError):
    """A plugin package cannot be used as installed; the message names the package and the hook."""


class DataError(MucoError):
    """Data is missing or broken, or does not match its index."""


@contextmanager
def library_errors(message: str) -> Generator[None]:
    """Raise DataError with the message for whatever a library raises about a file of any origin.

    Parsers raise errors of all types for damaged files. Put only their calls into the block.
    """
    try:
        yield
    except MucoError:
        raise
    except Exception as error:
        raise DataError(f"{message}: {str(error) or type(error).__name__}") from error


def closest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that is most like a misspelt one; None if none is."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, known, n=1, cutoff=0.6)), None)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest known word, or an empty string."""
    near = closest(word, known)
    return "" if near is None else f" Did you mean {near!r}?"
