"""Which stages an update may go through beside a privacy claim."""

from __future__ import annotations

from collections.abc import Sequence

from fedray.config import Config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.traits import Traits
from fedray.updates.stage import Stage


def check_stages(config: Config, stages: Sequence[Stage], traits: Traits) -> None:
    """Refuse stages that the algorithm or the regime's guarantee does not go with, by what they declare.

    What noised local training has made (regime record) may go through any stage: that is post-processing. With noise at the driver the
    clip comes after the config's stages, so it bounds what they have made. Under local privacy the noise comes before a lossy stage.

    Args:
        config: the run.
        stages: of the config.
        traits: of the algorithm.

    Raises:
        ConfigError: the algorithm sends figures that a stage would drop or scale.
        PrivacyRefusal: with what to use instead.
    """
    regime = config.privacy.whole_clients
    for stage in stages:
        section = "compression" if stage.place == "lossy" else "bound"
        kind = getattr(config, section).kind
        if traits.reads or traits.divides or traits.exact:
            raise ConfigError(
                f"{section}.kind: '{config.algorithm.kind}' sends figures about its records, which '{kind}' would drop or "
                f"scale; use an algorithm that sends vectors only, such as fedavg, fedprox or scaffold, or {section}.kind=none."
            )
        if regime is not None and stage.state:
            raise PrivacyRefusal(
                f"{section}.kind: clients keep a state between their turns for '{kind}', which lies in the run's directory and shows who took "
                f"part; use a stage without state (feedback=false, where a stage has feedback), or privacy.regime=record.",
                f"privacy.incompatible.{regime}.client_state",
            )
        if regime == "distributed" and stage.place == "lossy" and stage.support != "public":
            raise PrivacyRefusal(
                f"{section}.kind: with '{kind}' each client chooses by its own update what it sends, which shows beside the noise, and shares "
                "of noise add up only in values that all clients send; use compression.kind=none, or randk without feedback, whose set of values "
                "is public.",
                "privacy.incompatible.distributed.compression",
            )
