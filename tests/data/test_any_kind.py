"""Training and evaluation accept data of any kind, with the same results as for a tensor in memory."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import pyrovae as pv
from pyrovae.data.sources import as_source
from pyrovae.evaluation import evaluate
from pyrovae.training.data import as_training_data
from tests.data.examples import Flow, Noisy, Rows, mapped


class Conditional(nn.Module):
    """A program for p(x | y) with two arguments of data, and further arguments in an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.network = pv.networks.mlp(3, 8, 4)

    def model(self, x: Tensor, y: Tensor, *others: Any) -> None:
        self.seen = others
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            given = torch.cat([z.expand(*z.shape[:-2], len(x), 2), y.float()[:, None].expand(*z.shape[:-1], 1)], -1)
            pyro.sample("x", dist.Normal(self.network(given), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor, *_: Any) -> None:
        del y
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))


def vae() -> pv.VAE:
    pyro.set_rng_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.mlp(2, 8, 4), scale=0.5),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 8, 4)),
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(1))


OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 25, "seed": 0, "progress": False, "device": "cpu"}

KINDS: dict[str, Callable[[Tensor, Path], Any]] = {
    "float32 array": lambda x, _: x.numpy(),
    "float64 array": lambda x, _: x.numpy().astype(np.float64),
    "memmap": lambda x, folder: mapped(folder, x.numpy()),
    "float64 memmap": lambda x, folder: mapped(folder, x.double().numpy()),
    "DataFrame": lambda x, _: pd.DataFrame(x.numpy()),
    "Dataset": lambda x, _: Rows(x),
    "Dataset of arrays": lambda x, _: Rows(x.numpy()),
    "TensorDataset": lambda x, _: TensorDataset(x),
    "shuffled DataLoader": lambda x, _: DataLoader(Rows(x), batch_size=7, shuffle=True),
    "DataLoader with workers": lambda x, _: DataLoader(Rows(x), batch_size=7, num_workers=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_numbers_of_the_tensor(kind: str, x: Tensor, tmp_path: Path) -> None:
    data = KINDS[kind](x, tmp_path)
    usual, other = vae(), vae()
    right = pv.fit(usual, x, x[:20], **OPTIONS)
    found = pv.fit(other, data, Rows(x[:20]), **OPTIONS)
    assert found.train == right.train
    assert found.valid == right.valid
    for before, after in zip(usual.parameters(), other.parameters(), strict=True):
        assert torch.equal(before, after)
    results = [evaluate(other.model, other.guide, each, 20, seed=0, progress=False) for each in (x, data)]
    np.testing.assert_array_equal(results[0].log_likelihood, results[1].log_likelihood)
    assert results[0].attrs["data_sha1"] == results[1].attrs["data_sha1"]
    assert torch.equal(other.encode(data).mean, other.encode(x).mean)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x.numpy(), y.numpy()),
        lambda x, y: TensorDataset(x, y),
        lambda x, y: Rows(x, y),
        lambda x, y: Rows(x.numpy(), y.tolist()),
        lambda x, y: DataLoader(Rows(x, y), shuffle=True, num_workers=1),
    ],
    ids=["arrays", "TensorDataset", "Dataset", "Dataset of numbers", "DataLoader"],
)
def test_data_of_two_arguments(make: Callable[[Tensor, Tensor], Any], x: Tensor) -> None:
    y = torch.arange(60) % 3
    usual, other = Conditional(), Conditional()
    other.load_state_dict(usual.state_dict())
    assert pv.fit(other, make(x, y), **OPTIONS).train == pv.fit(usual, (x, y), **OPTIONS).train
    right, found = (evaluate(other.model, other.guide, data, 9, seed=0) for data in ((x, y), make(x, y)))
    np.testing.assert_array_equal(found.log_likelihood, right.log_likelihood)


def test_other_arguments_reach_the_programs_of_an_evaluation(x: Tensor, tmp_path: Path) -> None:
    program, y = Conditional(), np.arange(60) % 3
    others: tuple[Any, ...] = ("a string", None, 7, {"key": [1]})
    result = evaluate(program.model, program.guide, (mapped(tmp_path, x.numpy()), y, *others), 9, seed=0)
    assert program.seen == others
    right = evaluate(program.model, program.guide, (x, torch.from_numpy(y)), 9, seed=0)
    np.testing.assert_array_equal(result.log_likelihood, right.log_likelihood)


@pytest.mark.parametrize("make", [Flow, lambda x: DataLoader(Flow(x), batch_size=25)], ids=["itself", "loader"])
def test_a_stream_is_read_in_its_own_order(make: Callable[[Tensor], Any], x: Tensor) -> None:
    seen: list[Tensor] = []
    module = vae()
    history = pv.fit(module, make(x), make(x), transform=lambda x: (seen.append(x), x)[1], **OPTIONS)
    assert len(history.train) == len(history.valid) == 3
    for start in range(0, len(seen), 3):  # the check and three epochs
        assert torch.equal(torch.cat(seen[start : start + 3]), x)
    assert len(seen) == 12
    right = evaluate(module.model, module.guide, x, 9, seed=0)
    np.testing.assert_array_equal(
        evaluate(module.model, module.guide, make(x), 9, seed=0).log_likelihood, right.log_likelihood
    )


def test_every_epoch_of_a_stream_has_the_batches_of_its_first_pass(x: Tensor) -> None:
    sizes: list[int] = []
    stream = Flow(x, iter([60, 60, 60, 20, 40]))  # the count, the check, one epoch, and two passes for the other
    options = {**OPTIONS, "batch_size": 20, "epochs": 2}
    pv.fit(vae(), stream, transform=lambda x: (sizes.append(len(x)), x)[1], **options)
    assert sizes == [20] * 9


def test_a_stream_with_one_pass_is_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"train had 60 data in its first pass but a later pass is empty.*__iter__"):
        pv.fit(vae(), Flow(x, iter([60, 0])), **OPTIONS)


def test_batch_size_comes_from_the_loader_unless_it_is_given(x: Tensor) -> None:
    cases = [
        (DataLoader(Rows(x), batch_size=12), None, [12] * 5),
        (DataLoader(Rows(x), batch_size=12), 50, [50, 10]),
        (DataLoader(TensorDataset(x), batch_size=12), None, [12] * 5),
        (DataLoader(Flow(x), batch_size=12), None, [12] * 5),
        (DataLoader(Flow(x), batch_size=12), 50, [50, 10]),
        (DataLoader(Flow(x), batch_size=12), 5, [5] * 12),
        (Flow(x), None, [60]),
        (x, None, [60]),
    ]
    for data, size, sizes in cases:
        seen: list[int] = []
        options = {**OPTIONS, "batch_size": size, "epochs": 1}
        pv.fit(vae(), data, transform=lambda x, seen=seen: (seen.append(len(x)), x)[1], **options)
        assert seen == 2 * sizes, data


@pytest.mark.parametrize(
    ("make", "batch_size"),
    [
        (lambda x, folder: mapped(folder, x.numpy()), 7),
        (lambda x, _: Noisy(x), 7),
        (lambda x, _: DataLoader(Rows(x), num_workers=2), 7),
        (lambda x, _: pd.DataFrame(x.numpy()), 60),
    ],
    ids=["memmap", "random Dataset", "workers", "DataFrame"],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    make: Callable[[Tensor, Path], Any], batch_size: int, x: Tensor, tmp_path: Path
) -> None:
    data, steps = make(x, tmp_path), -(-60 // batch_size)
    options = {**OPTIONS, "batch_size": batch_size, "epochs": 4}
    stop_at = [0]

    def interrupt(x: Tensor) -> Tensor:
        stop_at[0] -= 1
        if stop_at[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return x

    whole, first, again = vae(), vae(), vae()
    right = pv.fit(whole, data, transform=interrupt, **options)
    stop_at[0] = 3 * steps + steps // 2 + 1  # the check, two epochs, and half of the next
    assert pv.fit(first, data, transform=interrupt, **options, checkpoint=tmp_path / "run").interrupted
    found = pv.fit(again, data, transform=interrupt, **options, checkpoint=tmp_path / "run")
    assert found.train == right.train
    for before, after in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(before, after)


def test_equal_data_of_another_kind_continue_a_run(x: Tensor, tmp_path: Path) -> None:
    pv.fit(vae(), x, **OPTIONS, checkpoint=tmp_path)
    module = vae()
    history = pv.fit(module, Rows(x), **{**OPTIONS, "epochs": 5}, checkpoint=tmp_path)
    assert len(history.train) == 5
    with pytest.raises(ValueError, match="train data"):
        pv.fit(vae(), Rows(x + 1), **OPTIONS, checkpoint=tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, _: x.half(),
        lambda x, _: x.numpy().astype(np.float16),
        lambda x, folder: mapped(folder, x.half().numpy()),
        lambda x, _: Rows(x.bfloat16()),
        lambda x, _: TensorDataset(x.half()),
        lambda x, _: DataLoader(Rows(x.half()), shuffle=True),
        lambda x, _: Flow(x.half()),
        lambda x, _: (x, x.half()),
    ],
)
def test_an_evaluation_refuses_half_precision(make: Callable[[Tensor, Path], Any], x: Tensor, tmp_path: Path) -> None:
    module = vae()
    with pytest.raises(ValueError, match=r"x is in half precision.*Pass x as float32"):
        evaluate(module.model, module.guide, make(x, tmp_path), 5)


@pytest.mark.parametrize("make", [torch.Tensor.numpy, Rows, TensorDataset, Flow], ids=lambda make: make.__name__)
def test_bytes_are_transformed_on_the_device(make: Callable[[Tensor], Any]) -> None:
    images = torch.randint(256, (60, 4), generator=torch.Generator().manual_seed(0)).byte()
    right = pv.fit(vae(), images.float() / 255, images[:9].float() / 255, **{**OPTIONS, "batch_size": 60})
    dtypes = set()

    def grey(x: Tensor) -> Tensor:
        dtypes.add(x.dtype)
        return x.float() / 255

    found = pv.fit(vae(), make(images), images[:9].numpy() / 255, transform=grey, **{**OPTIONS, "batch_size": 60})
    if make is not Flow:  # torch's loader takes a number from the generator at each pass
        assert found.train == right.train
        assert found.valid == right.valid
    assert dtypes == {torch.uint8}
    module = vae()
    with pytest.raises(TypeError, match=r"train must be floating-point.*got torch.uint8.*transform=lambda x: x.float"):
        pv.fit(module, make(images), **OPTIONS)
    with pytest.raises(TypeError, match=r"valid must be floating-point.*Pass validation data as floats"):
        pv.fit(module, make(images), make(images), transform=grey, **OPTIONS)
    with pytest.raises(ValueError, match=r"x holds integers, torch.uint8, which an evaluation does not convert"):
        evaluate(module.model, module.guide, make(images), 5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: list(x.numpy()), TypeError, r"must be a tensor.*but it is a list of \['ndarray'\]"),
        (lambda x: {"x": x}, TypeError, "must be a tensor.*but it is a dict"),
        (lambda x: (x, x[:3]), ValueError, r"must share a first dimension.*\(60, 4\), \(3, 4\)"),
        (lambda x: Rows([]), ValueError, "is empty"),
        (lambda x: DataLoader(Flow(x[:0])), ValueError, "is empty: its stream ended at once"),
        (lambda x: np.array(["a", "b"]), TypeError, "must hold numbers"),
        (lambda x: Rows(["a", "b"]), TypeError, "datum 0 of .* holds a str"),
        (lambda x: Rows(x / 0), ValueError, "60 of 60 data in .* hold NaN or infinite values, the first at index 0"),
    ],
)
def test_unreadable_data_are_refused(
    make: Callable[[Tensor], Any], error: type[Exception], message: str, x: Tensor
) -> None:
    module, data = vae(), make(x)
    with pytest.raises(error, match=message) as raised:
        pv.fit(module, data, **OPTIONS)
    assert "train" in str(raised.value)
    with pytest.raises(error, match=message):
        evaluate(module.model, module.guide, data, 5)


def test_a_stream_names_the_batch_that_is_not_finite(x: Tensor) -> None:
    x = x.index_fill(0, torch.tensor(41), torch.nan)
    with pytest.raises(ValueError, match=r"1 of 25 data in batch 1 of train hold NaN .* first at index 16"):
        pv.fit(vae(), DataLoader(Flow(x), batch_size=25), **{**OPTIONS, "batch_size": None})


def test_an_evaluation_refuses_a_sampler_that_repeats_data(x: Tensor) -> None:
    loader = DataLoader(TensorDataset(x), sampler=WeightedRandomSampler([1.0] * 60, 60))
    module = vae()
    assert len(pv.fit(module, loader, **{**OPTIONS, "batch_size": 20}).train) == 3
    with pytest.raises(ValueError, match=r"x is a DataLoader with a WeightedRandomSampler.*Pass its dataset"):
        evaluate(module.model, module.guide, loader, 5)
    with pytest.raises(ValueError, match="valid is a DataLoader with a WeightedRandomSampler"):
        pv.fit(module, x, loader, **OPTIONS)


def test_an_evaluation_of_random_data_repeats_and_moves_no_generator(x: Tensor) -> None:
    module = vae()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    results = [evaluate(module.model, module.guide, Noisy(x), 9, seed=0) for _ in range(2)]
    np.testing.assert_array_equal(results[0].log_likelihood, results[1].log_likelihood)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@pytest.mark.parametrize("make", [torch.Tensor.numpy, Rows, lambda x: (x.numpy(),)])
def test_training_names_the_first_datum_that_is_not_finite(make: Callable[[Tensor], Any], x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"1 of 60 data in train hold NaN .* first at index 41"):
        pv.fit(vae(), make(x.index_fill(0, torch.tensor(41), torch.nan)), **OPTIONS)


def test_an_evaluation_of_a_mapped_file_finds_rows_that_are_nan(x: Tensor, tmp_path: Path) -> None:
    module = vae()
    data = mapped(tmp_path, x.index_fill(0, torch.tensor([3, 41]), torch.nan).numpy())
    with pytest.warns(UserWarning, match=r"\[3, 41\]"):
        result = evaluate(module.model, module.guide, data, 9, seed=0)
    assert np.flatnonzero(np.isnan(result.log_likelihood)).tolist() == [3, 41]


def test_several_processes_know_their_data_by_a_checksum(x: Tensor) -> None:
    same = [as_training_data("train", data, None).digest() for data in (x, x.numpy(), Rows(x), TensorDataset(x))]
    assert all(torch.equal(digest, same[0]) for digest in same)
    assert not torch.equal(as_training_data("train", x + 1, None).digest(), same[0])
    with pytest.raises(ValueError, match="train is a stream, from which several processes"):
        as_training_data("train", Flow(x), None).digest()


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_changes_of_a_mapped_file_outlive_its_reading(mode: str, x: Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x.numpy())
    data = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode != "r":
        data[7] = 5.0
    expected = np.array(data)
    source = as_source("x", data[3:])
    for _ in range(2):
        (whole,) = (torch.cat(parts) for parts in zip(*source.batches(11), strict=True))
        np.testing.assert_array_equal(whole, expected[3:])
    np.testing.assert_array_equal(data, expected)
