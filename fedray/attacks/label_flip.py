"""Label flipping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedray.attacks.attack import RecordAttack
from fedray.data.records import Records
from fedray.errors import ConfigError


@dataclass(frozen=True)
class LabelFlip(RecordAttack):
    """Trains on false labels: of C classes, class c becomes C - 1 - c.

    Source: Fang, Cao, Jia, Gong 2020, Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, section 5.1 (label flipping)
    """

    def changed(self, train: Records, classes: int | None, draws: np.random.Generator) -> Records:
        """The records with flipped labels."""
        if classes is None or train.y.ndim != 1:
            raise ConfigError("attack.kind: 'label_flip' needs records that have one class each.")
        return Records(train.x, classes - 1 - train.y)


ATTACKS = {"label_flip": LabelFlip}
