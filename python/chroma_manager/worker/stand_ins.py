"""Stand-ins in an engine process for arguments of the app's own classes: numpy scalars, say, or any other object.

Chroma's binding asks an argument for its type, for the name of its class (for messages), and for conversions: to an
int, to a float, to its items. The Rust half (``src/engine/isolated/protocol/stand_ins.rs``) has tried them in the app.
A stand-in gives the binding the same answers: its class has that name and inherits the same builtin, and its
conversions return or raise what they did in the app.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# How many classes are kept, each for all objects of one class of the app's.
MOST_CLASSES = 256


class RaisedInAppError(Exception):
    """A conversion has raised an exception in the app, which keeps it under this number."""


class _Named(type):
    """The metaclass of classes with two names, for the binding's messages use the one or the other.

    A class that is written in C has a name with its module (``numpy.int64``) and one without (``int64``).
    """

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        return cls.__qualname__.rpartition(".")[2]


# A vector of numbers that the binding takes for numpy's.
Vector = _Named("numpy.ndarray", (array,), {"__module__": "numpy", "__qualname__": "ndarray", "__slots__": ()})


def make(names: tuple[str, str, str], base: Any, conversions: Mapping[str, Any]) -> Any:
    """A stand-in for an object of the app's.

    Args:
        names: The module of its class, the qualified name of its class, and the name that C has for the class.
        base: The object as the builtin that its class inherits (``str``, ``int``, ``float``, ``list``, ``tuple``,
            ``dict``, ``bytes``); ``None`` where it inherits none.
        conversions: The outcome of each conversion that its class has: ``"index"`` and ``"float"``, a number;
            ``"bool"``; ``"items"``, a sequence and the exception with which it ends, if any. An exception may take the
            place of a number.
    """
    inherited: Any = object if base is None else type(base)
    made = _class(names, inherited, tuple(conversions))
    stand_in = made() if base is None else made(base)
    stand_in._conversions = conversions
    return stand_in


@lru_cache(maxsize=MOST_CLASSES)
def _class(names: tuple[str, str, str], base: type[Any], conversions: tuple[str, ...]) -> Callable[..., Any]:
    module, qualified, name = names
    methods = {method: make for conversion in conversions for method, make in _METHODS[conversion].items()}
    return _Named(name, (base,), {"__module__": module, "__qualname__": qualified, **methods})


def _converted(name: str) -> Callable[[Any], Any]:
    def convert(self: Any) -> Any:
        outcome = self._conversions[name]
        if isinstance(outcome, BaseException):
            raise outcome.with_traceback(None)
        return outcome

    return convert


def _iterate(self: Any) -> Iterator[Any]:
    items, end = self._conversions["items"]
    yield from items
    if end is not None:
        raise end.with_traceback(None)


# A class that has this method is a sequence to Python. It is not called.
def _item(self: Any, index: int) -> Any:
    return self._conversions["items"][0][index]


def _length(self: Any) -> int:
    return len(self._conversions["items"][0])


_METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    "index": {"__index__": _converted("index")},
    "float": {"__float__": _converted("float")},
    "bool": {"__bool__": _converted("bool")},
    "items": {"__iter__": _iterate, "__getitem__": _item, "__len__": _length},
}
