r"""A loss whose batches are shared out among processes, and its gradient by torch's DistributedDataParallel.

With batch B in contiguous shares :math:`B_r`, one a process, and :math:`S(B)` the factor that makes a loss L the sum
over its data,

.. math:: L(B) = \sum_r \frac{S(B_r)}{S(B)} \, L(B_r),

which is true of losses that are sums, or means, over the data. Where there are fewer data than processes, those without
any take one that counts nothing. DistributedDataParallel averages gradients over the processes, so that each multiplies
its part by their number.
"""

from typing import Any

import torch
import torch.distributed as dist
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pyrovae import parallel
from pyrovae._waist.sites import is_enumerated, site_plates, trace
from pyrovae.isolation import isolated
from pyrovae.training.losses import Batch, Bound, Criterion
from pyrovae.training.noise import Noise, Share, Sites
from pyrovae.training.state import Tensors

_SUMS = Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO


class Shares:
    """A criterion's loss and gradient, to which each process adds those of its share; the same in all of them.

    Args:
        criterion: The loss; the data have been checked.
        tensors: What is kept of the module and its programs.
        batch: A batch of them.

    Raises:
        ValueError: If the loss is no sum over the data, or has parameters that are not the module's.
    """

    def __init__(self, criterion: Criterion, tensors: Tensors, batch: Batch) -> None:
        self.noise = Noise()
        self.criterion = criterion
        _check(criterion, tensors)
        if isinstance(criterion, Bound):
            with isolated(*criterion.programs, seed=0):
                criterion.check(_part(batch, _shares(len(batch[0]))[0]))  # scaled to more data, maybe, than the whole
                _check_outside(criterion, batch)
            self.criterion = criterion.within(Sites(self.noise, criterion.plate))
        self.module = tensors.module
        unused = self._leaves_some_out(batch)
        self.loss = DistributedDataParallel(_Loss(self.module, self.criterion), find_unused_parameters=unused)

    def __call__(self, batch: Batch, kl_weight: float) -> Tensor:
        """Returns the loss of a batch, and leaves its gradient."""
        share, part, weight = self._mine(batch)
        with self.criterion.around(kl_weight):
            with self.noise.of(share):
                loss = self.loss(part, weight * parallel.size())
            self._backward(loss)
        total: Tensor = loss.detach() / parallel.size()
        dist.all_reduce(total)
        parallel.share_generators()
        return total

    def value(self, batch: Batch) -> float:
        """Returns the loss of a batch alone."""
        share, part, weight = self._mine(batch)
        with self.noise.of(share):
            total = torch.tensor(weight * self.criterion.value(part), dtype=torch.float64)
        dist.all_reduce(total)
        parallel.share_generators()
        return float(total)

    def settle(self) -> None:
        """Gives buffers the values that they have in the first process; as happens before every step, too."""
        for buffer in self.module.buffers():
            dist.broadcast(buffer, src=0)

    def _leaves_some_out(self, batch: Batch) -> bool:
        """Whether parameters are not in the loss, which DistributedDataParallel would have to look for at each step."""
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        share, part, _ = self._mine(batch)
        with isolated(*self.criterion.programs, seed=0), torch.enable_grad():
            with self.noise.of(share):
                loss = self.criterion.differentiable(part)
            self._backward(loss)
        unused = any(parameter.grad is None for parameter in parameters)
        for parameter in parameters:
            parameter.grad = None
        return unused

    def _backward(self, loss: Tensor) -> None:
        if loss.requires_grad:
            with self.noise.again():
                torch.autograd.backward(loss)

    def _mine(self, batch: Batch) -> tuple[Share, Batch, float]:
        """This process's share, its data, and what their loss counts."""
        size, rank = len(batch[0]), parallel.rank()
        if rank >= size:
            share = Share(0, 1, size)
            return share, _part(batch, share), 0.0
        share = _shares(size)[rank]
        part = _part(batch, share)
        return share, part, self.criterion.share(part) / self.criterion.share(batch)


class _Loss(nn.Module):
    """A criterion as a module's forward, for DistributedDataParallel to run."""

    def __init__(self, module: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.module, self.criterion = module, criterion

    def forward(self, part: Batch, weight: float) -> Tensor:
        """Returns the weighted loss of some data, shape ``()``."""
        return weight * self.criterion.differentiable(part)


def _shares(size: int) -> list[Share]:
    """The shares of a batch, as even as can be; those of the first processes may be larger by one."""
    parts = torch.arange(size).tensor_split(min(size, parallel.size()))
    return [Share(int(part[0]), len(part), size) for part in parts]


def _part(batch: Batch, share: Share) -> Batch:
    return tuple(tensor[share.start : share.start + share.kept] for tensor in batch)


def _check(criterion: Criterion, tensors: Tensors) -> None:
    """Refuses what several processes would make another loss of.

    Raises:
        ValueError: If there is such a thing.
    """
    if tensors.stored:
        raise ValueError(
            f"several processes train the parameters of a module, and {next(iter(tensors.stored))!r} is none of "
            f"{type(tensors.module).__name__}; make it a torch.nn.Parameter of it, or train in one process"
        )
    for name, part in tensors.module.named_modules():
        if isinstance(part, _BatchNorm) and part.training and not isinstance(part, SyncBatchNorm):
            raise ValueError(
                f"{name!r} is a {type(part).__name__}, which would normalize by each process's share of a batch; take "
                f"torch.nn.LayerNorm or GroupNorm, on CUDA torch.nn.SyncBatchNorm, or train in one process"
            )
    if not _is_sum(criterion):
        raise ValueError(
            f"the loss of {criterion.name} is not known to be a sum over the data, so that it would be another one in "
            f"several processes; train in one, or with Trace_ELBO or IWAE (an objective of your own that is such a sum "
            f"says so by an attribute is_of_batch = False)"
        )


def _is_sum(criterion: Criterion) -> bool:
    """Whether a loss is a sum over the data, as far as is known; of a module's own, what its parts say."""
    if not isinstance(criterion, Bound):
        (module,) = criterion.programs
        return not any(getattr(part, "is_of_batch", False) for part in vars(module).values())
    objective: Any = criterion.objective
    objective = getattr(objective, "objective", objective)  # of one that weighs another's latent sites
    return type(objective) in _SUMS or not getattr(objective, "is_of_batch", True)


def _check_outside(criterion: Bound, batch: Batch) -> None:
    """Refuses sites outside the data plate, which each process would count, unless the plate is scaled to all data."""
    model_sites, guide_sites = trace(criterion.model, criterion.guide, batch, {})
    for site in model_sites + guide_sites:
        is_outside = criterion.plate not in {frame.name for frame in site_plates(site)}
        if is_outside and (criterion.full_size is None or is_enumerated(site)):
            raise ValueError(
                f"site {site['name']!r} lies outside the data plate {criterion.plate!r}, and each process would count "
                f"it; give the plate the size of the whole data set (pyro.plate(name, size, subsample=...)), so that "
                f"the loss is scaled to that, or train in one process"
            )
