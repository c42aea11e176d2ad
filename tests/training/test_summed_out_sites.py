"""``fit`` refuses objectives of Pyro that draw a site which only the model enumerates: their loss is not a bound."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyrovae as pv

X = torch.randn(6, generator=torch.Generator().manual_seed(0))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.means[y.long()], 1.0), obs=x)

    def guide(self, x: Tensor) -> None: ...


@pytest.mark.parametrize(
    "objective",
    [None, Trace_ELBO(), TraceMeanField_ELBO(), TraceGraph_ELBO(), RenyiELBO(), pv.objectives.BetaELBO(2.0)],
)
def test_an_objective_that_draws_the_site_is_refused(objective: ELBO | None) -> None:
    with pytest.raises(ValueError, match=r"enumerates site 'y', .* does not sum the site out"):
        pv.fit(Mixture(), X, objective=objective, epochs=1, progress=False)


def test_an_objective_that_sums_the_site_out_has_log_p_of_x() -> None:
    own = Mixture()
    densities = dist.Normal(own.means, 1.0).log_prob(X.unsqueeze(-1)).exp() @ torch.tensor([0.7, 0.3])
    exact = float(densities.log().mean().detach())
    for objective in (TraceEnum_ELBO(max_plate_nesting=1), TraceEnum_ELBO(), pv.objectives.IWAE(2)):
        history = pv.fit(own, X, objective=objective, epochs=1, learning_rate=1e-9, batch_size=6, progress=False)
        assert history.train[0] == pytest.approx(exact, abs=1e-5)
