"""What a client may see and do, as its key says. The guard sets it for a request, and whatever the request reaches asks
for it here: a route that does not know of it gets no more than the key may see."""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass

from latentrag.conditions import Condition, condition_of
from latentrag.errors import InputError
from latentrag.serving.failures import Refused

WHERE, WRITE = "where=", "write"


@dataclass(frozen=True, slots=True)
class Rights:
    """Of a key.

    Attributes:
        where: the passages that it may know of; None: all.
        write: whether it may change documents.
        exchange: whether it may choose what everybody is served, without ``write``: as where nobody needs a key.
    """

    where: Condition | None = None
    write: bool = False
    exchange: bool = False

    @property
    def may_exchange(self) -> bool:
        """Whether it may change what everybody is served."""
        return self.where is None and (self.write or self.exchange)

    @classmethod
    def read(cls, text: str) -> Rights:
        """As they stand after a key: ``write``, and ``where=`` with a condition, in either order.

        Raises: InputError for anything else.
        """
        words, is_there, condition = text.partition(WHERE)
        rights = words.split()
        if is_there and condition.split()[-1:] == [WRITE]:
            rights.append(WRITE)
            condition = condition.rstrip()[: -len(WRITE)]
        if unknown := [each for each in rights if each != WRITE]:
            raise InputError(f"{unknown[0]!r} is no right; needed write, or where= and a condition")
        return cls(condition_of(condition) if is_there else None, WRITE in rights)


_NOW: ContextVar[Rights] = ContextVar("rights", default=Rights())  # noqa: B039  it cannot be changed


def rights_now() -> Rights:
    """Those of the request under way."""
    return _NOW.get()


def set_rights(rights: Rights) -> Token[Rights]:
    """From now on in this context."""
    return _NOW.set(rights)


def require_unbound(what: str) -> None:
    """Raises: Refused for a key that may see some passages alone."""
    if rights_now().where is not None:
        raise Refused(403, f"this API key may not {what}; ask with one that sees all passages", "forbidden")


def require_exchange() -> None:
    """Raises: Refused for a client that may not choose what everybody is served: the version of the memory, the names
    of versions, the model."""
    require_unbound("change what others see")
    if not rights_now().may_exchange:
        raise Refused(
            403,
            "this API key may not change what others see; needed one with the right to write (`KEY write` in the file "
            "of --api-key-file)",
            "forbidden",
        )


def require_write() -> None:
    """Raises: Refused for a client that may not change documents."""
    if not rights_now().write:
        raise Refused(
            403,
            "this client may not change documents; needed an API key with the right to write (`KEY write` in the file "
            "of --api-key-file), or without keys a server started with --allow-writes",
            "forbidden",
        )
