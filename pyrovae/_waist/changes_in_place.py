"""Check for programs that change a tensor of a site in place after the site's ``pyro.sample`` statement.

Pyro and pyrovae compute log-probabilities after a program has finished. If the program changes the mask, the value or a
parameter of a site in place after this statement, for example by ``mask |= seen``, the log-probability is computed from
the changed tensor.
"""

from collections.abc import Iterator
from typing import Any

from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrovae._waist.errors import ProgramError
from pyrovae._waist.sites import is_deterministic


class ChangesInPlace(Messenger):
    """Pyro handler that raises an error if a program changes a mask, value or parameter of a site in place.

    The check runs at the end of a run. It finds changes after the site's sample statement. Nothing is checked if Pyro's
    validation is off.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[str, str, Tensor, int]] = []

    def __enter__(self) -> Any:
        self._seen = []
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None:
            self._check()
        self._seen = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_validation_enabled() and get_proxy_mode() is None and not is_deterministic(msg):
            for what, tensor in _tensors(msg):
                if not tensor.is_inference():  # an inference tensor has no count of changes
                    self._seen.append((msg["name"], what, tensor, tensor._version))

    def _check(self) -> None:
        """Compare torch's counts of in-place changes with those recorded at the sites.

        Raises:
            ProgramError: If a tensor of a site was changed in place after the sample statement.
        """
        for name, what, tensor, version in self._seen:
            if tensor._version != version:
                raise ProgramError(
                    f"the program changes {what} of site {name!r} in place after the sample statement. The "
                    f"log-probability is computed at the end of the run, so it would use the changed tensor. Make a "
                    f"new tensor: mask = mask | other instead of mask |= other, or x = x.clone() before the change."
                )


def _tensors(msg: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(msg["mask"], Tensor):
        yield "the mask", msg["mask"]
    if isinstance(msg["value"], Tensor):
        yield "the value", msg["value"]
    level = msg["fn"]
    while isinstance(level, Distribution):
        for name, value in vars(level).items():
            if isinstance(value, Tensor):
                yield ("the mask" if name == "_mask" else f"the parameter {name!r}"), value
        level = getattr(level, "base_dist", None)
