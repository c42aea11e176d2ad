"""``fit``: the loop over epochs and batches."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrovae.arguments import Data, as_device, as_tensors, as_tuple, check_whole
from pyrovae.isolation import Buffers, isolated, restore_buffers, save_buffers, seeded
from pyrovae.precision import Precision, check_precision
from pyrovae.training.criteria import Batch, Bound, Criterion, OwnLoss
from pyrovae.training.gradients import CompiledGradients
from pyrovae.training.history import History

Transform = Callable[..., Data]


def fit(
    module: nn.Module,
    train: Data,
    valid: Data | None = None,
    *,
    objective: ELBO | None = None,
    epochs: int = 100,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    kl_warmup: int = 0,
    transform: Transform | None = None,
    patience: int | None = None,
    compile: bool = False,  # noqa: A002  # as torch calls it
    precision: Precision | None = None,
    seed: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> History:
    """Trains a module's Pyro ``model`` and ``guide`` by stochastic variational inference.

    Data, model and guide are checked once, on all data, before the first step; Pyro's validation is off from then on.
    Modules train in the mode, ``train()`` or ``eval()``, in which they are. With validation data the best weights are
    restored at the end. Ctrl-C ends training, not the script: what was trained so far is in the module and in the
    returned history.

    Args:
        module: Has ``model(*data)`` and ``guide(*data)``: a :class:`pyrovae.VAE`, or any module of your own. Parameters
            that the programs make with ``pyro.param`` are trained too. Or has ``loss(*data)``, a mean over the data, as
            :class:`pyrovae.autoencoders.Autoencoder`; what is said of bounds is then true of minus the loss.
        train: Training data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension, which the
            programs get as several arguments. Kept on the device.
        valid: Validation data, likewise.
        objective: A Pyro ELBO, :class:`pyrovae.objectives.IWAE` among them; by default ``Trace_ELBO()``. Not those that
            Pyro compiles (``JitTrace_ELBO``), which look parameters up in the global store.
        epochs: Passes over the training data, at most.
        batch_size: Data per step; the last batch of an epoch may be shorter, and none is dropped.
        learning_rate: Given to the optimizer as ``lr``.
        optimizer: Called as ``optimizer(parameters, lr=learning_rate)``; by default one fused Adam for all parameters.
        scheduler: Called on the optimizer; the schedule that it returns makes a step after every epoch. A
            ``ReduceLROnPlateau`` is given minus the bound, which it is to minimize.
        kl_warmup: Number of epochs over which the weight of the latent sites grows linearly to 1.
        transform: Applied to the tensors of every training batch on the device, such as :func:`pyrovae.data.binarize`.
        patience: Stop after so many epochs without a better bound on the validation data.
        compile: Whether to run the programs once, write them down as a graph, backward pass included, and train with
            the graph compiled by torch's inductor, which takes 5 to 40 seconds for each shape of batch and pays from
            some thousands of steps. The same noise, gradients to rounding error; numbers and branches that the programs
            compute in Python stay as they were in that run. On CUDA the graph is captured. What cannot be compiled
            is trained without, after a warning that says why.
        precision: Of the products in linear and convolutional layers: ``"bfloat16"``, or on CUDA ``"tf32"``; everything
            else, and parameters, stay as they are. By default torch's own setting.
        seed: Makes a run on a CPU repeat bit for bit, and leaves the global generators alone; without one, noise and
            order come from the global generators.
        device: ``"auto"`` is a CUDA device if there is one, else the CPU.
        progress: Whether to show a progress bar; it is quiet where the output is no terminal.

    Returns:
        The history, in nats per datum.

    Raises:
        TypeError: If the module has neither model and guide nor a loss, data are not floating-point tensors, or a count
            is no integer.
        ValueError: If data are empty, not finite, of different lengths or outside the likelihood's support; if model
            and guide disagree; if an option is out of range; if the device is not there.
        FloatingPointError: If the loss is no longer finite.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> history = pv.fit(vae, torch.randn(200, 4), epochs=2, seed=0)
        >>> len(history.train)
        2
    """
    _check_options(
        module,
        valid,
        objective,
        learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        patience=patience,
        kl_warmup=kl_warmup,
    )
    where = as_device(device)
    train_data = tuple(tensor.to(where) for tensor in as_tensors("train", train))
    valid_data = None if valid is None else tuple(tensor.to(where) for tensor in as_tensors("valid", valid))
    module.to(where)
    steps = math.ceil(len(train_data[0]) / batch_size)
    check_precision(precision, where)
    with seeded(seed):
        run = _Run(module, _criterion(module, objective, precision), batch_size)
        parameters = run.check(train_data, transform) | ({} if valid_data is None else run.check(valid_data))
        if not parameters:
            raise ValueError(f"{type(module).__name__} has no parameter to train; unfreeze some with requires_grad_()")
        make_optimizer = optimizer or partial(torch.optim.Adam, fused=True)
        run.optimizer = make_optimizer(parameters.values(), lr=learning_rate)
        schedule = None if scheduler is None else scheduler(run.optimizer)
        if compile:
            run.compile(list(parameters.values()), weighted=kl_warmup > 0)
        history, best = History(run.criterion.name), _Best(parameters.values(), module)
        start = time.perf_counter()
        with (
            pyro.validation_enabled(False),
            tqdm(total=epochs * steps, unit="step", desc=run.criterion.name, disable=None if progress else True) as bar,
        ):
            try:
                for epoch in range(epochs):
                    ramp = [min(1.0, (epoch * steps + i + 1) / (kl_warmup * steps or 1)) for i in range(steps)]
                    row = {
                        "learning_rate": run.optimizer.param_groups[0]["lr"],
                        "kl_weight": ramp[-1],
                        "train": run.train(train_data, transform, ramp, bar),
                    }
                    if valid_data is not None:
                        row["valid"] = run.evaluate(valid_data)
                    history.append(**row, seconds=time.perf_counter() - start)
                    history.compile_seconds = run.compile_seconds
                    history.best_epoch = best.offer(epoch, row.get("valid"))
                    shown = [f"{name} {row[name]:.2f}" for name in ("train", "valid") if name in row]
                    shown += [f"compiled in {run.compile_seconds:.0f} s"] if compile else []
                    bar.set_postfix_str(", ".join(shown))
                    if schedule is not None:
                        _advance(schedule, history)
                    if patience is not None and epoch - best.epoch >= patience:
                        break
            except KeyboardInterrupt:
                history.interrupted = True
                if valid_data is None:
                    history.best_epoch = None  # the weights are from amid an epoch
            finally:
                best.restore()
    return history


class _Run:
    """One module under one criterion: steps of the optimizer, and bounds per datum."""

    optimizer: torch.optim.Optimizer

    def __init__(self, module: nn.Module, criterion: Criterion, batch_size: int) -> None:
        self.module, self.criterion, self.batch_size = module, criterion, batch_size
        self.gradients: Criterion | CompiledGradients = criterion

    def check(self, data: Batch, transform: Transform | None = None) -> dict[int, Tensor]:
        """Runs all data once with validation on, and returns the trainable parameters by identity."""
        with isolated(*self.criterion.programs, seed=0), poutine.trace(param_only=True) as capture:
            for batch in self._batches(data, transform):
                self.criterion.check(batch)
        values: list[Any] = [site["value"] for site in capture.trace.nodes.values()]
        sites = [value.unconstrained() for value in values]
        return {id(p): p for p in (*self.module.parameters(), *sites) if p.requires_grad}

    def compile(self, parameters: Sequence[Tensor], weighted: bool) -> None:
        """Compiles the gradients of such parameters, when the first batch is there."""
        others, modules = (*self.module.parameters(), *self.module.buffers()), self.module.modules()
        self.gradients = CompiledGradients(self.criterion, parameters, others, modules, weighted)

    @property
    def compile_seconds(self) -> float:
        """What compilation has taken so far."""
        return self.gradients.seconds if isinstance(self.gradients, CompiledGradients) else 0.0

    def train(self, data: Batch, transform: Transform | None, ramp: Sequence[float], bar: Any) -> float:
        """Makes one pass over the data in random order and returns the mean bound of its steps."""
        total: Any = 0.0
        for batch, kl_weight in zip(self._batches(data, transform, shuffle=True), ramp, strict=True):
            total += self._step(batch, kl_weight) * self.criterion.share(batch)
            bar.update()
        return self._finite(-float(total) / len(data[0]))

    def evaluate(self, data: Batch) -> float:
        """Returns the bound on data, with the same noise at every call."""
        with isolated(*self.criterion.programs, seed=0):
            losses = [self.criterion.value(batch) * self.criterion.share(batch) for batch in self._batches(data)]
        return self._finite(-sum(losses) / len(data[0]))

    def _finite(self, bound: float) -> float:
        if not math.isfinite(bound):
            raise FloatingPointError(
                f"the {self.criterion.name} objective became {bound}; lower the learning rate, rescale the data, or "
                f"bound the scales that the networks give"
            )
        return bound

    def _step(self, batch: Batch, kl_weight: float) -> Tensor | float:
        self.optimizer.zero_grad()
        loss = self.gradients(batch, kl_weight)
        if all(p.grad is None for group in self.optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"no parameter of {type(self.module).__name__} gets a gradient from {self.criterion.name}; use the "
                f"module's parameters in its model or guide, and announce them with pyro.module where the objective "
                f"is not differentiable by itself"
            )
        self.optimizer.step()
        return loss

    def _batches(self, data: Batch, transform: Transform | None = None, shuffle: bool = False) -> Iterator[Batch]:
        size, device = len(data[0]), data[0].device
        order = torch.randperm(size, device=device) if shuffle else torch.arange(size, device=device)
        for indices in order.split(self.batch_size):
            batch = tuple(tensor[indices] for tensor in data)
            yield batch if transform is None else as_tuple(transform(*batch))


class _Best:
    """The tensors at the epoch with the best bound on the validation data; without such data, at the last epoch."""

    def __init__(self, parameters: Iterable[Tensor], module: nn.Module) -> None:
        self.parameters, self.modules = list(parameters), list(module.modules())
        self.copies: list[Tensor] = []
        self.buffers: Buffers = []
        self.epoch, self.bound = -1, -math.inf

    def offer(self, epoch: int, bound: float | None) -> int:
        """Copies the tensors if the bound is the best so far; returns the epoch that :meth:`restore` would restore."""
        if bound is None:
            self.epoch = epoch
        elif bound > self.bound:
            self.epoch, self.bound = epoch, bound
            self.copies = [parameter.detach().clone() for parameter in self.parameters]
            self.buffers = save_buffers(self.modules)
        return self.epoch

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, copy in zip(self.parameters, self.copies, strict=False):
            parameter.copy_(copy)
        restore_buffers(self.buffers)


def _advance(schedule: torch.optim.lr_scheduler.LRScheduler, history: History) -> None:
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        schedule.step(-(history.valid or history.train)[-1])
    else:
        schedule.step()


def _criterion(module: Any, objective: ELBO | None, precision: Precision | None) -> Criterion:
    if hasattr(module, "model"):
        return Bound(module, Trace_ELBO() if objective is None else objective, precision)
    return OwnLoss(module, precision)


def _check_trainable(module: Any, objective: ELBO | None, kl_warmup: int) -> None:
    name = type(module).__name__
    roles = [role for role in ("model", "guide", "loss") if callable(getattr(module, role, None))]
    if roles not in (["model", "guide"], ["model", "guide", "loss"], ["loss"]):
        has = f"only {' and '.join(roles)}" if roles else "none of them"
        raise TypeError(f"fit trains a module that has a Pyro model and guide, or a loss; {name} has {has}")
    if roles == ["loss"] and (objective is not None or kl_warmup):
        raise ValueError(
            f"{name} has a loss of its own and no density, so there is no bound and no KL term to weight; leave out "
            f"objective= and kl_warmup="
        )


def _check_options(
    module: nn.Module,
    valid: Data | None,
    objective: Any,
    learning_rate: float,
    patience: int | None,
    kl_warmup: int,
    **counts: int,
) -> None:
    if not (objective is None or isinstance(objective, ELBO)):
        raise TypeError(f"the objective must be a Pyro ELBO such as Trace_ELBO() or IWAE(5), got {objective!r}")
    _check_trainable(module, objective, kl_warmup)
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a finite number, at least 0, got {learning_rate}")
    check_whole(**counts, kl_warmup=kl_warmup, patience=1 if patience is None else patience)
    for name, count in {**counts, "patience": 1 if patience is None else patience}.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if kl_warmup < 0:
        raise ValueError(f"kl_warmup is a number of epochs, at least 0, got {kl_warmup}")
    if patience is not None and valid is None:
        raise ValueError("patience watches validation data; give valid=, or no patience")
