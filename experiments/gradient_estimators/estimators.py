r"""Estimators of the ELBO's gradient, all of them Pyro's own, for one and the same VAE.

With f(z) = log p(x, z) - log q(z | x) and the mean over L draws z from q, whose parameters are phi:

    reparameterized   grad_phi f(g_phi(eps)), z = g_phi(eps)                    Trace_ELBO
    closed-form KL    grad_phi [log p(x | g_phi(eps)) - KL(q || p(z))]          TraceMeanField_ELBO
    score function    f(z) grad_phi log q(z | x)                                Trace_ELBO
    with baseline b   (f(z) - b) grad_phi log q(z | x)                          TraceGraph_ELBO
    density alone     grad_phi f(z), z taken for a constant                     Trace_ELBO

Pyro takes the score function wherever a site's distribution says that its draws are not reparameterized, so a posterior
is changed in that one word. The last line is biased: its mean is -E[grad_phi log q(z | x)] = 0, whatever the gradient.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Size, Tensor, nn

import pyrovae as pv
from experiments._comparison import mlp


class UnreparameterizedNormal(dist.Normal):
    """A normal distribution whose draws have no path to its parameters.

    ``has_rsample_(False)`` says the same of one instance, but not of the one that a plate expands it to.
    """

    has_rsample = False


class ConstantNormal(dist.Normal):
    """A normal distribution that passes constants for reparameterized draws."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns a draw."""
        return super().rsample(Size(sample_shape)).detach()


class Estimator(NamedTuple):
    """An objective, the family of q, and the baseline of its score function."""

    objective: type[ELBO]
    family: type[dist.Normal] = dist.Normal
    baseline: Literal["average", "network"] | None = None


ESTIMATORS = {
    "reparameterized": Estimator(Trace_ELBO),
    "closed-form KL": Estimator(TraceMeanField_ELBO),
    "score function": Estimator(Trace_ELBO, UnreparameterizedNormal),
    "average baseline": Estimator(TraceGraph_ELBO, UnreparameterizedNormal, "average"),
    "network baseline": Estimator(TraceGraph_ELBO, UnreparameterizedNormal, "network"),
    "density alone": Estimator(Trace_ELBO, ConstantNormal),
}


class Family(nn.Module):
    """A posterior of another family of the same location and scale."""

    def __init__(self, posterior: Callable[..., Any], family: type[dist.Normal]) -> None:
        super().__init__()
        self.posterior, self.family = posterior, family

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Returns q(z | x)."""
        q = self.posterior(x).base_dist
        return self.family(q.loc, q.scale).to_event(1)


class Estimated(nn.Module):
    """The model and guide of a VAE, whose parameters they share, as an estimator takes them.

    Args:
        vae: Its posterior is a diagonal normal.
        estimator: Says the posterior's family and the baseline: a decaying average of f for each place in a batch, or
            beside it a network of x.
        event_shape: Shape of a datum.
        hidden: Width of the baseline's network.
    """

    def __init__(self, vae: pv.VAE, estimator: Estimator, event_shape: Size, hidden: int = 100) -> None:
        super().__init__()
        changed = pv.VAE(vae.prior, vae.likelihood, Family(vae.posterior, estimator.family))
        self.model, self.encoder = changed.model, changed.guide
        self.baseline = estimator.baseline
        if self.baseline == "network":
            self.network = nn.Sequential(mlp(event_shape, hidden, 1), nn.Flatten(-2))

    def guide(self, x: Tensor) -> Any:
        """Runs the guide on data ``x``, and tells Pyro of the baseline."""
        options: dict[str, Any] = {"use_decaying_avg_baseline": self.baseline is not None}
        if self.baseline == "network":
            options |= {"nn_baseline": self.network, "nn_baseline_input": x}
        infer: Any = {"baseline": options}
        return poutine.infer_config(self.encoder, lambda _: infer)(x)
