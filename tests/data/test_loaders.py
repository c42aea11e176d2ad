"""Loaders and streams keep their batch size, workers, sampler and order."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyrovae.arguments import fingerprint
from pyrovae.data.sources import Stream, as_source
from tests.data.examples import Flow, Noisy, Rows


@pytest.fixture
def x() -> Tensor:
    return torch.randn(23, 4, generator=torch.Generator().manual_seed(0))


def test_a_loader_brings_its_batch_size(x: Tensor) -> None:
    for data in (Rows(x), TensorDataset(x), Flow(x)):
        assert as_source("train", DataLoader(data, batch_size=7)).batch_size == 7
    assert as_source("train", x).batch_size is None


def test_a_collate_fn_is_used_for_data_in_memory_too(x: Tensor) -> None:
    loader = DataLoader(TensorDataset(x), collate_fn=lambda rows: torch.stack([row for (row,) in rows]) + 1)
    assert torch.equal(as_source("train", loader).slice(0, 2)[0], x[:2] + 1)


class Worker(Rows):
    def __getitem__(self, index: int) -> Any:
        info = torch.utils.data.get_worker_info()
        return -1 if info is None else info.id, torch.initial_seed(), torch.rand(())


def test_workers_are_seeded_as_in_torch() -> None:
    loader = DataLoader(Worker(torch.arange(8)), num_workers=2, batch_size=2)
    torch.manual_seed(3)
    ours = list(as_source("train", loader).batches(2))
    torch.manual_seed(3)
    theirs = list(loader)
    again = list(as_source("train", loader).batches(2))
    for found, expected in zip(ours, theirs, strict=True):
        assert all(map(torch.equal, found, expected))
    assert set(torch.cat([batch[0] for batch in ours]).tolist()) == {0, 1}
    assert not torch.equal(ours[0][1], again[0][1])  # each pass takes a number from the generator
    seeded = [list(as_source("train", loader).batches(2, generator=torch.Generator().manual_seed(5))) for _ in range(2)]
    assert torch.equal(seeded[0][0][2], seeded[1][0][2])


@pytest.mark.parametrize("workers", [0, 2])
def test_checks_and_checksums_leave_the_generators_alone(x: Tensor, workers: int) -> None:
    source = as_source("train", DataLoader(Noisy(x), num_workers=workers))
    state, python, other = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    source.check()
    assert source.fingerprint() == source.fingerprint()
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert (np.random.get_state()[1] == other).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Flow(x),
        lambda x: DataLoader(Flow(x), batch_size=5),
        lambda x: DataLoader(Flow(x.split(5)), batch_size=None),
        lambda x: Flow(x.double().numpy()),
    ],
)
def test_a_stream_gives_its_batches_again_for_each_pass(make: Callable[[Tensor], Any], x: Tensor) -> None:
    stream = as_source("train", make(x))
    assert isinstance(stream, Stream)
    for _ in range(2):
        batches = list(stream.batches(5))
        assert [len(batch) for (batch,) in batches] == [5, 5, 5, 5, 3]
        assert torch.equal(torch.cat([batch for (batch,) in batches]), x)
    source = as_source("x", make(x), indexed=True)
    assert torch.equal(source.tensors()[0], x)
    assert as_source("x", stream, indexed=True).fingerprint() == fingerprint((x,))


def test_a_sampler_of_the_users_own_makes_a_stream(x: Tensor) -> None:
    weights = [0.0] * 22 + [1.0]
    for loader in (
        DataLoader(Rows(x), sampler=WeightedRandomSampler(weights, 10), batch_size=5),
        DataLoader(TensorDataset(x), batch_sampler=[[22] * 5, [22] * 5]),
        DataLoader(Rows(x[-1:]), sampler=RandomSampler(x[-1:], replacement=True, num_samples=10), batch_size=5),
    ):
        stream = as_source("train", loader)
        assert isinstance(stream, Stream)
        for (batch,) in stream.batches(3):
            assert torch.equal(batch, x[-1].expand(5, 4))
        with pytest.raises(ValueError, match=r"x is a DataLoader with a \w+, which may omit or repeat data"):
            as_source("x", loader, indexed=True)
