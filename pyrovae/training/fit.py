"""``fit``, which trains a module, or a model and a guide."""

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
from pyrovae.data.column_names import check_column_names
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
    from pyrovae.training.blocks import Blocks


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
    compile: bool | None = None,  # noqa: A002  # torch uses this name
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

    Before the first step, model and guide run once on all data. This checks the programs and the data. Pyro's
    validation is then switched off. Modules keep their mode, ``train()`` or ``eval()``. If there are validation data,
    the best weights are restored at the end. Ctrl-C ends the training but not the script: module and history hold the
    result up to that point.

    With a checkpoint folder, the same call continues an interrupted run from its last checkpoint. With more epochs it
    also continues a finished run. On a CPU, the parameters then equal those of an uninterrupted run bit for bit, with
    three exceptions. A stream continues with a new pass. Worker processes draw new numbers if they change data at
    random. If a run is extended to 10,000 steps or more, it is compiled from then on, unless ``compile`` is given. On
    Ctrl-C and SIGTERM, the current step is finished and saved before the run stops. A SIGTERM then ends the process as
    usual.

    If several processes have joined (:mod:`pyrovae.parallel`), each takes a slice of every batch, and all end with the
    same parameters. The following raise an error, because the result would differ from a single-process run: objectives
    that are not sums over the data, batch normalization, sites outside the data plate, and parameters of
    ``pyro.param``.

    A program with a site outside the data plate can be trained on mini-batches only if the data plate declares the full
    size. Such a program cannot be trained if the data plate declares more data than ``train`` holds.

    Args:
        module: A module with ``model(*data)`` and ``guide(*data)``, such as :class:`pyrovae.VAE`; a pair
            ``(model, guide)`` of Pyro programs, such as autoguides; or a module with ``loss(*data)``, a mean over the
            data, such as :class:`pyrovae.autoencoders.Autoencoder`. In the last case, "bound" means minus the loss.
            Parameters of ``pyro.param`` and ``pyro.module`` are trained too.
        train: Training data of any kind that :mod:`pyrovae.data.sources` lists: a tensor, NumPy array or pandas
            DataFrame of shape ``(N, *event)``, or a tuple of these, which become several arguments of the programs; a
            NumPy memmap, a ``Dataset`` or a ``DataLoader``. Data in memory are kept on the device. Other data are read
            batch by batch, on CUDA through page-locked memory. A stream without a length is read once to count its
            data, and an epoch has as many batches as this pass. Data may contain NaN for missing values if the program
            handles them.
        valid: Validation data of the same kinds; a stream is read into memory.
        objective: A Pyro ELBO, such as :class:`pyrovae.objectives.IWAE`; by default ``Trace_ELBO()``. Objectives that
            Pyro compiles (``JitTrace_ELBO``) are not supported.
        epochs: Largest number of passes over the training data.
        batch_size: Number of data per batch; by default that of the ``DataLoader``, or 100. The last batch of an epoch
            may be smaller. If one batch holds all data, their order is kept.
        learning_rate: Learning rate, passed to the optimizer as ``lr``.
        optimizer: Function that is called as ``optimizer(parameters, lr=learning_rate)``; by default a fused Adam for
            all parameters.
        scheduler: Function that is called with the optimizer and returns a learning-rate schedule. A
            ``ReduceLROnPlateau`` gets minus the bound, which it minimizes.
        scheduler_step: When the schedule makes a step: after every ``"epoch"``, or for every ``"batch"``, as
            ``OneCycleLR`` expects. With ``accumulate``, ``"batch"`` means every step of the optimizer.
        kl_warmup: Number of epochs over which the weight of the latent sites grows linearly to 1, or a function that
            returns the weight at a (fractional) number of epochs, such as a cyclical schedule. Patience and best
            weights consider only the epochs that end with a weight of 1.
        transform: Function that is applied to the tensors of every training batch on the device, such as
            :func:`pyrovae.data.binarize`, or ``lambda x: x.float() / 255`` for images stored as bytes. Validation data
            are not transformed.
        accumulate: Number of batches whose gradients are added for one step of the optimizer. The step equals the step
            for a single batch that holds the data of all these batches.
        patience: Training stops after this number of epochs without a better bound on the validation data.
        compile: If true, the gradient is compiled by torch's inductor. The programs run once and are recorded as a
            graph that includes the backward pass. The first compilation takes 8 to 20 seconds on a CPU for each batch
            shape, and pays off after some thousands of steps. By default, runs of at least 10,000 steps in a single
            process are compiled. The noise is the same as without compilation, and gradients differ by rounding. All
            numbers and branches that come from Python code are fixed in the graph. At the beginning of an epoch, the
            compiled loss is compared with that of the programs. If a number in Python has changed, training continues
            without compilation after a warning. A program that cannot be compiled is also trained without compilation.
            The cause is named in a warning if ``compile`` is true, and in the log by default. On CUDA, the compiled
            gradient is captured as a CUDA graph. The optimizer's step is captured too, for a fused Adam or AdamW, and
            for torch's optimizers with ``capturable=True``.
        precision: Precision of the products in linear and convolutional layers: ``"bfloat16"``, or ``"tf32"`` on CUDA.
            Parameters and all other operations keep their precision. By default torch's own setting.
        clip_norm: Largest norm of the gradient over all parameters; larger gradients are scaled down to it.
        on_nonfinite: Response to a loss or gradient that is NaN or infinite. ``"raise"`` stops the run. The module then
            has its state from before the failed step, or its best weights if there are validation data. ``"skip"``
            skips the failed steps and counts them in the history. With ``"skip"``, every step is checked, so on CUDA
            the host waits for each step.
        checkpoint: Folder for the last two checkpoints. The folder must belong to this run alone. A checkpoint holds
            parameters (including those of ``pyro.param``), buffers, optimizer, schedule, generators (torch, NumPy,
            Python), history, best weights, and a description of module, data and options, with checksums. It does not
            hold counters and plain tensors of a module, your own generators, or the internal state of a transform or an
            objective. If the last checkpoint is damaged, it is renamed with a warning, and the previous one is used.
        checkpoint_every: Number of epochs between two checkpoints. A checkpoint is always written at the end.
        checkpoint_wait: Seconds to wait if another run uses the folder. If the other run has not ended by then, an
            error is raised. ``math.inf`` waits without limit.
        seed: Seed of torch's generators. With a seed, a run on a CPU is reproducible bit for bit if it draws only from
            torch's generators. The global generators are restored at the end. Without a seed, noise and order come from
            the global generators.
        device: ``"auto"`` uses a CUDA device if there is one, else the CPU. Programs that are functions are
            not moved. With ``"auto"``, their data are not moved either.
        progress: If true, a progress bar is shown, provided that the output is a terminal.
        tensorboard: Folder for TensorBoard (``pip install 'pyrovae[tensorboard]'``), which must belong to this run
            alone, or a ``torch.utils.tensorboard.SummaryWriter``. TensorBoard shows the history, the norm of the last
            gradient of every epoch, and histograms of parameters and gradients. If the data are images, it also shows
            draws from the prior, and validation images above their reconstructions. The output does not affect the run.
        tensorboard_every: Number of epochs between two sets of histograms and images.
        callback: Function that is called with the history after each epoch. If it returns True, the run stops.

    Returns:
        The history, in nats per datum.

    Raises:
        TypeError: If ``module`` has neither a model and guide nor a loss, if data have an unsupported type, or if a
            count is not an integer.
        ValueError: If data are empty, differ in length, or lie outside the likelihood's support; if data are NaN or
            infinite and the program cannot handle this; if values in the data are so large that a distribution gets a
            parameter that is NaN or infinite; if model and guide disagree; if a site outside the data plate would be
            trained on mini-batches that are not scaled to all data; if an option is out of range; if the device is not
            available; if a module with its own loss is given an objective or a KL warm-up; if the checkpoints belong to
            another run, or none of them can be read. A call that continues a run may change ``epochs``, ``patience``,
            ``compile``, ``on_nonfinite``, ``checkpoint_every``, ``device``, ``progress``, ``tensorboard``,
            ``tensorboard_every`` and ``callback``, but not the module, data, objective or other options.
        DivergenceError: A FloatingPointError, if the loss, its gradient, a parameter or the bound on the validation
            data is not finite. The message names the epoch and, where known, the step and the first site or parameter
            that is not finite. The error has the attribute ``history``.
        ModuleNotFoundError: If ``tensorboard`` is a folder and TensorBoard is not installed.
        OSError: If TensorBoard's folder cannot be written to at the beginning; later failures cause a warning.
        CheckpointError: An OSError, if a checkpoint cannot be written, or if another run uses the folder. The module
            then holds the current weights, or the best weights if there are validation data. The error has the
            attribute ``history``, and the previous checkpoint is complete.

    Warns:
        UserWarning: If the KL warm-up does not end within the run; if a schedule that counts batches is stepped once
            per epoch; or if sites of the data plate have different scales, so that the history is not a bound.

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
    check_column_names(source, trained.modules())
    if held_out is not None:
        check_column_names(held_out, trained.modules(), source)
    parallel.check_same("the training data", (data.digest() for data in (source, held_out) if data is not None))
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
            trained.to(where)  # Pyro creates the flow of an AutoNormalizingFlow on the CPU
        check_data(loss, batches, tensors)
        if plan.valid is not None:
            check_data(loss, plan.valid, tensors)
        named = {**dict(trained.named_parameters()), **tensors.stored}
        parameters = {name: tensor for name, tensor in named.items() if tensor.requires_grad}
        if not parameters:
            raise ValueError(
                f"{name_of(trained)} has no trainable parameter. Unfreeze parameters with requires_grad_()."
            )
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
            steps=epochs * plan.steps,
            weighted=callable(kl_warmup) or kl_warmup > 0,
            # With a schedule per batch, optimizers other than Adam would need a new capture at every step, and a block
            # of steps would miss the steps of the schedule.
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
        hidden = None if progress and parallel.is_first() else True  # None hides it if the output is not a terminal
        observers = [state.best, ProgressBar(loss.name, hidden), Reporter(), *observers, *([kept] if kept else [])]
        guard = Guard(loss, trained, skip=on_nonfinite == "skip")
        step = Step(gradients, updates, guard, (name_of(trained), loss.name))
        with pyro.validation_enabled(False), nullcontext() if kept is None else kept.checkpoints:
            Run(plan, loss, step, guard, state, observers, kept, _blocks(plan, loss, step, tensors))()
    return state.history


def _device(module: nn.Module, device: str | torch.device) -> torch.device | None:
    """Return the device of a run; None if programs are functions without known modules and ``device`` is "auto"."""
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


def _blocks(plan: Plan, loss: Loss, step: Step, tensors: Tensors) -> Blocks | None:
    if not (step.gradients.is_compiled and plan.train.source.device.type == "cuda"):
        return None
    from pyrovae.training.blocks import blocks_or_none  # imports what only compilation needs

    return blocks_or_none(plan.train, loss, step, tensors)


def _warn_of_warmup(kl_warmup: KLWarmup, epochs: int) -> None:
    if (weight := kl_weight(kl_warmup, epochs)) < 1:
        warnings.warn(
            f"the KL warm-up does not end within the {epochs} epochs of the run. The KL weight only reaches "
            f"{weight:.3g}. Train for more epochs, or choose a shorter kl_warmup.",
            stacklevel=find_stack_level(),
        )
