"""Log-weights from one run of the guide and many of the model agree with those of joint runs, compiled or not."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, fx, nn

import pyrovae as pv
from pyrovae._compilation.cuda_graphs import Replay
from pyrovae._compilation.graphs import Graph
from pyrovae.evaluation import evaluate, log_weights
from tests.oracle import Oracle


class Counting(nn.Module):
    """A network that counts the data that it has encoded."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.encoded = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.encoded += x.shape[:-1].numel()
        return self.network(x)


def counting_vae() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(3),
        pv.likelihoods.Bernoulli(pv.networks.mlp(3, 30, 40)),
        pv.posteriors.DiagonalNormal(Counting(pv.networks.mlp(40, 30, 6))),
    )


def binary(size: int) -> Tensor:
    return torch.bernoulli(torch.full((size, 40), 0.4))


def test_each_datum_is_encoded_once_for_any_number_of_draws() -> None:
    vae, x = counting_vae(), binary(50)
    encoder = vae.posterior.network
    encoded = []
    for num_samples in (100, 3000):
        encoder.encoded = 0
        log_weights(vae.model, vae.guide, x, num_samples, seed=0, memory=2**22)
        encoded.append(encoder.encoded)
    assert encoded[0] == encoded[1], "as often for many draws, in many chunks, as for few"


def test_draws_do_not_depend_on_the_chunks_of_the_model() -> None:
    vae, x = counting_vae(), binary(8)
    chunks = [log_weights(vae.model, vae.guide, x, 500, seed=0, memory=memory) for memory in (2**21, 2**23)]
    torch.testing.assert_close(*chunks, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("num_samples", "prior"),
    [
        (1000, pv.priors.StandardNormal(3)),
        (997, pv.priors.VampPrior(5, data=binary(9))),
        pytest.param(997, pv.priors.StandardNormal(3), marks=pytest.mark.slow),
        pytest.param(1000, pv.priors.VampPrior(5, data=binary(9)), marks=pytest.mark.slow),
    ],
)
def test_compiled_weights_are_the_eager_ones(num_samples: int, prior: nn.Module) -> None:
    vae, x = counting_vae(), binary(37)
    vae = pv.VAE(prior, vae.likelihood, vae.posterior)
    eager, compiled = (
        log_weights(vae.model, vae.guide, x, num_samples, seed=0, memory=2**21, compile=is_compiled)
        for is_compiled in (False, True)
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-4)


def folded(function: Callable[[], Tensor], fixed: Tensor, varying: Tensor) -> Graph:
    graph = Graph(lambda: [function()], [fixed], [varying])
    graph.fold()
    return graph


def products(graph: Graph) -> int:
    return sum(node.target is torch.ops.aten.mm.default for node in graph.module.graph.nodes)


def test_products_of_parameters_alone_are_made_once() -> None:
    w, x, z = nn.Parameter(torch.randn(4, 4)), torch.randn(4, 4), torch.randn(4, 4)
    graph = folded(lambda: (w @ (w @ w).exp()).tanh() @ x + w @ x, w, x)
    assert products(graph) == 2
    assert len(graph.found) == 1, "the one product that is of use"
    (value,) = graph.module(w, z, *graph.found)
    torch.testing.assert_close(value, (w @ (w @ w).exp()).tanh() @ z + w @ z)


@pytest.mark.usefixtures("interpreted")
def test_components_of_a_vampprior_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, left = counting_vae(), []
    vae = pv.VAE(pv.priors.VampPrior(5, data=binary(9)), vae.likelihood, vae.posterior)
    compiled = Graph.compile

    def counting(graph: Graph) -> Callable[..., Sequence[Tensor]]:
        left.append(sum(node.target is torch.ops.aten.addmm.default for node in graph.module.graph.nodes))
        return compiled(graph)

    monkeypatch.setattr(Graph, "compile", counting)
    log_weights(vae.model, vae.guide, binary(37), 100, seed=0, compile=True)
    assert left == [2], "the layers of the decoder"


def test_products_of_draws_and_of_changed_tensors_are_computed_again() -> None:
    w, x = nn.Parameter(torch.randn(4, 4)), torch.randn(4, 4)
    assert products(folded(lambda: w @ torch.randn_like(w) + x, w, x)) == 1
    assert products(folded(lambda: w @ w + (w * 1).mul_(x), w, x)) == 1


def test_products_are_made_in_the_precision_of_the_graph() -> None:
    w, x = nn.Parameter(torch.randn(4, 4)), torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            graph = Graph(lambda: [w @ w + x], [w], [x])
        graph.fold()
    assert graph.found[0].dtype == torch.float32


def _run(module: fx.GraphModule, found: list[Tensor], w: Tensor, x: Tensor) -> Sequence[Tensor]:
    return module(w, x, *found)


def test_a_captured_graph_keeps_the_tensors_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDAGraph", "Stream", "current_stream", "stream", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    w, x = nn.Parameter(torch.randn(4, 4)), torch.randn(4, 4)
    graph = folded(lambda: w @ w + x, w, x)
    product = weakref.ref(graph.found[0])
    run = partial(_run, graph.module, graph.found, w)
    replay = Replay(run, [x], [])
    del graph, run
    assert product() is not None
    del replay
    assert product() is None


def test_values_that_a_guide_stores_reach_the_model() -> None:
    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1, 4))
            self.mix, self.decoder = nn.Parameter(torch.randn(4, 4)), nn.Linear(2, 4)

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z) + self.mean @ self.mix, 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            self.mean.copy_(self.decoder.bias[None])
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    programs, x = Noting(), torch.randn(64, 4)
    eager, compiled = (
        log_weights(programs.model, programs.guide, x, 200, seed=0, memory=2**17, compile=is_compiled)
        for is_compiled in (False, True)
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-4)


def test_compiled_weights_of_a_plate_that_takes_a_part() -> None:
    oracle = Oracle()
    x = oracle.data(53)

    def run(sites: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def program(x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=10) as chosen:
                sites(x[chosen])

        return program

    def model(x: Tensor) -> None:
        z = pyro.sample("z", oracle.vae.prior())
        pyro.sample("x", oracle.vae.likelihood(z), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", oracle.vae.posterior(x))

    weights = log_weights(run(model), run(guide), x, 4, compile=True)
    torch.testing.assert_close(weights, oracle.log_likelihood(x).expand(4, 53))


def test_programs_that_cannot_be_compiled_are_evaluated_uncompiled() -> None:
    oracle = Oracle()
    x = oracle.data(5)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", oracle.vae.prior())
            scale = 1.0 if (z > -1e9).all() else 2.0
            pyro.sample("x", oracle.vae.likelihood(z * scale), obs=x)

    with pytest.warns(UserWarning, match="evaluation continues without compilation: a decision in Python depends"):
        weights = log_weights(model, oracle.vae.guide, x, 4, compile=True)
    torch.testing.assert_close(weights, oracle.log_likelihood(x).expand(4, 5))


def test_products_in_bfloat16_are_close_and_recorded() -> None:
    vae, x = counting_vae(), binary(20)
    exact, rounded = (
        evaluate(vae.model, vae.guide, x, 200, seed=0, precision=precision) for precision in (None, "bfloat16")
    )
    error = abs(exact.log_likelihood - rounded.log_likelihood)
    assert 0 < float(error.max()) < 0.1
    assert rounded.attrs["precision"] == "bfloat16"
    with pytest.raises(ValueError, match="'tf32' is available only on CUDA devices"):
        evaluate(vae.model, vae.guide, x, 2, precision="tf32")


def test_a_discrete_site_is_drawn_once_for_all_chunks() -> None:
    logits = torch.randn(3, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=x.dtype)))
            pyro.sample("x", dist.Normal(y.to(x.dtype), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits.expand(len(x), 3)))

    x = torch.randn(6, dtype=torch.float64)
    weights = log_weights(model, guide, x, 4000, seed=0, memory=4000)
    exact = torch.stack([dist.Normal(float(y), 1.0).log_prob(x) for y in range(3)]).exp().mean(0).log()
    assert (weights.logsumexp(0) - torch.tensor(4000.0).log() - exact).abs().max() < 0.2
