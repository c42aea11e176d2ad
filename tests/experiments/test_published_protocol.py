"""Rankings that the published protocol changes are those of paired differences beyond doubt."""

import numpy as np
import xarray as xr

from experiments.published_protocol import ANNEALED, QUOTED, rank_changes


def estimates(mean: float, seed: int = 0) -> xr.Dataset:
    noise = np.random.RandomState(seed).normal(size=400)
    return xr.Dataset({"log_likelihood": ("datum", mean + noise)})


def model(**means: float) -> dict[str, xr.Dataset]:
    keys = {"few": "1 draw", "many": "5,000 draws", "quoted": QUOTED}
    found = {keys[name]: estimates(mean) for name, mean in means.items()}
    return found | {ANNEALED: estimates(-7.0).isel(datum=slice(3))}


def test_pairs_whose_order_differs_are_named_with_their_differences() -> None:
    results = {"a": model(few=-90.0, many=-88.0, quoted=-87.0), "b": model(few=-95.0, many=-87.5, quoted=-86.0)}
    table = rank_changes(results)
    assert table.index.tolist() == ["a minus b, 1 draw"]
    assert table.iloc[0].tolist() == ["5.00 ± 0.00", "-1.00 ± 0.00"]


def test_a_difference_within_its_error_is_no_change() -> None:
    base = model(few=-90.0, quoted=-87.0)
    noisy = {"1 draw": estimates(-90.05, seed=1), QUOTED: estimates(-86.0, seed=1), ANNEALED: base[ANNEALED]}
    assert rank_changes({"a": base, "b": noisy}).empty
    sure = {**noisy, "1 draw": estimates(-95.0, seed=1)}
    assert len(rank_changes({"a": base, "b": sure})) == 1
