"""Power of choice: of some candidates, those on which the model does worst.

Source: Cho, Wang, Joshi 2020, Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection Strategies. This is
the variant rpow-d, which sends nothing more: a candidate's loss is the mean over the steps of its last turn.
"""

from __future__ import annotations

import numpy as np

from fedray.rounds.cohort import Coins, Indices, Population


def power_of_choice(population: Population, coins: Coins, *, size: int, candidates: int) -> Indices:
    """Of candidates drawn by their numbers of records, those with the largest losses in their last turns; first those that had none.

    Args:
        population: who could take part, their records, and their last losses.
        coins: one a client, uniform in [0, 1).
        size: clients of a round.
        candidates: drawn without replacement; with ``size`` of them losses decide nothing.

    Source: Cho, Wang, Joshi 2020, Client Selection in Federated Learning (rpow-d)
    """
    able = np.flatnonzero(population.eligible & (population.rates > 0) & (population.records > 0))
    # Of exponential times with rates in proportion to records, the first are a sample without replacement (Efraimidis and Spirakis 2006).
    times = -np.log1p(-coins[able]) / population.records[able]
    asked = able[np.argsort(times, kind="stable")[:candidates]]
    return np.sort(asked[np.argsort(-population.losses[asked], kind="stable")[:size]])


SAMPLERS = {"power_of_choice": power_of_choice}
