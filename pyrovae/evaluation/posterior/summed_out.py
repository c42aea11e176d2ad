"""Draws of the discrete latent sites that a model enumerates, given the data and draws of its other latent sites."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae._waist.draws import run_model
from pyrovae._waist.plates import plate_names
from pyrovae._waist.scoring import masked_score
from pyrovae._waist.sites import Program, Site, is_enumerated
from pyrovae._waist.summation import log_table


class GuideDraws(Messenger):
    """Handler that turns off the enumeration of a guide's sites, so that these sites are sampled.

    Attributes:
        of_guide: Names of the latent sites of the guide.
        summed_out: Names of the sites that the model enumerates and that are not in the guide.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_guide: set[str] = set()
        self.summed_out: set[str] = set()

    def around(self, model: Program, guide: Program) -> tuple[Program, Program]:
        """Return the model and the guide, both without enumeration of the guide's sites."""
        return _InModel(self)(model), self(guide)

    def _pyro_sample(self, msg: Any) -> None:
        self.of_guide.add(msg["name"])
        msg["infer"] = {**msg["infer"], "enumerate": None}


class _InModel(Messenger):
    """Handler around the model. It turns off the enumeration of each site that is also in the guide.

    All other enumerated sites stay enumerated. Their names are added to ``summed_out`` of the :class:`GuideDraws`.
    """

    def __init__(self, guide: GuideDraws) -> None:
        super().__init__()
        self.guide = guide

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.guide.of_guide:
            msg["infer"] = {**msg["infer"], "enumerate": None}
        elif is_enumerated(msg):
            self.guide.summed_out.add(msg["name"])


class _Fixed(Messenger):
    """Handler that turns off the enumeration of the sites with given names."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["infer"] = {**msg["infer"], "enumerate": None}


def draw_summed_out(
    model: Program,
    args: Sequence[Any],
    values: Mapping[str, Tensor],
    num_draws: int,
    *,
    plate: str,
    nesting: int | None,
    kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    r"""Sample a model's enumerated sites from their distribution given the data and the other latent sites.

    The sites are sampled in the order of the model, each given the earlier sites, while the later sites are summed out:

    .. math:: y_t \sim p(y_t \mid y_{<t}, x, z) \propto \sum_{y_{>t}} p(x, y, z).

    The model runs at least once for each of these sites.

    Args:
        model: Pyro program of p(x, y, z) that enumerates y.
        args: Arguments of the model.
        values: Values of the other latent sites z, and indices of subsampling plates, by name.
        num_draws: Number of draws that ``values`` hold for each site.
        plate: Name of the data plate.
        nesting: Nesting depth of the program's plates, without the plate of draws. ``None`` if ``values`` have no
            dimension of draws.
        kwargs: Keyword arguments of the model.

    Returns:
        Values of y by name, each with all plate dimensions of its site.
    """
    drawn: dict[str, Tensor] = {}
    while True:
        program = _Fixed(drawn)(model)
        sites = run_model(program, args, {**values, **drawn}, num_draws, kwargs=kwargs, nesting=nesting)
        left = [site for site in sites if is_enumerated(site) and plate in plate_names(site)]
        if not left:
            return drawn
        terms = [(site, masked_score(site)) for site in sites if plate in plate_names(site)]
        table = log_table(terms, left[0])
        chosen = torch.distributions.Categorical(logits=table.movedim(0, -1)).sample()
        drawn[left[0]["name"]] = _value_at(left[0], chosen)


def _value_at(site: Site, chosen: Tensor) -> Tensor:
    """Return values of an enumerated site, given their positions in the support of the site."""
    event, value = site["fn"].event_dim, site["value"]
    support = value.movedim(site["infer"]["_enumerate_dim"] - event, 0)
    own = support.shape[max(1, support.ndim - event - chosen.ndim) :]  # excludes dimensions of other enumerated sites
    own = (1,) * (chosen.ndim + event - len(own)) + own
    support = support.reshape(len(support), *own).expand(len(support), *chosen.shape, *own[chosen.ndim :])
    index = chosen.reshape(1, *chosen.shape, *(1,) * event).expand(1, *support.shape[1:])
    return support.gather(0, index).squeeze(0)
