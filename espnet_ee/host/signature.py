"""Constructors that show ESPnet what they take: of a stock class, and what ours adds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from espnet_ee.errors import UsageError

Class = TypeVar("Class", bound=type)


def parameters_of(cls: Any) -> Mapping[str, inspect.Parameter]:
    """What a class's constructor takes, ``self`` included."""
    return inspect.signature(cls.__init__).parameters


def extend_signature(
    stock: type, without: Collection[str] = (), defaults: Mapping[str, Any] = MappingProxyType({})
) -> Callable[[Class], Class]:
    """Class decorator: shows the constructor of ``stock`` plus the decorated class's own keywords.

    ESPnet fills ``--print_config`` and validates configurations from the constructor's signature, so
    ``**kwargs`` would hide every default; and the stock signatures differ between versions, so
    they cannot be written out once.

    Args:
        stock: the ESPnet class whose constructor is extended.
        without: stock parameters that the decorated class sets itself.
        defaults: of stock parameters that the decorated class, which has no constructor of its own, has other defaults of.
    """

    def decorate(cls: Class) -> Class:
        extended: Any = cls
        inherited = extended.__init__
        own = inspect.signature(inherited).parameters
        if "__init__" not in vars(cls):
            # The signature goes to a constructor of the class's own: the inherited one belongs to others, too.
            def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
                inherited(self, *args, **{**defaults, **kwargs})

            extended.__init__ = constructor
        merged = {name: parameter for name, parameter in parameters_of(stock).items() if name not in without}
        merged.update((name, merged[name].replace(default=value)) for name, value in defaults.items())
        merged.update(
            (name, parameter) for name, parameter in own.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        )
        ordered = sorted(merged.values(), key=lambda p: (p.kind, p.default is not p.empty))
        extended.__init__.__signature__ = inspect.Signature(ordered)
        return cls

    return decorate


def reject_unknown_keys(cls: type, where: str, given: dict[str, Any]) -> None:
    """Raises a UsageError that names the first keyword, given in section ``where``, which a class's constructor does not take."""
    parameters = parameters_of(cls)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name not in ("self", "input_size")]
    for name in given:
        if name not in known:
            raise UsageError(f"{where}: unknown key {name!r}; known keys are {', '.join(sorted(known))}")
