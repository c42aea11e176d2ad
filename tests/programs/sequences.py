"""Sequences: a deep Markov model, and hidden Markov models with parallel and sequential plates."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import Tensor, nn

from tests.programs.case import HAMILTONIAN, PER_DATUM, SUMMED_OUT, Case, Guided, noise, refused

STEPS, NOTES, STATES = 3, 2, 2


class DeepMarkovModel(nn.Module):
    """Pyro's deep Markov model for sequences of different lengths, with one latent dimension and a small RNN.

    Args:
        is_masked: Whether the steps after the end of a sequence are masked.
    """

    def __init__(self, *, is_masked: bool = True) -> None:
        super().__init__()
        self.is_masked = is_masked
        self.transition, self.emitter = nn.Linear(1, 2), nn.Linear(1, NOTES)
        self.rnn = nn.RNN(NOTES, 3, batch_first=True)
        self.combiner = nn.Linear(4, 2)

    def model(self, x: Tensor, lengths: Tensor) -> None:
        pyro.module("dmm", self)
        z = x.new_zeros(1)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with self.mask(t < lengths):
                    loc, log_scale = self.transition(z).chunk(2, -1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, (0.2 * log_scale).exp()).to_event(1))
                    notes = dist.Bernoulli(logits=self.emitter(z)).to_event(1)
                    pyro.sample(f"obs_x_{t}", notes, obs=x[:, t])

    def mask(self, seen: Tensor) -> AbstractContextManager[Any]:
        return poutine.mask(mask=seen) if self.is_masked else nullcontext()

    def guide(self, x: Tensor, lengths: Tensor) -> None:
        pyro.module("dmm", self)
        hidden, _ = self.rnn(x.flip(1))
        z = x.new_zeros(1)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with self.mask(t < lengths):
                    h = hidden[:, x.shape[1] - 1 - t]
                    shape = torch.broadcast_shapes(z.shape[:-1], h.shape[:-1])
                    joined = torch.cat([z.expand(*shape, 1), h.expand(*shape, 3)], -1)
                    loc, log_scale = self.combiner(joined).chunk(2, -1)
                    z = pyro.sample(f"z_{t}", dist.Normal(0.3 * loc, (0.2 * log_scale).exp()).to_event(1))


class HiddenMarkovModel(nn.Module):
    """Pyro's hidden Markov model with learned tables; the states are summed out, so the guide is empty.

    Args:
        sequential: Whether sequences are a loop over a plate, as in ``model_1``, or a vectorized plate, as ``model_2``.
    """

    def __init__(self, *, sequential: bool = False) -> None:
        super().__init__()
        self.sequential = sequential
        self.of_state = nn.Parameter(torch.tensor([[1.0, 0.0], [-0.5, 0.8]]))
        self.of_note = nn.Parameter(torch.tensor([[-1.0, 0.5], [1.0, -0.3]]))

    def model(self, x: Tensor, lengths: Tensor) -> None:
        pyro.module("hmm", self)
        if self.sequential:
            for i in pyro.plate("sequences", len(x)):
                self.chain(x[i : i + 1], lengths[i : i + 1], int(lengths[i]), f"_{i}")
            return
        with pyro.plate("sequences", len(x)):
            self.chain(x, lengths, int(lengths.max()), "")

    def chain(self, x: Tensor, lengths: Tensor, steps: int, suffix: str) -> None:
        state: int | Tensor = 0
        for t in pyro.markov(range(steps)):
            seen = (t < lengths)[0] if self.sequential else t < lengths
            with poutine.mask(mask=seen):
                transition = dist.Categorical(logits=self.of_state[state])
                state = pyro.sample(f"x_{t}{suffix}", transition, infer={"enumerate": "parallel"})
                notes = dist.Bernoulli(logits=self.of_note[state]).to_event(1)
                pyro.sample(f"y_{t}{suffix}", notes, obs=x[0, t] if self.sequential else x[:, t])

    def guide(self, x: Tensor, lengths: Tensor) -> None: ...


class BayesianHiddenMarkovModel(nn.Module):
    """The hidden Markov model with priors of its tables, as Pyro's example has it; the guide is AutoDelta."""

    def model(self, x: Tensor, lengths: Tensor) -> None:
        of_state = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(STATES) + 0.1).to_event(1))
        of_note = pyro.sample("probs_y", dist.Beta(0.5, 0.8).expand([STATES, NOTES]).to_event(2))
        with pyro.plate("sequences", len(x)):
            state: int | Tensor = 0
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=t < lengths):
                    transition = dist.Categorical(of_state[state])
                    state = pyro.sample(f"x_{t}", transition, infer={"enumerate": "parallel"})
                    pyro.sample(f"y_{t}", dist.Bernoulli(of_note[state]).to_event(1), obs=x[:, t])


def sequences() -> tuple[Tensor, Tensor]:
    return (noise(3, STEPS, NOTES) > 0).float(), torch.tensor([1, 2, 3])


def forward_algorithm() -> np.ndarray:
    """Return log p(x) of each sequence by the forward algorithm."""
    programs, (x, lengths) = HiddenMarkovModel(), sequences()
    transition, log_notes = programs.of_state.detach().softmax(-1), programs.of_note.detach()
    totals = []
    for sequence, length in zip(x, lengths, strict=True):
        message = torch.eye(STATES)[0]
        for t in range(int(length)):
            emission = dist.Bernoulli(logits=log_notes).log_prob(sequence[t]).sum(-1).exp()
            message = (message @ transition) * emission
        totals.append(float(message.sum().log()))
    return np.array(totals)


def global_map() -> Guided:
    def make(model: object) -> AutoDelta:
        return AutoDelta(poutine.block(model, expose=["probs_x", "probs_y"]))

    return Guided(BayesianHiddenMarkovModel(), make)


CASES = (
    Case("deep Markov model, ragged", DeepMarkovModel, sequences, draws=50_000,
         refused=refused("masked site", *HAMILTONIAN)),
    Case("HMM, vectorized plate", HiddenMarkovModel, sequences, elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1),
         exact=forward_algorithm, enumerated=True, refused=SUMMED_OUT),
    Case("HMM, sequential plate", lambda: HiddenMarkovModel(sequential=True), sequences,
         elbo=lambda: TraceEnum_ELBO(max_plate_nesting=0), exact=forward_algorithm, enumerated=True,
         refused=refused("without a plate", "fit", *PER_DATUM, "checkpoint")),
    Case("HMM, global priors, AutoDelta", global_map, sequences, elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1),
         refused=refused("point", *PER_DATUM)),
)  # fmt: skip
