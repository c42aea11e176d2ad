"""Compiled training steps that differ from the step of :func:`pyrovae.fit` in one respect; ``IDEAS`` names them."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyrovae as pv
from experiments.benchmarks.networks import finish, make, to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import serve
from pyrovae._compilation.graphs import Graph
from pyrovae._compilation.precision import products
from pyrovae.training.captured_step import CapturedUpdates

Epoch = Callable[[], None]
DRAW = "torch.distributions.normal._standard_normal"  # Pyro's normal distribution draws its noise by this function
STEPS = 10  # steps of a graph that contains several
PARTS = 10  # parts of a batch that is split
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}


class Steps:
    """Code shared by all steps: a VAE, its loss, Adam, and batches in random order."""

    def __init__(self, problem: Problem) -> None:
        sizes = self.sizes = problem.sizes
        self.x = to_device(problem, problem.x)
        self.vae = pv.VAE(
            pv.priors.StandardNormal(sizes.latent),
            pv.likelihoods.Bernoulli(make(problem, "decoder")),
            pv.posteriors.DiagonalNormal(make(problem, "encoder")),
        ).to(sizes.device)
        self.objective = Trace_ELBO() if sizes.k == 1 else pv.objectives.IWAE(sizes.k)
        self.parameters = list(self.vae.parameters())
        self.objective.loss(self.vae.model, self.vae.guide, self.x[: sizes.batch_size])  # determines the plates

    def gradients(self, batch: Tensor) -> list[Tensor]:
        """Return the gradients of the loss."""
        loss = self.objective.differentiable_loss(self.vae.model, self.vae.guide, batch)
        return list(torch.autograd.grad(loss, self.parameters))

    def batches(self) -> Sequence[Tensor]:
        """Return the indices of an epoch's batches."""
        return torch.randperm(len(self.x), device=self.x.device).split(self.sizes.batch_size)

    def fused(self, compiled: Callable[..., Sequence[Tensor]], *given: Tensor) -> Epoch:
        """Return an epoch with compiled gradients and torch's fused Adam, as in ``fit``."""
        optimizer = torch.optim.Adam(self.parameters, lr=self.sizes.learning_rate, fused=True)
        captured = CapturedUpdates(optimizer) if self.x.is_cuda else None

        def epoch() -> None:
            for tensor in given:
                tensor.normal_()
            for i, indices in enumerate(self.batches()):
                gradients = compiled(self.x[indices], *(tensor[i] for tensor in given))
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    parameter.grad = gradient
                if captured is None:
                    optimizer.step()
                else:
                    captured(optimizer.step, gradients)

        return epoch


def as_fit_does(steps: Steps) -> Epoch:
    """Compute gradients by a graph, and apply Adam after it."""
    batch = steps.x[: steps.sizes.batch_size].clone()
    return steps.fused(Graph(lambda: steps.gradients(batch), steps.parameters, [batch]).compile())


def denormals_flushed(steps: Steps) -> Epoch:
    """Flush denormal numbers to zero."""
    torch.set_flush_denormal(True)
    return as_fit_does(steps)


def noise_at_once(steps: Steps) -> Epoch:
    """Draw the noise of a whole epoch before the epoch."""
    sizes = steps.sizes
    batch = steps.x[: sizes.batch_size].clone()
    shape = *([sizes.k] if sizes.k > 1 else []), sizes.batch_size, sizes.latent
    noise = torch.randn(sizes.steps, *shape, device=batch.device)
    first = noise[0].clone()

    def gradients() -> list[Tensor]:
        with mock.patch(DRAW, return_value=first):
            return steps.gradients(batch)

    return steps.fused(Graph(gradients, steps.parameters, [batch, first]).compile(), noise)


def products_tuned(steps: Steps) -> Epoch:
    """Let inductor search for the fastest code of each matrix product, and pack its weights if this helps."""
    with torch._inductor.config.patch(max_autotune=True, max_autotune_gemm_backends="CPP,ATEN"):
        return as_fit_does(steps)


def products_by_mkl(steps: Steps) -> Epoch:
    """Compute large matrix products by MKL too. This makes a difference only with many draws."""
    with mock.patch("pyrovae._compilation.onednn.LARGE", math.inf):
        return as_fit_does(steps)


def softplus_by_log1p(steps: Steps) -> Epoch:
    """Compute softplus and the Bernoulli density by log1p, as torch does, instead of by a series."""
    with mock.patch("pyrovae._compilation.softplus._by_log1p", return_value=False):
        return as_fit_does(steps)


def products_in_bfloat16(steps: Steps) -> Epoch:
    """Round matrix products to bfloat16, as the argument ``precision`` of ``fit`` does. This changes the result."""
    batch = steps.x[: steps.sizes.batch_size].clone()

    def gradients() -> list[Tensor]:
        with products("bfloat16"):
            return steps.gradients(batch)

    return steps.fused(Graph(gradients, steps.parameters, [batch]).compile())


def data_in_parts(steps: Steps) -> Epoch:
    """Split a batch into ten parts, whose activations fit into the caches."""
    batch = steps.x[: steps.sizes.batch_size].clone()

    def gradients() -> list[Tensor]:
        parts = [steps.gradients(part) for part in batch.split(math.ceil(len(batch) / PARTS))]
        return [sum(gradient[1:], gradient[0]) for gradient in zip(*parts, strict=True)]

    return steps.fused(Graph(gradients, steps.parameters, [batch]).compile())


def adam_in_the_graph(steps: Steps, number: int = 1) -> Epoch:
    """Put the optimizer's update into the graph."""
    size = steps.sizes.batch_size
    batches = steps.x[: number * size].clone()
    first, second = ([torch.zeros_like(parameter) for parameter in steps.parameters] for _ in range(2))
    count = torch.zeros((), device=batches.device)

    def update() -> list[Tensor]:
        for batch in batches.split(size):
            gradients = steps.gradients(batch)
            with torch.no_grad():
                count.add_(1)
                rate = steps.sizes.learning_rate * (1 - 0.999**count).sqrt() / (1 - 0.9**count)
                for parameter, m, v, gradient in zip(steps.parameters, first, second, gradients, strict=True):
                    m.lerp_(gradient, 0.1)
                    v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                    parameter.sub_(rate * m / (v.sqrt() + 1e-8))
        return [count]

    fixed = [*(parameter.detach() for parameter in steps.parameters), *first, *second, count]
    before = [tensor.clone() for tensor in fixed]
    compiled = Graph(update, [*steps.parameters, *first, *second, count], [batches]).compile()
    for tensor, value in zip(fixed, before, strict=True):
        tensor.copy_(value)  # the recorded run has changed the parameters

    def epoch() -> None:
        for indices in torch.randperm(len(steps.x), device=steps.x.device).split(number * size):
            compiled(steps.x[indices])

    return epoch


def several_steps_in_a_graph(steps: Steps) -> Epoch:
    """Put ten steps with the optimizer into one graph."""
    return adam_in_the_graph(steps, number=STEPS)


IDEAS = {
    idea.__name__: idea
    for idea in (
        as_fit_does,
        adam_in_the_graph,
        several_steps_in_a_graph,
        noise_at_once,
        denormals_flushed,
        products_tuned,
        products_by_mkl,
        softplus_by_log1p,
        data_in_parts,
        products_in_bfloat16,
    )
}

if __name__ == "__main__":
    if sys.argv[2] == "pages_kept" and not os.environ.keys() >= MALLOC.keys():  # read only when a process starts
        os.execve(
            sys.executable,
            [sys.executable, "-m", "experiments.benchmarks.trainers.idea", *sys.argv[1:]],
            {**os.environ, **MALLOC},
        )
    pyro.enable_validation(False)
    problem = Problem.read(Path(sys.argv[1]))
    epoch = IDEAS.get(sys.argv[2], as_fit_does)(Steps(problem))

    def work() -> None:
        """Train for one epoch, and wait for its end."""
        epoch()
        finish(problem)

    serve(sys.argv[2], work)
