"""Functions in the place of others that tests watch."""

from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")


def noting(original: Callable[..., R], note: Callable[..., object]) -> Callable[..., R]:
    """The same function; ``note`` gets the arguments of each call before it does."""

    def noted(*given: object, **named: object) -> R:
        note(*given, **named)
        return original(*given, **named)

    return noted
