"""What stands in an engine process for an argument whose class is the app's: a numpy scalar, say, or any other object.

Chroma's binding asks of an argument what kind it is, what its class is called (in its complaints), and for
conversions: to an int, to a float, to its items. ``src/engine/isolated/stand_ins.rs`` has tried them in the app. Here
is an object of which the binding learns the same: of a class with that name, which inherits the builtin that the app's
class inherits, and converts to what it was converted to there, or raises what that has raised.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# A class is made once for all objects of the app's class, up to so many.
MOST_CLASSES = 256


class RaisedInAppError(Exception):
    """A conversion has raised an exception in the app, which has kept it under this number."""


class _Named(type):
    """The class of classes with two names: in its complaints the binding uses the one or the other.

    A class of C's has a name with its module (``numpy.int64``) and one without (``int64``).
    """

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        return cls.__qualname__.rpartition(".")[2]


# A vector of numbers: numpy's, as far as the binding can tell.
Vector = _Named("numpy.ndarray", (array,), {"__module__": "numpy", "__qualname__": "ndarray", "__slots__": ()})


def make(names: tuple[str, str, str], base: Any, conversions: Mapping[str, Any]) -> Any:
    """An object in the place of the app's.

    Args:
        names: The module of its class, the name of its class there, and the one that C has for it.
        base: The object as the builtin that its class inherits (``str``, ``int``, ``float``, ``list``, ``tuple``,
            ``dict``, ``bytes``); ``None`` where it inherits none.
        conversions: What came of each that its class has: ``"index"`` and ``"float"``, to a number; ``"bool"``;
            ``"items"``, to a pair of a sequence and of the exception with which it ends, if it does. Instead of a
            number there may be an exception.
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


# That a class has it is what makes a sequence of an object; it is not called.
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
