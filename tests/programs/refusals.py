"""The refusals of the matrix by name, as patterns of their messages; test_advice.py follows the advice of each."""

import re

REFUSALS = {
    "shared latent": r"latent site '.*' lies outside the data plate '.*', so the data are not independent",
    "packed latents": r"the guide draws the latent sites of all data as one vector, '.*'",
    "point": r"the guide puts all mass of latent site '.*' on a point",
    "partly a point": r"of the latent sites .* are computed as points, so these have no density",
    "discrete site": r"latent site '.*' is discrete, .*, but Hamiltonian moves need continuous latents",
    "enumerated in the guide": r"the guide enumerates a discrete latent site",
    "masked site": r"latent site '.*' is masked, so its posterior has no density",
    "without latents": r"the guide has no latent sites, so a chain has nothing to move",
    "without inverse": r"latent site '.*' is a .*, for which torch has no inverse distribution function",
    "one draw a run": r"rqmc makes all draws in one run, but this program must be run once for each draw",
    "scored together": r"the program gives other log-weights when many draws are scored in one run",
    "without reparameterized draws": r"latent site '.*' has no reparameterized draws",
    "built in another way": r"is of a module built in another way",
    "without a plate": r"there is no data plate around the observed sites",
}


def name_of(message: str) -> str:
    """Return the name of the refusal with this message, ``"not listed"`` if no pattern fits."""
    return next((name for name, pattern in REFUSALS.items() if re.search(pattern, message)), "not listed")
