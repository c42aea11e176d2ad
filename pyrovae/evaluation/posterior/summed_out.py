"""Draws of discrete sites that the model sums out, given the data and draws of its other latent sites."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae._waist.draws import Given, with_draws
from pyrovae._waist.scoring import without_mask
from pyrovae._waist.sites import Program, is_enumerated, sample_sites


class GuideDraws(Messenger):
    """Draw the sites that a guide enumerates; a handler around the guide, and then around the model.

    Attributes:
        of_guide: Names of the latent sites of the guide.
        summed_out: Names of the sites that the model enumerates and the guide does not have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_guide: set[str] = set()
        self.summed_out: set[str] = set()

    def around(self, model: Program, guide: Program) -> tuple[Program, Program]:
        """Return model and guide under this handler."""
        return _InModel(self)(model), self(guide)

    def _pyro_sample(self, msg: Any) -> None:
        self.of_guide.add(msg["name"])
        msg["infer"] = {**msg["infer"], "enumerate": None}


class _InModel(Messenger):
    """Draw the sites that the guide has, and note those that the model alone enumerates."""

    def __init__(self, guide: GuideDraws) -> None:
        super().__init__()
        self.guide = guide

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.guide.of_guide:
            msg["infer"] = {**msg["infer"], "enumerate": None}
        elif is_enumerated(msg):
            self.guide.summed_out.add(msg["name"])


class _Unmasked(Messenger):
    """Take the masks off enumerated sites, which keep their probabilities where they are summed out."""

    def _pyro_sample(self, msg: Any) -> None:
        if is_enumerated(msg):
            msg["mask"], msg["fn"] = None, without_mask(msg["fn"])


def draw_summed_out(
    model: Program,
    args: Sequence[Any],
    values: Mapping[str, Tensor],
    num_draws: int,
    *,
    nesting: int,
    vectorize: bool,
    kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Draw the sites that a model enumerates from their distribution given the data and the other latent sites.

    Args:
        model: Pyro program of p(x, y, z) that enumerates y.
        args: Its arguments.
        values: Values of z, and indices of subsampling plates, by name.
        num_draws: Number of draws in the values.
        nesting: Depth of the program's own plates.
        vectorize: Whether the values have a dimension of draws.
        kwargs: Keyword arguments of the model.

    Returns:
        Values of y by name, in the full shape of their sites.
    """
    depth = nesting + 1 if vectorize else nesting
    program = _Unmasked()(with_draws(Given(values)(model), num_draws, nesting if vectorize else None))
    drawing = infer_discrete(program, first_available_dim=-depth - 1, temperature=1)
    sites = sample_sites(poutine.trace(drawing).get_trace(*args, **(kwargs or {})))
    return {site["name"]: site["value"].expand(site["fn"].shape()) for site in sites if is_enumerated(site)}
