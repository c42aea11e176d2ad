"""Properties of a program, found by three runs on some of the data before an evaluation begins.

1. Guide and model run on some of the data, with one draw for each datum and with Pyro's validation. The run finds the
   plates. It checks that model and guide have the same latent sites, and that the data lie in the support of the
   likelihood.
2. Guide and model run on only three of these data, with two draws for each datum. The first of the two draws is the
   datum's draw in the first run. The log-weight of this draw must not change, because a log-weight may depend neither
   on other draws nor on other data.
3. Guide and model run on three data, with eleven draws for each datum. The bytes of all tensors that this run
   creates determine the size of batches. If most of the model's bytes do not grow with the number of draws, up to
   six further runs, each on twice as many data, find the bytes of a log-weight in a larger run.

In the second and in the third run, the density of the model must not depend on random numbers that the model draws
outside of its sample sites.

If the second run fails, or its log-weights differ from those of the first run, further runs find the cause.
"""

import warnings
from typing import Any

from pyro import poutine

from pyrovae._waist.agreement import latent_masks
from pyrovae._waist.independence import BatchNormInputs, needs_one_draw_a_run
from pyrovae._waist.outside import check_given
from pyrovae._warnings import find_stack_level
from pyrovae.evaluation.probe.data_support import check_data_support
from pyrovae.evaluation.probe.dependence import Dependence, Outcome
from pyrovae.evaluation.probe.facts import Probe
from pyrovae.evaluation.probe.first_run import first_run
from pyrovae.evaluation.probe.memory import memory_use
from pyrovae.evaluation.probe.precision import check_parameters, full_precision
from pyrovae.evaluation.probe.trials import Reference, Trials
from pyrovae.isolation import Isolation


def probe(trials: Trials, isolation: Isolation, memory: int) -> Probe:
    """Return the properties of a program. Call this function only while the context ``isolation`` is active.

    Args:
        trials: Object that runs the programs.
        isolation: Context that stores the state of the programs' modules, and restores it on exit.
        memory: Bytes that the tensors of one run may occupy.

    Raises:
        ValueError: If the program or its data violate one of the rules in the docstring of the module.

    Warns:
        UserWarning: If the program does not support many draws in one run. It then runs once for each draw.
    """
    check_parameters(isolation.modules)
    with BatchNormInputs() as alone, poutine.trace(param_only=True) as capture, full_precision():
        one, takes_fewer = first_run(trials, memory)
    modules_of_first_run = len(isolation.training)
    trials.noise.sources.clear()  # the first run may initialize parameters at random
    announced: list[Any] = [site["value"] for site in capture.trace.nodes.values() if site["type"] == "param"]
    dependence = Dependence(trials, alone)
    takes = dependence.second_run(one) if takes_fewer else dependence.all_data(one)
    if not takes.any_data and one.size < trials.size:
        one = trials.reference(trials.size)
        takes = dependence.all_data(one)
    if not takes.any_data:
        dependence.check_other_data(one)
        _check_plate(one, trials.size)
    check_given(one.weights, lambda args: trials.score(tuple(args), dict(one.weights.chosen)), trials.args(one.size))
    vectorize = _choose_vectorize(trials.options["vectorize"], takes)
    check_data_support(trials, one, cuttable=takes.any_data)
    memory_of_run = memory_use(trials, one, memory, cuttable=takes.any_data, vectorize=vectorize)
    trials.check_noise(one.size)
    return Probe(
        plate=one.weights.plate,
        nesting=one.nesting,
        cuttable=takes.any_data,
        vectorize=vectorize,
        enumerates=one.enumerates,
        masked=bool(latent_masks(one.weights.model_sites + one.weights.guide_sites)),
        event_dims=one.event_dims,
        base_measures=one.base_measures,
        parameters=[value.detach() for value in announced],
        finite=trials.finite,
        memory=memory_of_run,
        dtype=str(one.weights.log_weights.dtype).removeprefix("torch."),
        makes_modules=len(isolation.training) > modules_of_first_run,
    )


def _check_plate(one: Reference, size: int) -> None:
    """Check that the size of the data plate is the number of data.

    This check is for a program that must score all data at once.
    """
    plate = one.weights.plate
    if size not in (plate.size, plate.full_size):
        raise ValueError(
            f"the data plate {plate.name!r} has size {plate.size} but x has {size} data. Set the size of the plate "
            f"to the number of data, or name another plate with plate=."
        )


def _choose_vectorize(wanted: bool | None, takes: Outcome) -> bool:
    """Return true if the program supports many draws in one run, and ``wanted`` is not false.

    Raises:
        ValueError: If ``wanted`` is true and the program does not support many draws in one run.

    Warns:
        UserWarning: If ``wanted`` is None and the program does not support many draws in one run.
    """
    if wanted is False or takes.many_draws:
        return wanted is not False
    if wanted:
        raise ValueError(
            f"{needs_one_draw_a_run(takes.reason)}. Alternatively, pass vectorize=False to run the program once for "
            f"each draw."
        )
    warnings.warn(
        f"{needs_one_draw_a_run(takes.reason)}. The program runs once for each draw instead.",
        stacklevel=find_stack_level(),
    )
    return False
