"""Reputation against a fifth of clients that attack in every round: who is found, and which honest clients are muted.

MNIST dealt to twenty clients, at random and by Dirichlet(0.5), 20 rounds; 10 seeds, and 3 with a root set of a hundred images.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from attacked import ATTACKS, CLIENTS, FRACTION, RECORDS, ROOT, dealt, mnist, public, trained
from published import CURVES

from fedray.data.records import Federation, Records

pytestmark = pytest.mark.slow

ROUNDS = 20
#: Without and with a root set.
SEEDS = {False: 10, True: 3}
RULE = {"kind": "reputation"}
#: What it finds. The others hide: mimics send what an honest client sends, a backdoor is trained beside honest records, and the smaller form of
#: ``alie`` stays within what honest clients differ by.
FOUND = ("sign_flip", "gaussian", "label_flip", "alie, more than a little")


def outcome(train: Records, test: Records, root: Federation | None, skew: str, seed: int, attack: str) -> dict[str, object]:
    """Of one run: how many attackers and honest clients are muted in the end, the scores between which a threshold would lie, and accuracy."""
    run = trained(dealt(train, skew, seed), RULE, attack, seed, ROUNDS, root)
    malicious = np.isin(np.arange(CLIENTS), [*run.attackers.clients])
    judged = run.rule.of_clients(run.memory)
    score, muted = judged["score"], judged["muted"]
    return {
        "found": int(muted[malicious].sum()),
        "muted": int(muted[~malicious].sum()),
        "best_attacker": round(float(score[malicious].max()), 2) if malicious.any() else None,
        "worst_honest": round(float(score[~malicious].min()), 2),
        "accuracy": round(run.accuracy(test), 4),
    }


def measured(train: Records, test: Records, root: Federation | None, skew: str, seeds: int) -> dict[str, list[dict[str, object]]]:
    """Outcomes by attack, one for each seed."""
    return {attack: [outcome(train, test, root, skew, seed, attack) for seed in range(seeds)] for attack in ATTACKS}


def keep_figures(skew: str, rooted: bool, found: dict[str, list[dict[str, object]]]) -> None:
    """Write them to ``curves/reputation-mnist-SKEW[-root].json``, one line for each run."""
    facts = {"clients": CLIENTS, "records": RECORDS, "root": ROOT if rooted else 0, "rounds": ROUNDS, "attackers": FRACTION, "rule": RULE}
    blocks = [f" {json.dumps(attack)}: [\n  " + ",\n  ".join(map(json.dumps, runs)) + "\n ]" for attack, runs in found.items()]
    text = json.dumps(facts | {"attacks": ATTACKS})[:-1] + ',\n"runs": {\n' + ",\n".join(blocks) + "\n}}\n"
    (CURVES / f"reputation-mnist-{skew}{'-root' if rooted else ''}.json").write_text(text)


def check(found: dict[str, list[dict[str, object]]]) -> None:
    """At least 95 % of the attackers are found, at most 5 % of the honest clients are muted, whatever the attack."""
    attackers, runs = round(FRACTION * CLIENTS), len(found["none"])
    for attack, outcomes in found.items():
        honest = CLIENTS - (0 if attack == "none" else attackers)
        muted = sum(int(str(o["muted"])) for o in outcomes)
        assert muted <= 0.05 * honest * runs, (attack, muted)
        if attack in FOUND:
            assert sum(int(str(o["found"])) for o in outcomes) >= 0.95 * attackers * runs, attack


@pytest.mark.parametrize("rooted", [False, True])
@pytest.mark.parametrize("skew", ["iid", "dirichlet"])
def test_persistent_attackers_are_found_and_honest_clients_are_not_muted(skew: str, rooted: bool, real_data: Path) -> None:
    """Measured: ``curves/reputation-mnist-*.json``, and as shares in docs/rules.md."""
    train, test = mnist(real_data)
    found = measured(train, test, public(real_data) if rooted else None, skew, SEEDS[rooted])
    keep_figures(skew, rooted, found)
    check(found)
