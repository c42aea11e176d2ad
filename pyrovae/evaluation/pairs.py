"""A decorator for functions of a model and a guide.

A decorated function also accepts a module with both programs, as in ``evaluate(vae, x)``.
"""

from collections.abc import Callable
from functools import update_wrapper
from types import FunctionType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from pyrovae._waist.sites import Program

Others = ParamSpec("Others")
Result = TypeVar("Result", covariant=True)


class HasPrograms(Protocol):
    """A module with a model and a guide, such as :class:`pyrovae.VAE`."""

    model: Any
    guide: Any


class Evaluation(Protocol[Others, Result]):
    """A function that is called as ``f(model, guide, x)``, or as ``f(vae, x)`` for a module with both programs."""

    @overload
    def __call__(self, model: Program, guide: Program, /, *others: Others.args, **options: Others.kwargs) -> Result: ...

    @overload
    def __call__(self, vae: HasPrograms, /, *others: Others.args, **options: Others.kwargs) -> Result: ...

    def __call__(self, *given: Any, **options: Any) -> Any:  # type: ignore[misc]  # mypy has no implementation of overloads of a ParamSpec
        """Evaluate the programs."""


def takes_vae(function: Callable[Concatenate[Program, Program, Others], Result]) -> Evaluation[Others, Result]:
    """Decorate a function of ``(model, guide, x, ...)`` so that it accepts ``(vae, x, ...)`` as well.

    Args:
        function: Function whose first two arguments are the programs.

    Returns:
        A function that uses the attributes ``model`` and ``guide`` of its first argument, if this argument has both.

    Raises:
        TypeError: When called, if the guide is not callable.

    Example:
        >>> from types import SimpleNamespace
        >>> @takes_vae
        ... def programs(model, guide, x):
        ...     return model, guide, x
        >>> programs(SimpleNamespace(model=min, guide=max), 3) == programs(min, max, 3) == (min, max, 3)
        True
    """
    name = function.__name__

    def call(*given, **options):  # type: ignore[no-untyped-def]
        if given and hasattr(given[0], "model") and hasattr(given[0], "guide"):
            given = (given[0].model, given[0].guide, *given[1:])
        if len(given) > 1 and not callable(given[1]):
            raise TypeError(
                f"{name} takes (model, guide, x), or (vae, x) for a module with the attributes model and guide, but "
                f"the guide is a {type(given[1]).__name__}. Pass both programs."
            )
        return function(*given, **options)

    # doctest runs the examples of a function only in the module to which the function's globals belong.
    own = FunctionType(call.__code__, function.__globals__, name, closure=call.__closure__)
    return cast("Evaluation[Others, Result]", update_wrapper(own, function))
