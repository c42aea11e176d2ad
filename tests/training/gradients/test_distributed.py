"""Several processes compute the same results as one."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pyrovae as pv
from tests.conftest import small_vae
from tests.processes import in_each
from tests.training.gradients.examples import Outcome, layers, vae_with

COMPONENTS = {  # the components of ordinary tests
    "prior VampPrior", "posterior InverseAutoregressiveFlow", "posterior MultivariateNormal", "gated networks",
    "dropout", "hierarchy top-down, VampPrior", "semi-supervised", "Bayesian", "script Pixels",
    "scores", "batch norm", "parameters in the store", "global latent",
}  # fmt: skip
OTHER_NOISE = {  # gamma draws, a component's draws where no site is, permutations
    "posterior StudentT", "posterior NormalizingFlow", "posterior SemiAmortized", "subsample and penalty",
}  # fmt: skip
SHARED = {"global latent", "AutoNormal", "AutoMultivariateNormal"}  # one process trains them on all data at once
WHOLE = {"batch_size": 99}
REFUSED = {
    "batch norm": "'guide.posterior.network.1' is a BatchNorm1d, which would normalize each process's slice",
    "parameters in the store": "'pyro.param weight' does not belong to Stored. Make it a torch.nn.Parameter of the",
    "global latent": "site 'loc' lies outside the data plate 'data', so each process would count it",
    "AutoNormal": "site 'loc' lies outside the data plate 'data'",
    "AutoMultivariateNormal": "site 'loc' lies outside the data plate 'data'",
    **dict.fromkeys(
        [
            "scores, TraceGraph", "TraceGraph_ELBO", "RenyiELBO", "RenyiELBO, vectorized", "FreeBits",
            "Pyro's ReweightedWakeSleep", "BetaTC", "MMD",
        ],
        "is not known to be a sum over the data, so it could depend on the number of processes",
    ),
}  # fmt: skip


def run_example(make: Callable[[], Any], **options: Any) -> Outcome:
    """Train an example, and return its state with the learning curves, or the reason of a refusal."""
    pyro.clear_param_store()
    torch.manual_seed(7)
    made = make()
    data = tuple(torch.cat(parts) for parts in zip(*made.batches, strict=True))
    size = len(made.batches[0][0]) - 1  # batch size that leaves one or two data over
    usual = {"epochs": 2, "batch_size": size, "learning_rate": 0.01, "seed": 3, "progress": False}
    try:
        history = pv.fit(made.module, data, data, objective=made.objective, **{**usual, **options})
    except ValueError as error:
        return str(error)
    return made.module.state_dict(), {"train": history.train, "valid": history.valid}


def run_components(names: list[str]) -> list[Outcome]:
    pyro.set_rng_seed(0)  # some of what is imported has random weights
    from tests.examples import BY_COMPONENT

    return [run_example(BY_COMPONENT[name], **(WHOLE if name in SHARED else {})) for name in names]


def run_objectives(names: list[str]) -> list[Outcome]:
    from tests.examples import OBJECTIVES, binary, example

    def make(name: str) -> Any:
        return example(small_vae(), binary(8, 6), objective=OBJECTIVES[name]())

    return [run_example(lambda name=name: make(name), kl_warmup=2, clip_norm=1.0) for name in names]


def check_together(run: Callable[[list[str]], list[Outcome]], names: list[str]) -> None:
    """Compare training in two processes with training in one: equal up to rounding, and identical in both processes."""
    (alone,), together = in_each(1, run, names), in_each(2, run, names)
    for name, expected, first, second in zip(names, alone, *together, strict=True):
        assert not isinstance(expected, str), expected
        if name in REFUSED:
            assert REFUSED[name] in first
            assert first == second
            continue
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        if name in OTHER_NOISE:
            assert not torch.allclose(torch.tensor(first[1]["train"]), torch.tensor(expected[1]["train"]))
        else:
            torch.testing.assert_close(first, expected, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: name + text)


def test_two_processes_have_the_result_of_one_in_training() -> None:
    check_together(run_components, sorted(COMPONENTS))
    check_together(run_objectives, ["Trace_ELBO", "IWAE", "doubly", "BetaELBO of IWAE"])


@pytest.mark.slow
def test_two_processes_train_every_example_of_one() -> None:
    from tests.examples import BY_COMPONENT, OBJECTIVES

    check_together(run_components, [name for name in BY_COMPONENT if name != "enumerated by the model"])
    without_loss = {"TraceTailAdaptive_ELBO", "Trace_MMD"}
    check_together(run_objectives, [name for name in OBJECTIVES if name not in without_loss])


class Checkpointed(nn.Module):
    """A network that runs again in the backward pass, with the same dropout."""

    def __init__(self, *layers: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.layers, self.reentrant = nn.Sequential(*layers), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


class Unused(nn.Module):
    """A network with a part that does not affect the loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.other = network, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]


def checkpointed(reentrant: bool) -> pv.VAE:
    first, *others = layers()
    return vae_with(nn.Sequential(first, Checkpointed(*others, reentrant=reentrant)))


def noisy_autoencoder() -> nn.Module:
    encoder, decoder = pv.networks.mlp(6, 4), pv.networks.mlp(4, 6)
    return pv.autoencoders.Autoencoder(encoder, decoder, corruption=pv.autoencoders.Masking(0.3)).double()


class Whole(pv.VAE):
    """A VAE whose declared number of data is that of a batch."""

    def __init__(self) -> None:
        vae = small_vae()
        super().__init__(vae.prior, vae.likelihood, vae.posterior)
        self.model.data_size = self.guide.data_size = 23


MODULES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "fewer data than processes": (small_vae, {"batch_size": 11}),  # the last of 23
    "one by one": (small_vae, {"batch_size": 1, "epochs": 1}),
    "all at once": (small_vae, {"batch_size": 23}),
    "scaled": (Whole, {"batch_size": 23, "valid": None}),  # in which each slice is scaled, and the whole is not
    "scaled, in batches": (Whole, {"batch_size": 10}),
    "binary anew": (small_vae, {"transform": pv.data.binarize}),
    "several draws, dropout": (lambda: vae_with(nn.Sequential(*layers())), {"objective": pv.objectives.IWAE(3)}),
    "checkpointed": (lambda: checkpointed(reentrant=False), {}),
    "checkpointed, reentrant": (lambda: checkpointed(reentrant=True), {}),
    "a part unused": (lambda: vae_with(Unused(pv.networks.mlp(6, 8, 4))), {}),
    "autoencoder": (noisy_autoencoder, {}),
    "AdamW, patience": (small_vae, {"optimizer": torch.optim.AdamW, "patience": 1, "learning_rate": 0.1}),
}


def run_modules(names: list[str]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for make, options in (MODULES[name] for name in names):
        torch.manual_seed(7)
        module = make().double()
        x = torch.rand(23, 6, dtype=torch.float64)
        x = x if "transform" in options else x.round()
        usual = {"epochs": 2, "batch_size": 10, "learning_rate": 0.01, "seed": 3, "progress": False}
        history = pv.fit(module, x, **{"valid": x[:9].round(), **usual, **options})
        outcomes.append((module.state_dict(), {"train": history.train, "valid": history.valid}))
    return outcomes


def test_batches_of_all_sizes_and_modules_of_all_kinds() -> None:
    check_together(run_modules, list(MODULES))
