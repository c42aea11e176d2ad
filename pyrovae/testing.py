"""Checks that priors, likelihoods and posteriors fulfil their contract, for components of this package and your own.

A test of a new prior, likelihood or posterior is one line, ``pv.testing.check_prior(MyPrior(5), latent=5)``. Any
callable that returns a distribution can be checked. Parameters, copies, dtypes and devices are checked only if the
callable is a module.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae._warnings import find_stack_level

__all__ = ["check_likelihood", "check_posterior", "check_prior"]

Component = Callable[..., Any]


def check_prior(prior: Component, *, latent: int) -> None:
    """Check the contract of a prior: batch shape ``()``, event shape ``(latent,)`` and finite log-densities.

    Args:
        prior: ``() -> p(z)``, or a distribution.
        latent: Number of latent dimensions.

    Raises:
        AssertionError: If the prior violates the contract. The message names the rule.

    Example:
        >>> import pyrovae as pv
        >>> pv.testing.check_prior(pv.priors.StandardNormal(5), latent=5)
    """
    made: Any = prior  # a plain distribution is allowed, but calling it would make a draw
    _check((lambda: made) if isinstance(made, torch.distributions.Distribution) else prior, [()], (latent,))


def check_likelihood(likelihood: Component, *, latent: int, event_shape: Sequence[int]) -> None:
    """Check the contract of a likelihood: ``likelihood(z)`` has the batch shape of ``z`` and the given event shape.

    Args:
        likelihood: ``z -> p(x | z)``.
        latent: Number of latent dimensions.
        event_shape: Shape of a datum.

    Raises:
        AssertionError: If the likelihood violates the contract. The message names the rule.

    Example:
        >>> import pyrovae as pv
        >>> pv.testing.check_likelihood(pv.likelihoods.Bernoulli(pv.networks.mlp(2, 3)), latent=2, event_shape=(3,))
    """
    _check(likelihood, [(torch.randn(*batch, latent),) for batch in _BATCHES], event_shape)


def check_posterior(posterior: Component, *, event_shape: Sequence[int], latent: int) -> None:
    """Check the contract of a posterior: ``posterior(x)`` has the batch shape of ``x`` and event shape ``(latent,)``.

    Args:
        posterior: ``x -> q(z | x)``.
        event_shape: Shape of a datum.
        latent: Number of latent dimensions.

    Raises:
        AssertionError: If the posterior violates the contract. The message names the rule.

    Example:
        >>> import pyrovae as pv
        >>> posterior = pv.posteriors.DiagonalNormal(pv.networks.mlp(3, 2 * 2))
        >>> pv.testing.check_posterior(posterior, event_shape=(3,), latent=2)
    """
    _check(posterior, [(torch.rand(*batch, *event_shape),) for batch in _BATCHES], (latent,), len(event_shape))


_BATCHES: list[tuple[int, ...]] = [(), (3,), (2, 3)]


def _check(
    component: Component, contexts: list[tuple[Any, ...]], event_shape: Sequence[int], event_dim: int = 1
) -> None:
    for context in contexts:
        batch_shape = context[0].shape[: context[0].ndim - event_dim] if context else torch.Size()
        _check_shapes(component, context, batch_shape, torch.Size(event_shape))
        _check_broadcasting(component, context)
    if contexts[-1]:
        _check_leading_dimensions(component, contexts[-1][0])
    if isinstance(component, nn.Module):
        _check_gradients(component, contexts[-1])
        _check_copies(component, contexts[-1])
        _check_dtype(component, contexts[-1])
        _check_device(component, contexts[-1], torch.Size(event_shape))


def _check_shapes(component: Component, context: tuple[Any, ...], batch: torch.Size, event: torch.Size) -> None:
    p = component(*context)
    shapes = tuple(getattr(p, "batch_shape", ())), tuple(getattr(p, "event_shape", ()))
    assert isinstance(p, torch.distributions.Distribution), f"returned a {type(p).__name__}, not a distribution"
    assert p.batch_shape == batch, f"batch shape is {shapes[0]}, but that of the context is {tuple(batch)}"
    assert p.event_shape == event, f"event shape is {shapes[1]}, expected {tuple(event)}"
    draw = p.sample()
    assert draw.shape == batch + event, f"a draw has shape {tuple(draw.shape)}, expected {tuple(batch + event)}"
    log_prob = p.log_prob(draw)
    assert log_prob.shape == batch, f"log_prob has shape {tuple(log_prob.shape)}, expected {tuple(batch)}"
    assert log_prob.isfinite().all(), "log_prob of a draw is not finite"


def _check_broadcasting(component: Component, context: tuple[Any, ...]) -> None:
    p = component(*context)
    draws = p.sample((4,))
    together = p.log_prob(draws)
    apart = torch.stack([p.log_prob(draw) for draw in draws])
    assert together.shape == apart.shape, (
        f"log_prob of 4 draws has shape {tuple(together.shape)}, not {tuple(apart.shape)}"
    )
    torch.testing.assert_close(
        together, apart, msg=lambda m: f"log_prob does not broadcast over leading dimensions: {m}"
    )


def _check_leading_dimensions(component: Component, context: Tensor) -> None:
    p = component(context)
    draw = p.sample()
    apart = torch.stack([component(part).log_prob(value) for part, value in zip(context, draw, strict=True)])
    torch.testing.assert_close(
        p.log_prob(draw), apart, msg=lambda m: f"leading dimensions of the context are not independent: {m}"
    )


def _check_gradients(component: nn.Module, context: tuple[Any, ...]) -> None:
    component = copy.deepcopy(component)
    p = component(*context)
    log_prob = p.log_prob(p.sample()).sum()
    if log_prob.requires_grad:
        log_prob.backward()
    for name, parameter in component.named_parameters():
        assert parameter.grad is not None, f"no gradient of log_prob reaches the parameter {name}"
        assert parameter.grad.isfinite().all(), f"the gradient of log_prob at the parameter {name} is not finite"


def _check_copies(component: nn.Module, context: tuple[Any, ...]) -> None:
    draw = component(*context).sample()
    expected = component(*context).log_prob(draw)
    clone = copy.deepcopy(component)
    torch.testing.assert_close(clone(*context).log_prob(draw), expected, msg=lambda m: f"a deep copy differs: {m}")
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(1)
    torch.testing.assert_close(
        component(*context).log_prob(draw), expected, msg=lambda m: f"a deep copy shares parameters: {m}"
    )
    clone.load_state_dict(component.state_dict())
    torch.testing.assert_close(
        clone(*context).log_prob(draw), expected, msg=lambda m: f"the state dict does not hold everything: {m}"
    )


def _check_dtype(component: nn.Module, context: tuple[Any, ...]) -> None:
    clone = copy.deepcopy(component).double()
    p = clone(*(part.double() for part in context))
    log_prob = p.log_prob(p.sample())
    assert log_prob.dtype == torch.float64, f"after .double(), log_prob is {log_prob.dtype}"


def _check_device(component: nn.Module, context: tuple[Any, ...], event: torch.Size) -> None:
    """Check that moving a module to another device also moves all tensors that the module uses.

    A copy of the module is moved to the meta device, because torch has this device on every machine.
    """
    clone = copy.deepcopy(component).to("meta")
    with pyro.validation_enabled(False):  # tensors on the meta device have no values to validate
        try:
            p = clone(*(part.to("meta") for part in context))
            log_prob = p.log_prob(torch.empty(*p.batch_shape, *event, device="meta"))
        except NotImplementedError as error:  # an operation such as torch.nonzero needs values
            warnings.warn(
                f"it could not be checked that all tensors of {type(component).__name__} move with the module, because "
                f"an operation fails on the meta device, where tensors have no values "
                f"({str(error).splitlines()[0][:80]}). Run the check once on a CUDA device.",
                stacklevel=find_stack_level(),
            )
            return
        except RuntimeError as error:
            raise AssertionError(f"after .to(device), a tensor is not on the device: {error}") from error
    assert log_prob.device.type == "meta", f"after .to(device), log_prob is still on {log_prob.device}"
