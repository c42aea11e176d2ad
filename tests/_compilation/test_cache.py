"""A graph that was compiled before is read from inductor's cache, in this process or a later one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from pyrovae._compilation import cache
from pyrovae._compilation.graphs import Graph

pytestmark = pytest.mark.skipif(torch.__version__ < "2.15", reason="graphs of older versions are not cached")
HITS = "fxgraph_cache_hit"
SCRIPT = """
import torch
from torch._dynamo.utils import counters
from pyrovae._compilation.graphs import Graph

torch.set_num_threads({threads})
x = torch.ones(1000, 50)
(found,) = Graph(lambda: [x.sin() + x.exp()], [], [x]).compile()(x)
assert torch.allclose(found, x.sin() + x.exp())
print(counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give each test an empty cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    counters["inductor"].pop(HITS, None)


def compiled(function: Any, x: Tensor) -> Tensor:
    (found,) = Graph(lambda: [function(x)], [], [x]).compile()(x)
    return found


def test_a_second_graph_is_read_from_the_cache() -> None:
    x = torch.linspace(-1.0, 1.0, 5)
    for hits in range(2):
        torch.testing.assert_close(compiled(lambda x: x.cosh() + 3, x), x.cosh() + 3)
        assert counters["inductor"][HITS] == hits


def test_another_version_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-1.0, 1.0, 6)
    for version in ("1.0", "2.0"):
        monkeypatch.setattr(cache, "__version__", version)
        compiled(lambda x: x.cosh() + 4, x)
    assert counters["inductor"][HITS] == 0


@pytest.mark.parametrize("operation", [torch.mul, torch.add, torch.maximum, torch.pow])
@pytest.mark.parametrize("kind", [float, list])
def test_graphs_with_other_constants_do_not_share_their_results(operation: Any, kind: type) -> None:
    """Inductor simplifies operations with the constants 0 and 1, so a graph with another constant must not be read."""
    x = torch.linspace(0.1, 2.0, 3)
    for value in (0.0, 1.0, 2.0, 0.5):
        constant = value if kind is float else [value] * 3
        expected = operation(x, torch.tensor(constant))
        torch.testing.assert_close(compiled(lambda x, c=constant: operation(x, torch.tensor(c)), x), expected)


def test_a_random_draw_follows_the_seed_if_its_graph_is_read() -> None:
    x = torch.zeros(4)
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        expected = torch.randn(4)
        graph = Graph(lambda: [x + torch.randn(4)], [], [x]).compile()
        torch.manual_seed(seed)
        torch.testing.assert_close(graph(x)[0], expected)


@pytest.mark.slow
def test_another_process_reads_a_graph_unless_its_number_of_threads_differs() -> None:
    found = []
    for threads in (1, 1, 2):
        command = [sys.executable, "-c", SCRIPT.format(threads=threads)]
        found.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert found == ["0", "1", "0"]
