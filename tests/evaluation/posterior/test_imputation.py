"""``impute`` refuses data and masks that it cannot use before the first draw."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv

X = torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(0)).round()
OBSERVED = torch.tensor([[True, False], [True, True]]).expand(4, 2, 2)


def programs(*, cut: bool) -> tuple[object, object]:
    """Return a program that observes all entries, or a part of the image, as Pyro's conditional VAE does."""

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            if cut:
                pyro.sample("x", dist.Bernoulli(logits=z[..., 1:]).to_event(1), obs=x.flatten(1)[:, 1:])
            else:
                bits = dist.Bernoulli(logits=z.unflatten(-1, (2, 2)))
                pyro.sample("x", bits.mask(mask.bool()).to_event(2), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))

    return model, guide


def test_a_site_with_a_part_of_the_entries() -> None:
    with pytest.raises(ValueError, match=r"site 'x' has entries of shape \(3,\) for a datum, .* have shape \(2, 2\)"):
        pv.evaluation.impute(*programs(cut=True), (X, OBSERVED), 10, seed=0)


def test_a_second_tensor_that_is_not_a_mask() -> None:
    with pytest.raises(ValueError, match="the mask holds values from -1 to 1"):
        pv.evaluation.impute(*programs(cut=True), (X, torch.where(OBSERVED, X, -1.0)), 10, seed=0)


def test_data_that_are_not_floating_point_numbers() -> None:
    message = r"got a tensor of dtype torch\.int64 and a tensor of dtype torch\.bool\. Pass \(torch\.as_tensor\(x\)"
    with pytest.raises(TypeError, match=message):
        pv.evaluation.impute(*programs(cut=False), (X.long(), OBSERVED), 10, seed=0)
    with pytest.raises(TypeError, match=r"got a ndarray and a ndarray\. Pass "):
        pv.evaluation.impute(*programs(cut=False), (X.numpy(), OBSERVED.numpy()), 10, seed=0)


@pytest.mark.parametrize("mask", [OBSERVED, OBSERVED.float(), OBSERVED.long()])
def test_masks_of_several_types(mask: Tensor) -> None:
    found = pv.evaluation.impute(*programs(cut=False), (X, mask), 2000, seed=0)
    assert torch.equal(torch.from_numpy(found["mean"].values)[OBSERVED], X[OBSERVED])
    assert abs(found["mean"].values[:, 0, 1] - 0.5).max() < 0.05
