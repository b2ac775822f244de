"""What goes together with a secure sum, of which nobody sees a single update."""

from __future__ import annotations

from collections.abc import Sequence

from fedray.config import Config
from fedray.errors import PrivacyRefusal
from fedray.secure.protocol import make_protocol
from fedray.traits import Wants
from fedray.updates.stage import Stage


def check_secure(config: Config, wants: Wants, stages: Sequence[Stage], carries: bool, selects: bool) -> None:
    """Refuse what needs single updates, or whose updates are no sum of one known cohort.

    Args:
        config: the run.
        wants: what the aggregation rule is given.
        stages: of the config.
        carries: updates may start from earlier versions of the model.
        selects: which clients count depends on how fast they are.

    Raises:
        PrivacyRefusal: with what to use instead.
        ConfigError: as :func:`fedray.secure.protocol.make_protocol`.
    """
    kind, protocol = config.secure.kind, make_protocol(config.secure)
    if protocol is None:
        return
    if wants == "each":
        raise PrivacyRefusal(
            f"aggregation.kind: '{config.aggregation.kind}' needs each client's update, and under secure.kind={kind} nobody sees more than their "
            "sum; use mean, or secure.kind=none.",
            "privacy.incompatible.secure.aggregation",
        )
    if carries or selects:
        raise PrivacyRefusal(
            f"pacing.kind: with '{config.pacing.kind}' it is not known beforehand whose updates are in a sum, and clients mask theirs for one "
            "cohort; use pacing.kind=synchronous, or secure.kind=none.",
            "privacy.incompatible.secure.asynchronous",
        )
    for stage in stages:
        if stage.place == "lossy":
            raise PrivacyRefusal(
                f"compression.kind: a masked update has all its values of 64 bits, so '{config.compression.kind}' would lose accuracy and save "
                "nothing; use compression.kind=none, or secure.kind=none.",
                "privacy.incompatible.secure.compression",
            )
    if protocol.identified and config.clients.placement == "hosted":
        raise PrivacyRefusal(
            f"clients.placement: under secure.kind={kind} with identities each client keeps its own private key, and with 'hosted' one process "
            "would hold those of many clients; use clients.placement=dedicated, or no identities.",
            "privacy.incompatible.secure.hosted_identities",
        )
    if protocol.identified and config.privacy.whole_clients == "client" and config.cohort.kind == "fixed":
        raise PrivacyRefusal(
            "cohort.kind: where clients have identities, those of a secure sum get to know which clients take part, while the charges of this "
            "regime count on the cohort being secret; use cohort.kind=all or cyclic, or no identities.",
            "privacy.incompatible.secure.secret_cohort",
        )
    if config.privacy.whole_clients == "client" and config.cohort.kind == "poisson":
        raise PrivacyRefusal(
            "cohort.kind: the clients of a secure sum get to know how many of them there are, while the charges of this regime count on the "
            "cohort being secret; use cohort.kind=fixed or all, or secure.kind=none.",
            "privacy.incompatible.secure.secret_cohort",
        )
