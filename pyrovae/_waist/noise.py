"""Random numbers that a program draws outside its sample sites.

At given values of all sites, a program should draw no random numbers, so that its density is the same in every run.
Dropout or ``torch.randn_like`` in a program violates this assumption. To detect such draws, the states of the random
number generators are compared between sites. Some draws do not affect the density, as in
``pyro.param("w", torch.randn(3))``. If only torch's generator has changed, the program therefore runs again with other
numbers in place of the drawn ones. If the density is the same in all of these runs, it does not depend on the numbers.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae._waist.independence import largest_difference

FILLS = (torch.nan, -1e6, 1e6)  # comparisons with NaN are false, so two other values test numbers that are compared
REDRAWN = range(1, 9)  # seeds of the integers that replace integers


class NoiseOutsideSites(Messenger):
    """Pyro handler that records whether random number generators change state between the sites of a program.

    Attributes:
        sources: Names of the packages (torch, NumPy, Python) whose global generators changed state outside sites.
        change: Function that replaces the numbers that torch draws outside sites. It takes a tensor of drawn numbers
            and returns a tensor. If ``change`` is ``None``, the drawn numbers are kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sources: set[str] = set()
        self.change: Callable[[Tensor], Tensor] | None = None
        self.in_site = 0
        self._before: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Any:
        self.in_site = 0
        self._stack = ExitStack()
        if self.change is not None:
            self._stack.enter_context(ChangedNoise(self))
        self._before = _generators()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._compare()
        self._stack.close()
        super().__exit__(*error)

    def _process_message(self, msg: Any) -> None:
        if not self.in_site:
            self._compare()
        self.in_site += 1
        super()._process_message(msg)

    def _postprocess_message(self, msg: Any) -> None:
        super()._postprocess_message(msg)
        self.in_site -= 1
        if not self.in_site:
            self._before = _generators()

    def _compare(self) -> None:
        now = _generators()
        self.sources |= {name for name, state in now.items() if state != self._before.get(name, state)}


class ChangedNoise(TorchDispatchMode):
    """Context manager that replaces the random numbers that torch draws outside sites.

    Args:
        noise: Handler around the program. If torch draws numbers while the handler processes a site, these numbers are
            kept. The function ``noise.change`` replaces all numbers that torch draws at other times.
    """

    def __init__(self, noise: NoiseOutsideSites) -> None:
        super().__init__()
        self.noise = noise

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        change = self.noise.change
        if change is None or self.noise.in_site or torch.Tag.nondeterministic_seeded not in func.tags:
            return result
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, Tensor):
                value.copy_(change(value))  # in place, because some functions write into their argument
        return result


def depends_on_noise(noise: NoiseOutsideSites, run: Callable[[], Sequence[Tensor]]) -> bool:
    """Return whether the densities of a program depend on random numbers that it draws outside its sample sites.

    If NumPy or Python draws such numbers, the result is true without a test. If only torch draws them, the program is
    run again with other numbers in their place.

    Args:
        noise: Handler around the program. It must have handled an earlier run, so that ``noise.sources`` names the
            packages (torch, NumPy, Python) that draw random numbers outside sites.
        run: Function that runs the program and returns its densities. The sample sites draw the same values at each
            call, because the states of torch's generators are restored before the call.
    """
    if noise.sources - {"torch"}:
        return True
    changes = [lambda value, fill=fill: _filled(value, fill) for fill in FILLS]
    changes += [lambda value, seed=seed: _redrawn(value, seed) for seed in REDRAWN]
    restore = _restoring()

    def densities(change: Callable[[Tensor], Tensor] | None) -> Sequence[Tensor]:
        restore()  # so that the sites draw the same values
        noise.change = change
        try:
            return run()
        finally:
            noise.change = None

    first = densities(None)
    if _differ(densities(None), first):
        return False  # the cause is a state that changes from run to run, and not the numbers
    for change in changes:
        try:
            other = densities(change)
        except Exception:  # the program needs the numbers
            return True
        if _differ(other, first):
            return True
    return False


def differs_again(run: Callable[[], Sequence[Tensor]]) -> bool:
    """Return whether densities differ between two runs that start with torch's generators in equal states."""
    restore = _restoring()
    first = run()
    restore()
    return _differ(run(), first)


def draws_outside_sites(noise: NoiseOutsideSites) -> str:
    """Return the error message for a model that draws random numbers outside sample sites."""
    sources = " and ".join(sorted(noise.sources))
    return (
        f"the model draws random numbers of {sources} outside sample sites, so its density differs from run to run. "
        f"Draw them at sample sites, or remove them; an evaluation switches off a torch.nn.Dropout that is created "
        f"outside the program."
    )


def keeps_a_state() -> str:
    """Return the error message for a model whose density differs from run to run because the model keeps a state."""
    return (
        "the density of the model differs from run to run at the same values of its sites, because the model keeps a "
        "state that changes (a counter, a cache, its own generator). Make the state an argument of the program, or "
        "keep it fixed."
    )


def _differ(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return any(largest_difference(*pair) > 0 for pair in zip(first, second, strict=True))


def _generators() -> dict[str, Any]:
    """Return the states of the global random number generators, by package."""
    of_torch = [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        of_torch += [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    of_numpy: Any = np.random.get_state()
    return {"torch": of_torch, "NumPy": _plain(of_numpy), "Python": random.getstate()}


def _restoring() -> Callable[[], None]:
    """Save the states of torch's generators, and return a function that restores these states."""
    state = torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []

    def restore() -> None:
        torch.set_rng_state(state)
        for index, each in enumerate(on_cuda):
            torch.cuda.set_rng_state(each, index)

    return restore


def _plain(state: Any) -> Any:
    parts = state if isinstance(state, tuple) else sorted(map(str, state.items()))
    return [part.tobytes() if isinstance(part, np.ndarray) else part for part in parts]


def _filled(value: Tensor, fill: float) -> Tensor:
    return torch.full_like(value, fill) if value.is_floating_point() else value


def _redrawn(value: Tensor, seed: int) -> Tensor:
    """Return ``value`` with its entries in a random order, which ``seed`` determines.

    A single entry has only one order, so it is replaced by ``seed % 2``.
    """
    generator = torch.Generator().manual_seed(seed)
    if value.numel() < 2:
        return torch.full_like(value, seed % 2)
    order = torch.randperm(value.numel(), generator=generator).to(value.device)
    return value.reshape(-1)[order].reshape(value.shape)
