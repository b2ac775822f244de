"""FedPer.

Source: Arivazhagan, Aggarwal, Singh, Choudhary 2019, Federated Learning with Personalization Layers, algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedray.algorithms.fedavg import FedAvg
from fedray.errors import ConfigError
from fedray.traits import Traits


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedAvg of a model's first layers; its personal layers, mostly the last ones, stay with each client, which trains both together.

    A client's personal layers begin as the run's seed has drawn them and go on, in each of its turns, from where its last turn that
    counted has left them. They are client state: in no exchange and no saved model. The model is evaluated at the clients, each with its own
    layers.

    Source: Arivazhagan et al. 2019, Federated Learning with Personalization Layers.

    Attributes:
        personal: names of the personal layers or parameters, or what their names begin with up to a dot: [out], [layer4, fc].
    """

    personal: tuple[str, ...] = field(kw_only=True)
    traits: ClassVar[Traits] = Traits(state=True)

    def __post_init__(self) -> None:
        if not self.personal:
            raise ConfigError("algorithm.personal: it names no layers; algorithm.kind fedavg is the algorithm without personal layers.")


ALGORITHMS = {"fedper": FedPer}
