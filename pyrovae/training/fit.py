"""``fit``: trains a module, or a model and a guide."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import nn

from pyrovae import parallel
from pyrovae._warnings import find_stack_level
from pyrovae.arguments import as_device
from pyrovae.isolation import owners, seeded
from pyrovae.training.annealing import KLWarmup, kl_weight
from pyrovae.training.batches import Batches, Transform
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.checks import materialize
from pyrovae.training.data import as_training_data
from pyrovae.training.description import as_number
from pyrovae.training.gradients.choice import choose_gradients
from pyrovae.training.history import History
from pyrovae.training.losses import Bound, Loss, OwnLoss, Products
from pyrovae.training.observers import Observer
from pyrovae.training.observers.best_weights import BestWeights
from pyrovae.training.observers.callback import Callback, CallbackObserver
from pyrovae.training.observers.checkpoints import CheckpointObserver
from pyrovae.training.observers.patience import Patience
from pyrovae.training.observers.progress import ProgressBar, Reporter
from pyrovae.training.observers.tensorboard import TensorBoard, Writer
from pyrovae.training.optimizers import TorchOptimizer
from pyrovae.training.options import check_options, check_schedule
from pyrovae.training.programs import Pair, Program, as_module, name_of
from pyrovae.training.run import Plan, Run, SchedulerStep
from pyrovae.training.run_description import describe_run
from pyrovae.training.run_state import RunState
from pyrovae.training.state import Tensors
from pyrovae.training.steps import Guard, NonFinite, Step
from pyrovae.training.validation import check_data

if TYPE_CHECKING:
    from pyrovae._compilation.precision import Precision


def fit(
    module: nn.Module | tuple[Program, Program],
    train: Any,
    valid: Any = None,
    *,
    objective: ELBO | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    scheduler_step: SchedulerStep = "epoch",
    kl_warmup: KLWarmup = 0,
    transform: Transform | None = None,
    accumulate: int = 1,
    patience: int | None = None,
    compile: bool = False,  # noqa: A002  # as torch calls it
    precision: Precision | None = None,
    clip_norm: float | None = None,
    on_nonfinite: NonFinite = "raise",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    checkpoint_wait: float = 0.0,
    seed: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
    tensorboard: str | Path | Writer | None = None,
    tensorboard_every: int = 10,
    callback: Callback | None = None,
) -> History:
    """Train a Pyro ``model`` and ``guide`` by stochastic variational inference, or a module by its own ``loss``.

    Data, model and guide are checked once, on all data, before the first step; Pyro's validation is off from then on.
    Modules train in the mode, ``train()`` or ``eval()``, in which they are. With validation data the best weights are
    restored at the end. Ctrl-C ends training, not the script: module and history hold what was trained until then.

    With a folder for checkpoints, the same call goes on from the last one, after whatever ended the run, and with more
    epochs than it had, beyond its end. On a CPU the parameters are then, bit for bit, those of a run that was never
    interrupted. There are two exceptions: a stream continues with a new pass, and worker processes that change data at
    random draw anew. On Ctrl-C and SIGTERM the step in progress ends and is saved before the run stops; a SIGTERM then
    takes its usual course, the end of the process.

    In processes that have joined (:mod:`pyrovae.parallel`), each takes a slice of every batch, and all end alike. The
    following raise an error, because the result would differ from a single-process run: objectives that are no sum over
    the data, batch normalization, sites outside the data plate, parameters of ``pyro.param``.

    A program with a site outside the data plate is trained on mini-batches only if its plate declares the full size,
    and it is not trained if its plate declares more data than ``train`` holds.

    Args:
        module: A module with ``model(*data)`` and ``guide(*data)``, such as :class:`pyrovae.VAE`; a pair
            ``(model, guide)`` of Pyro programs, autoguides among them; or a module with ``loss(*data)``, a mean over
            the data, such as :class:`pyrovae.autoencoders.Autoencoder`, for which "bound" means minus the loss.
            Parameters of ``pyro.param`` and ``pyro.module`` are trained too.
        train: Training data of any kind that :mod:`pyrovae.data.sources` lists: a tensor, NumPy array or pandas
            DataFrame of shape ``(N, *event)``, or a tuple of these, which the programs get as several arguments; a
            NumPy memmap, a ``Dataset`` or a ``DataLoader``. Data in memory are kept on the device; others are read
            batch by batch, on CUDA through page-locked memory. A stream without a length is read once to count its
            data, and an epoch has as many batches as that pass. NaN may mean missing where the program handles it.
        valid: Validation data, likewise; a stream is read into memory.
        objective: A Pyro ELBO, such as :class:`pyrovae.objectives.IWAE`; by default ``Trace_ELBO()``. Objectives that
            Pyro compiles (``JitTrace_ELBO``) are not supported.
        epochs: Largest number of passes over the training data.
        batch_size: Data per batch, by default those of the ``DataLoader``, or 100; the last batch of an epoch may be
            shorter. One batch of all data keeps their order.
        learning_rate: Given to the optimizer as ``lr``.
        optimizer: Called as ``optimizer(parameters, lr=learning_rate)``; by default one fused Adam for all parameters.
        scheduler: Called on the optimizer, returns a schedule of the learning rate. A ``ReduceLROnPlateau`` is given
            minus the bound, which it is to minimize.
        scheduler_step: When the schedule makes a step: after every ``"epoch"``, or for every ``"batch"`` (with
            ``accumulate``, every step of the optimizer), as ``OneCycleLR`` expects.
        kl_warmup: Number of epochs over which the weight of the latent sites grows linearly to 1; or a function that
            returns the weight after so many epochs, counted with fractions, such as a cyclical schedule. Patience and
            best weights count the epochs that end with a weight of 1.
        transform: Applied to the tensors of every training batch on the device, such as :func:`pyrovae.data.binarize`,
            or ``lambda x: x.float() / 255`` for images stored as bytes. Validation data are not transformed.
        accumulate: Number of batches whose gradients are added up for one step of the optimizer. The step is that of
            one batch of all of their data.
        patience: Stop after so many epochs without a better bound on the validation data.
        compile: Whether to compile the gradient by torch's inductor. The programs run once and are recorded as a
            graph, backward pass included, which takes 5 to 40 seconds for each shape of batch and pays off after some
            thousands of steps. The noise is the same, and gradients differ by rounding. Numbers and branches that the
            programs compute in Python stay as they were in that run. On CUDA the graph is captured, and so is the step
            of a fused Adam or AdamW, and of torch's optimizers made with ``capturable=True``. A program that cannot be
            compiled is trained eagerly, after a warning that names the cause.
        precision: Precision of the products in linear and convolutional layers: ``"bfloat16"``, or on CUDA ``"tf32"``;
            parameters and all other operations stay as they are. By default torch's own setting.
        clip_norm: Gradients whose norm, over all parameters, is larger are scaled down to it.
        on_nonfinite: What to do if a loss or gradient is NaN or infinite. ``"raise"`` stops and leaves the module as it
            was before that step. ``"skip"`` leaves such steps out and counts them in the history; it checks all steps,
            so that on CUDA the host waits for each.
        checkpoint: Folder in which to keep the last two checkpoints, of this run alone: parameters, those made by
            ``pyro.param`` too, optimizer, schedule, generators (torch, NumPy, Python), history, best weights, and a
            description of module, data and options, with checksums. A damaged file is set aside with a warning, and the
            one before is taken. What Python objects keep beside tensors is not held, nor are generators of your own.
        checkpoint_every: Epochs between two checkpoints; one is written at the end in any case.
        checkpoint_wait: Seconds to wait for another run that uses the folder, before the call is refused. ``math.inf``
            waits until the other run ends.
        seed: Makes a run on a CPU repeat bit for bit, and leaves the global generators alone; without one, noise and
            order come from the global generators.
        device: ``"auto"`` is a CUDA device if there is one, else the CPU. Programs that are functions stay where they
            are; with ``"auto"`` so do their data.
        progress: Whether to show a progress bar; it is hidden where the output is no terminal.
        tensorboard: Folder in which to write for TensorBoard (``pip install 'pyrovae[tensorboard]'``), of this run
            alone, or a ``torch.utils.tensorboard.SummaryWriter``. It gets every epoch's history and the norm of its
            last gradient; histograms of parameters and gradients; where data are images, validation images above their
            reconstructions, and draws from the prior. The run has the same numbers with and without.
        tensorboard_every: Epochs between two sets of histograms and images.
        callback: Called with the history after each epoch; the run stops if it returns True.

    Returns:
        The history, in nats per datum.

    Raises:
        TypeError: If there is neither a model and guide nor a loss, data are of another kind, or a count is no integer.
        ValueError: If data are empty, of different lengths, NaN or infinite where the program cannot handle that, too
            large, or outside the likelihood's support; if model and guide disagree; if a site outside the data plate
            would be trained on mini-batches that are not scaled to all data; if an option is out of range; if the
            device is not there; if a module with a loss of its own is given an objective or a KL warm-up; if the
            checkpoints are of another run (module, data, objective or options, but for ``epochs``, ``patience``,
            ``compile``, ``on_nonfinite``, ``checkpoint_every``, ``device``, ``progress``, ``tensorboard``,
            ``tensorboard_every`` and ``callback``), or none of them can be read.
        DivergenceError: A FloatingPointError, if the loss, its gradient, a parameter or the bound on the validation
            data is not finite. It names the first place, and has the ``history`` until then.
        ModuleNotFoundError: If TensorBoard is to be written for and is not installed.
        OSError: If TensorBoard's folder cannot be written to at the beginning; later that is a warning.
        CheckpointError: An OSError, if a checkpoint cannot be written, or if another run uses the folder. The weights
            are in the module then, the error has the ``history``, and the previous checkpoint is whole.

    Warns:
        UserWarning: If the KL warm-up does not end within the run, if a schedule that counts batches is stepped once
            per epoch, or if sites of the data plate have different scales, so that the history is no bound.

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
        >>> history = pv.fit(
        ...     (vae.model, vae.guide), torch.randn(200, 4), epochs=9, callback=lambda history: len(history.train) == 3
        ... )
        >>> len(history.train)
        3
    """
    learning_rate, clip_norm, seed, patience = map(as_number, (learning_rate, clip_norm, seed, patience))
    epochs, batch_size, kl_warmup = map(as_number, (epochs, batch_size, kl_warmup))
    checkpoint_every, tensorboard_every = as_number(checkpoint_every), as_number(tensorboard_every)
    trained = as_module(module)
    check_options(
        trained,
        valid,
        objective,
        learning_rate=learning_rate,
        patience=patience,
        kl_warmup=kl_warmup,
        clip_norm=clip_norm,
        on_nonfinite=on_nonfinite,
        scheduler_step=scheduler_step,
        callback=callback,
        epochs=epochs,
        batch_size=1 if batch_size is None else batch_size,
        accumulate=accumulate,
        checkpoint_every=checkpoint_every,
        tensorboard_every=tensorboard_every,
    )
    observers: list[Observer] = []
    if tensorboard is not None and parallel.is_first():
        observers.append(TensorBoard(tensorboard, tensorboard_every))
    if callback is not None:
        observers.append(CallbackObserver(callback))
    if patience is not None:
        observers.append(Patience(patience))
    where = _device(trained, device)
    source = as_training_data("train", train, where)
    held_out = None if valid is None else as_training_data("valid", valid, where, held_out=True)
    parallel.check_same("data of a training", (data.digest() for data in (source, held_out) if data is not None))
    trained.to(where)
    products = _products(precision, source.device)
    loss = _loss(trained, objective, products)
    size = batch_size or source.batch_size or 100
    batches = Batches(source, size, transform, accumulate)
    plan = Plan(batches, None if held_out is None else Batches(held_out, size), epochs, kl_warmup, scheduler_step)
    _warn_of_warmup(kl_warmup, epochs)
    with seeded(seed):
        tensors = Tensors(trained, {})
        if hasattr(trained, "guide"):
            materialize(trained.guide, partial(batches.first, size))
        check_data(loss, batches, tensors)
        if plan.valid is not None:
            check_data(loss, plan.valid, tensors)
        named = {**dict(trained.named_parameters()), **tensors.stored}
        parameters = {name: tensor for name, tensor in named.items() if tensor.requires_grad}
        if not parameters:
            raise ValueError(f"{name_of(trained)} has no parameter to train; unfreeze some with requires_grad_()")
        make = partial(optimizer or partial(torch.optim.Adam, fused=True), lr=learning_rate)
        updates = TorchOptimizer(make, parameters, clip_norm)
        schedule = None if scheduler is None else scheduler(updates.optimizer)
        check_schedule(schedule, scheduler_step, epochs, plan.steps)
        state = RunState(tensors, updates.optimizer, schedule, BestWeights(tensors), History(loss.name))
        gradients = choose_gradients(
            loss,
            tensors,
            parameters,
            batches,
            is_compiled=compile,
            weighted=callable(kl_warmup) or kl_warmup > 0,
            # A captured step keeps its learning rate, so a schedule per batch would capture it anew at every step.
            optimizer=None if schedule is not None and scheduler_step == "batch" else updates.optimizer,
        )
        kept = None
        if checkpoint is not None:
            options = {"learning_rate": learning_rate, "precision": precision, "clip_norm": clip_norm, "seed": seed}
            changeable = {"epochs": epochs, "patience": patience, "compile": compile, "device": str(source.device)}
            changeable["processes"] = parallel.size()
            description = describe_run(loss, state, plan, parameters, options)
            folder = Checkpoints(checkpoint, checkpoint_every, description, changeable, checkpoint_wait)
            kept = CheckpointObserver(folder)
        hidden = None if progress and parallel.is_first() else True  # None: where the output is no terminal
        observers = [state.best, ProgressBar(loss.name, hidden), Reporter(), *observers, *([kept] if kept else [])]
        guard = Guard(loss, trained, skip=on_nonfinite == "skip")
        step = Step(gradients, updates, guard, (name_of(trained), loss.name))
        with pyro.validation_enabled(False), nullcontext() if kept is None else kept.checkpoints:
            Run(plan, loss, step, guard, state, observers, kept)()
    return state.history


def _device(module: nn.Module, device: str | torch.device) -> torch.device | None:
    """Return the device to train on; None for functions, whose networks cannot be moved, unless it is named."""
    is_of_functions = isinstance(module, Pair) and len(owners(module.model, module.guide)) == 0
    return None if is_of_functions and device == "auto" else as_device(device)


def _products(precision: Precision | None, device: torch.device) -> Products:
    if precision is None:
        return nullcontext
    from pyrovae.training.gradients.compiled import products_in

    return products_in(precision, device)


def _loss(module: Any, objective: ELBO | None, products: Products) -> Loss:
    if hasattr(module, "model"):
        return Bound(module, Trace_ELBO() if objective is None else objective, products)
    return OwnLoss(module, products)


def _warn_of_warmup(kl_warmup: KLWarmup, epochs: int) -> None:
    if (weight := kl_weight(kl_warmup, epochs)) < 1:
        warnings.warn(
            f"the KL warm-up does not end within the {epochs} epochs of the run, in which the KL weight reaches "
            f"{weight:.3g}; give more epochs or a shorter kl_warmup",
            stacklevel=find_stack_level(),
        )
