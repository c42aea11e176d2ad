r"""Estimators of the gradient of the ELBO, all implemented by Pyro, for the same VAE.

With f(z) = log p(x, z) - log q(z | x) and the mean over L draws z from q, whose parameters are phi:

    reparameterized   grad_phi f(g_phi(eps)), z = g_phi(eps)                    Trace_ELBO
    closed-form KL    grad_phi [log p(x | g_phi(eps)) - KL(q || p(z))]          TraceMeanField_ELBO
    score function    f(z) grad_phi log q(z | x)                                Trace_ELBO
    with baseline b   (f(z) - b) grad_phi log q(z | x)                          TraceGraph_ELBO
    density alone     grad_phi f(z), z treated as a constant                    Trace_ELBO

Pyro uses the score function for every site whose distribution declares that its draws are not reparameterized. The
posteriors therefore differ in this declaration only. The last estimator is biased: its mean is
-E[grad_phi log q(z | x)] = 0 for any gradient.
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
    """A normal distribution whose draws carry no gradient to its parameters.

    ``has_rsample_(False)`` declares the same for one instance, but the instance that a plate expands loses it.
    """

    has_rsample = False


class ConstantNormal(dist.Normal):
    """A normal distribution that returns constants as if they were reparameterized draws."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return a draw without gradient."""
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
    """A posterior of another family with the same location and scale."""

    def __init__(self, posterior: Callable[..., Any], family: type[dist.Normal]) -> None:
        super().__init__()
        self.posterior, self.family = posterior, family

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z | x)."""
        q = self.posterior(x).base_dist
        return self.family(q.loc, q.scale).to_event(1)


class Estimated(nn.Module):
    """Model and guide that share the parameters of a VAE, for use with an estimator.

    Args:
        vae: VAE with a diagonal normal posterior.
        estimator: Estimator with the posterior's family and the baseline. The baseline is a decaying average of f for
            each position in a batch, or this average plus a network of x.
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
        """Run the guide on data ``x``, with the baseline registered in Pyro."""
        options: dict[str, Any] = {"use_decaying_avg_baseline": self.baseline is not None}
        if self.baseline == "network":
            options |= {"nn_baseline": self.network, "nn_baseline_input": x}
        infer: Any = {"baseline": options}
        return poutine.infer_config(self.encoder, lambda _: infer)(x)
