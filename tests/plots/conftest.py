"""Close all figures after each test."""

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def _close() -> object:
    yield
    plt.close("all")
