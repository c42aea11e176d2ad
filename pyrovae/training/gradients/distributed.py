r"""A loss whose batches are sliced over processes, and its gradient by torch's DistributedDataParallel.

A batch B is divided into contiguous slices :math:`B_r`, one for each process. Let :math:`S(B)` be the factor that turns
the loss :math:`L(B)` into a sum over the data of B. Then

.. math:: L(B) = \sum_r \frac{S(B_r)}{S(B)} \, L(B_r),

for losses that are sums or means over the data. If there are fewer data than processes, each process without data takes
the first datum with weight 0. DistributedDataParallel averages gradients over the processes, so each process multiplies
its loss by the number of processes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pyrovae import parallel
from pyrovae._waist.plates import site_plates
from pyrovae._waist.single_runs import trace
from pyrovae._waist.sites import is_enumerated
from pyrovae.isolation import isolated
from pyrovae.training.batches import Batch
from pyrovae.training.gradients.noise import Noise, SiteLocator, Slice
from pyrovae.training.losses import Bound, Loss
from pyrovae.training.state import Tensors

_SUMS = Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO


class DistributedGradients:
    """Loss and gradient of a batch that is sliced over processes.

    Each process computes the loss and gradient of its slice. All processes receive the sums over the slices.

    Args:
        loss: Loss to differentiate. Its method ``check`` must have been called before.
        tensors: Tensors of the module and its programs.
        parameters: Trained parameters by name.
        batch: A batch of the data.

    Raises:
        ValueError: If the result would differ from that of a single process: the loss is not known to be a sum over the
            data, a parameter does not belong to the module, the module uses batch normalization, or a site lies outside
            the data plate.
    """

    is_compiled = False
    compile_seconds = 0.0

    def __init__(self, loss: Loss, tensors: Tensors, parameters: Mapping[str, Tensor], batch: Batch) -> None:
        self.noise, self.loss, self.parameters = Noise(), loss, parameters
        _check(loss, tensors)
        if isinstance(loss, Bound):
            _check_outside(loss, batch)
            self.loss = loss.wrapped(SiteLocator(self.noise, loss.plate))
        self.module = tensors.module
        unused = self._leaves_some_out(batch)
        self.distributed = DistributedDataParallel(
            DistributedLoss(self.module, self.loss), find_unused_parameters=unused
        )

    def __call__(self, batch: Batch, kl_weight: float) -> Tensor:
        """Return the loss of a batch, and store its gradient."""
        piece, mine, weight = self._mine(batch)
        with self.loss.context(kl_weight):
            with self.noise.of(piece):
                loss = self.distributed(mine, weight * parallel.size())
            self._backward(loss)
        total: Tensor = loss.detach() / parallel.size()
        dist.all_reduce(total)
        parallel.share_generators()
        return total

    def value(self, batch: Batch) -> float:
        """Return the loss of a batch without computing a gradient."""
        piece, mine, weight = self._mine(batch)
        with self.noise.of(piece):
            total = torch.tensor(weight * self.loss.value(mine), dtype=torch.float64)
        dist.all_reduce(total)
        parallel.share_generators()
        return float(total)

    def update(self, step: Callable[[], None]) -> None:
        """Make the optimizer's step, which is the same in all processes."""
        step()

    def compare(self) -> None:
        """Do nothing, because the gradient is not compiled."""

    def sync_buffers(self) -> None:
        """Copy the buffers of the first process to all processes, as DistributedDataParallel does before each step."""
        for buffer in self.module.buffers():
            dist.broadcast(buffer, src=0)

    def _leaves_some_out(self, batch: Batch) -> bool:
        """Return whether the loss ignores some parameters.

        If it does, DistributedDataParallel must find the ignored parameters at each step.
        """
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        piece, mine, _ = self._mine(batch)
        with isolated(*self.loss.programs, seed=0), torch.enable_grad():
            with self.noise.of(piece):
                loss = self.loss.differentiable(mine)
            self._backward(loss)
        unused = any(parameter.grad is None for parameter in parameters)
        for parameter in parameters:
            parameter.grad = None
        return unused

    def _backward(self, loss: Tensor) -> None:
        if loss.requires_grad:
            with self.noise.again():
                torch.autograd.backward(loss)

    def _mine(self, batch: Batch) -> tuple[Slice, Batch, float]:
        """Return this process's slice of a batch as indices, the data in the slice, and the weight of their loss.

        The loss of the batch is the sum of the weighted losses of all processes. If there are more processes than data,
        each process that has no slice gets the first datum with weight 0.
        """
        size, rank = len(batch[0]), parallel.rank()
        if rank >= size:
            piece = Slice(0, 1, size)
            return piece, _part(batch, piece), 0.0
        piece = _slices(size)[rank]
        part = _part(batch, piece)
        counts = self.loss.data_count(part), self.loss.data_count(batch)
        return piece, part, (len(part[0]) / counts[0]) / (size / counts[1])


class DistributedLoss(nn.Module):
    """A module whose forward method computes a loss, because DistributedDataParallel runs only forward methods."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, part: Batch, weight: float) -> Tensor:
        """Return the loss of a slice of the batch, multiplied by ``weight``, shape ``()``."""
        return weight * self.loss.differentiable(part)


def _slices(size: int) -> list[Slice]:
    """Return the slices of a batch, one for each process. Sizes differ by at most one; larger slices come first."""
    parts = torch.arange(size).tensor_split(min(size, parallel.size()))
    return [Slice(int(part[0]), len(part), size) for part in parts]


def _part(batch: Batch, piece: Slice) -> Batch:
    return tuple(tensor[piece.start : piece.start + piece.kept] for tensor in batch)


def _check(loss: Loss, tensors: Tensors) -> None:
    """Raise ValueError if the loss in several processes could differ from the loss in a single process.

    Raises:
        ValueError: If a parameter does not belong to the module, if the module uses batch normalization, or if the loss
            is not known to be a sum over the data.
    """
    if tensors.stored:
        raise ValueError(
            f"several processes can train only parameters of the module, but {next(iter(tensors.stored))!r} does not "
            f"belong to {type(tensors.module).__name__}. Make it a torch.nn.Parameter of the module, or train in one "
            f"process."
        )
    for name, part in tensors.module.named_modules():
        if isinstance(part, _BatchNorm) and part.training and not isinstance(part, SyncBatchNorm):
            raise ValueError(
                f"{name!r} is a {type(part).__name__}, which would normalize each process's slice of a batch "
                f"separately. Use torch.nn.LayerNorm or torch.nn.GroupNorm, use torch.nn.SyncBatchNorm on CUDA, or "
                f"train in one process."
            )
    if not _is_sum(loss):
        raise ValueError(
            f"the loss of {loss.name} is not known to be a sum over the data, so it could depend on the number of "
            f"processes. Train in one process, or with Trace_ELBO or IWAE. If your own objective is a sum over the "
            f"data, set its attribute is_of_batch = False."
        )


def _is_sum(loss: Loss) -> bool:
    """Return true if a loss is known to be a sum over the data or a mean over the data.

    The loss of an objective is a sum if the type of the objective is in ``_SUMS``, or if the objective has the
    attribute ``is_of_batch = False``. A loss that a module computes by its own method ``loss`` is taken to be a mean,
    unless the module holds an object with ``is_of_batch = True``, such as the penalty ``KLSparsity``.
    """
    if not isinstance(loss, Bound):
        (module,) = loss.programs
        return not any(getattr(part, "is_of_batch", False) for part in _held(module))
    objective: Any = loss.objective
    objective = getattr(objective, "objective", objective)  # the inner objective, if the latent sites are weighted
    return type(objective) in _SUMS or not getattr(objective, "is_of_batch", True)


def _held(module: nn.Module) -> Iterator[Any]:
    """Yield a module, its submodules, and the values of their attributes. A list or tuple yields its elements."""
    for part in module.modules():
        yield part
        for value in vars(part).values():
            yield from value if isinstance(value, list | tuple) else (value,)


def _check_outside(loss: Bound, batch: Batch) -> None:
    """Raise ValueError for a site outside the data plate, unless the loss of the batch counts the site exactly once.

    The loss of the batch is a weighted sum of the losses of its slices, and the loss of each slice contains the site.
    The site is counted once if the weights sum to one. They sum to one if the loss of a slice and the loss of the
    batch are scaled to the same number of data, such as the size of the data set. An enumerated site outside the plate
    always raises the error, because the logarithm of a sum over the site's values cannot be split into slices.
    """
    part = _part(batch, _slices(len(batch[0]))[0])
    is_scaled = len(part[0]) != loss.data_count(part) == loss.data_count(batch)
    with isolated(*loss.programs, seed=0):
        model_sites, guide_sites = trace(loss.model, loss.guide, batch, {})
    for site in model_sites + guide_sites:
        is_outside = loss.plate not in {frame.name for frame in site_plates(site)}
        if is_outside and (not is_scaled or is_enumerated(site)):
            remedy = "Train in one process, because the site is enumerated"
            if not is_enumerated(site):
                remedy = (
                    "Give the plate the size of the whole data set (pyro.plate(name, size, subsample=...)), so that "
                    "the loss is scaled to this size, or train in one process"
                )
            raise ValueError(
                f"site {site['name']!r} lies outside the data plate {loss.plate!r}, so each process would count it. "
                f"{remedy}."
            )
