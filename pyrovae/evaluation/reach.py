"""Search for parts of the posterior that lie outside the support of a guide.

If such a part exists, the expected importance weight is less than p(x), and neither k-hat nor the Monte Carlo error
shows this. Two searches look for such parts, with a few draws for each datum:

1. *Moves from the guide's draws.* The guide's draws, resampled by their weights, follow the posterior inside the
   guide's support. One coordinate of each resampled draw is moved by about a standard deviation, or gets another random
   value if it is discrete. The Metropolis algorithm would accept some of these moves. The search measures the fraction
   of moves that would be accepted and that lead to values outside the guide's support.
2. *Draws from the prior*, weighted by the likelihood, find posterior mass that is far from the guide's draws.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae._waist.draws import run_model
from pyrovae._waist.errors import ProgramError
from pyrovae._waist.plates import dim_of, plate_names
from pyrovae._waist.scoring import masked_score, score
from pyrovae._waist.sites import Site, factors, is_point
from pyrovae._waist.summation import sum_per_datum
from pyrovae._waist.support import bounded_base, is_discrete, is_real, is_same_support, support_of
from pyrovae.evaluation.batches import Batch

if TYPE_CHECKING:
    from pyrovae.evaluation.problem import Problem

NUM_DRAWS = 64  # draws from the guide for each datum, and from the prior if a run can make many draws
MISSED = 0.05  # fraction of the posterior that a guide may miss, an error of 0.05 nats
FLOW = 0.02  # fraction of moves that may leave the guide's support; it is 0.15 for a guide with half a normal posterior
STEP = 1.5  # length of a move, standard deviations
NEVER_DRAWN = -15.0  # log-probability of a discrete value; torch replaces a probability of zero by 1e-7
MOST_VALUES = 1000  # largest number of values of a discrete site that are listed


def check_reach(problem: "Problem") -> None:
    """Check that the support of the guide covers the posterior, as importance sampling requires.

    Nothing is checked if the guide enumerates a site, or is a proposal that is fitted to each datum. Often, the
    supports of the sites show that the guide covers the posterior. If they do not, two searches with draws look for
    posterior mass outside the support of the guide.

    Args:
        problem: Model, guide, data and options, inside the context ``with problem:``.

    Raises:
        ProgramError: If a part of the posterior of a datum lies outside the support of the guide.
    """
    if problem.probe.enumerates or problem.proposal is not None:
        return
    weights = problem.run(problem.few())
    of_model = {site["name"]: site for site in weights.model_sites}
    latents = [site for site in weights.guide_sites if not site["is_observed"] and site["name"] in of_model]
    narrow = {site["name"]: of_model[site["name"]] for site in latents if _may_be_narrow(site, of_model)}
    if not narrow:
        return
    search = _Search(problem, narrow)
    for batch in problem.batches(problem.width(NUM_DRAWS)):
        try:
            flow, missed = search.flow(batch), search.far_part(batch)
        except (RuntimeError, ValueError):  # the evaluation reports a datum that the program cannot score
            continue
        found = ((flow > FLOW) | (missed > MISSED))[: batch.kept]
        if found.any():
            first = int(found.nonzero()[0])
            share = f"about {missed[first]:.0%}" if missed[first] > MISSED else "a part"
            raise ProgramError(
                f"the guide has no density for {share} of the posterior of datum {batch.start + first}: some "
                f"values of the latent sites {list(narrow)} are possible in the model, but not in the guide. Estimates "
                f"of log p(x) would be too low. Give these sites the same support in guide and model."
            )


def _may_be_narrow(site: Site, of_model: Mapping[str, Site]) -> bool:
    fn, other = site["fn"], of_model[site["name"]]["fn"]
    if is_point(fn) or is_real(fn):
        return False
    return is_discrete(fn) or bounded_base(fn) is not None or not is_same_support(support_of(fn), support_of(other))


class _Search:
    """Search for posterior mass outside the support of a guide: by Metropolis moves, and by draws from the prior.

    Args:
        problem: Model, guide, data and options, inside the context ``with problem:``.
        narrow: Latent sites of the model, by name, that may have a larger support in the model than in the guide.
    """

    def __init__(self, problem: "Problem", narrow: Mapping[str, Site]) -> None:
        self.problem, self.narrow = problem, narrow
        self.log_weights = torch.empty(0)

    def flow(self, batch: Batch) -> Tensor:
        """Return for each datum the fraction of moves that leave the guide's support, shape ``(n,)``.

        Each move changes one latent site in ``narrow``. A move that leaves the support is counted with the
        probability that the Metropolis algorithm would accept it. The fractions of all sites in ``narrow`` are added.
        """
        problem, dim = self.problem, self.problem.data_dim
        drawn = problem.draw(batch, NUM_DRAWS)
        log_joint = problem.log_joint(batch, drawn.values, NUM_DRAWS, drawn.masks)
        self.log_weights = (log_joint - drawn.log_q).double().nan_to_num(nan=-torch.inf)
        shares = (self.log_weights - self.log_weights.amax(0).nan_to_num(neginf=0.0)).exp() + 1e-30
        order = torch.multinomial(shares.T, NUM_DRAWS, replacement=True).T  # (draws, data)
        data = torch.arange(order.shape[1], device=order.device)
        values = dict(drawn.values)
        for name in drawn.dims:
            value = values[name].movedim(dim, 1)
            values[name] = value[order, data if value.shape[1] > 1 else 0 * data].movedim(1, dim)
        before, flow = log_joint.gather(0, order), torch.zeros(order.shape[1], dtype=torch.float64)
        for name, site in self.narrow.items():
            spread = drawn.values[name].movedim(dim, 1)
            moved = {**values, name: _moved(site, values[name].movedim(dim, 1), spread).movedim(1, dim)}
            ratio = (problem.log_joint(batch, moved, NUM_DRAWS) - before).clamp(max=0).exp().nan_to_num(nan=0.0)
            flow += torch.where(self._unreachable(batch, moved), ratio, 0.0).double().mean(0).cpu()
        return flow

    def far_part(self, batch: Batch) -> Tensor:
        """Return the fraction of each posterior that lies outside the guide's support, shape ``(n,)``.

        The fraction is estimated with draws from the prior. It is 0 if the model cannot be evaluated at these draws.
        """
        try:
            draws = NUM_DRAWS if self.problem.vectorize else 1
            runs = [self._from_prior(batch, draws) for _ in range(1 if self.problem.vectorize else NUM_DRAWS // 4)]
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:  # a program may raise any error at values that the guide never draws
            return torch.zeros(batch.size, dtype=torch.float64)
        outside = torch.cat(runs).double()
        totals = [part.logsumexp(0) - torch.tensor(float(len(part))).log() for part in (self.log_weights, outside)]
        return torch.stack(totals).softmax(0)[1].nan_to_num(0.0).cpu()

    def _from_prior(self, batch: Batch, draws: int) -> Tensor:
        """Return the log-weights of draws from the prior, shape ``(draws, n)``.

        A draw z outside the guide's support has the log-weight log p(x | z). A draw inside this support has the
        log-weight -inf. The mean weight thus estimates p(x) times the posterior mass outside the guide's support.
        """
        problem, plate = self.problem, self.problem.plate
        options: Any = {"kwargs": problem.options["kwargs"], "nesting": problem.route.nesting}
        sites = run_model(problem.model, batch.args, dict(batch.subsample), draws, **options)
        values = {site["name"]: site["value"] for site in sites if not site["is_observed"]}
        observed = [site for site in sites if site["is_observed"] and plate.name in plate_names(site)]
        terms = [(site, masked_score(site)) for site in observed]
        draws_dim = None if problem.route.nesting is None else -problem.nesting - 1
        likelihood = sum_per_datum(terms, draws_dim, dim_of(plate)).expand(draws, batch.size)
        run = problem.route.run_once(batch, draws, values)
        return torch.where(self._flags(batch, run), likelihood, -torch.inf)

    def _unreachable(self, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
        """Return a mask that is true for values outside the guide's support, shape ``(draws, n)``."""
        return torch.cat([self._flags(batch, run) for run in self.problem.run_guide(batch, values, NUM_DRAWS)])

    def _flags(self, batch: Batch, run: Any) -> Tensor:
        terms = []
        for name in self.narrow:
            site = run.latents[name]
            terms.append((site, _is_never_drawn(site).float()))
        return sum_per_datum(terms, run.draws_dim, dim_of(self.problem.plate)).expand(run.num_draws, batch.size) > 0


def _is_never_drawn(site: Site) -> Tensor:
    """Return a mask, in the batch shape of a site, that is true where the site's value is never drawn.

    A value of density zero is never drawn. For a discrete site with independent entries, a value is never drawn if the
    log-probability of one of its entries is below ``NEVER_DRAWN``. This limit does not apply to the sum over the
    entries, because with many entries the sum is low for every value. A one-hot class is never drawn if its
    log-probability is below the same limit. Any other discrete value is never drawn only if its probability is zero.
    """
    fn, log_prob = site["fn"], score(site)
    never = log_prob < -torch.finfo(torch.float32).max
    if not is_discrete(fn):
        return never
    if (entries := factors(fn)) is not None:
        rare = entries.log_prob(site["value"]) < NEVER_DRAWN
        return never | (rare.flatten(-fn.event_dim).any(-1) if fn.event_dim else rare)
    return never | (log_prob < NEVER_DRAWN) if isinstance(fn, dist.OneHotCategorical) else never


def _moved(site: Site, value: Tensor, drawn: Tensor) -> Tensor:
    """Change one random coordinate of a site in each draw of each datum, and return the new values of the site.

    A discrete site whose entries are not independent, such as a one-hot class, has no single coordinate to change. Its
    values are shifted cyclically along the last dimension. The shift is random, but the same for all draws and data.

    Args:
        site: The site in the model.
        value: Values of the site at draws that follow the posterior, shape ``(draws, n, *rest)``.
        drawn: Values of the site at draws of the guide, shape ``(draws, n, *rest)``. The length of a continuous
            move is proportional to the standard deviation of ``value``, or to a tenth of the standard deviation of
            ``drawn`` if this is larger.
    """
    fn = site["fn"]
    if is_discrete(fn):
        fn = factors(fn) or fn
    if is_discrete(fn) and fn.event_dim:  # one of several classes
        shift = int(torch.randint(1, max(2, value.shape[-1]), ()))
        return value.roll(shift, -1)
    flat = value.flatten(2) if value.ndim > 2 else value.unsqueeze(2)
    place = torch.randint(flat.shape[2], flat.shape[:2], device=flat.device).unsqueeze(2)
    if is_discrete(fn):
        new = _other_value(fn, flat.gather(2, place))
    else:
        spread = torch.maximum(value.std(0, keepdim=True), 0.1 * drawn.std(0, keepdim=True))
        step = STEP * spread.expand_as(value).reshape(flat.shape).gather(2, place)
        new = flat.gather(2, place) + step * torch.randn_like(step)
    return flat.scatter(2, place, new.to(flat)).reshape(value.shape)


def _other_value(fn: Any, value: Tensor) -> Tensor:
    """Return random values that differ from ``value`` in every entry, for a discrete site with distribution ``fn``.

    If the support of ``fn`` can be enumerated, each entry is drawn uniformly from the other values of the support.
    Otherwise, a random integer from 1 to 3 is added to each entry of ``value`` or subtracted from it.
    """
    try:
        known = fn.enumerate_support(expand=False).flatten()
    except (NotImplementedError, AttributeError):  # for example a Poisson, whose support is infinite
        known = torch.empty(0)
    if 1 < len(known) <= MOST_VALUES:
        place = (value.unsqueeze(-1) == known.to(value)).float().argmax(-1)
        other = (place.cpu() + torch.randint(1, len(known), value.shape)) % len(known)
        return known.cpu()[other].to(value)
    step, sign = torch.randint(1, 4, value.shape), 2 * torch.randint(2, value.shape) - 1
    return value + (step * sign).to(value)
