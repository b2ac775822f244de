"""What goes together with a secure sum, of which nobody sees a single update."""

from __future__ import annotations

from collections.abc import Sequence

from fedray.config import Config
from fedray.errors import PrivacyRefusal
from fedray.secure.protocol import make_protocol
from fedray.traits import Traits, Wants
from fedray.updates.stage import Stage


def check_secure(config: Config, wants: Wants, stages: Sequence[Stage], carries: bool, selects: bool, traits: Traits) -> None:
    """Refuse what needs single updates, or whose updates are no sum of one known cohort.

    Args:
        config: the run.
        wants: what the aggregation rule is given.
        stages: of the config.
        carries: updates may start from earlier versions of the model.
        selects: which clients count depends on how fast they are.
        traits: of the algorithm.

    Raises:
        PrivacyRefusal: with what to use instead.
        ConfigError: as :func:`fedray.secure.protocol.make_protocol`.
    """
    kind, protocol = config.secure.kind, make_protocol(config.secure)
    if protocol is None:
        return
    about, hidden = ("encrypted", "an encrypted") if protocol.encrypts else ("secure", "a masked")
    if wants == "each":
        raise PrivacyRefusal(
            f"aggregation.kind: '{config.aggregation.kind}' needs each client's update, and under secure.kind={kind} nobody sees more than their "
            "sum; use mean, or secure.kind=none.",
            f"privacy.incompatible.{about}.aggregation",
        )
    if traits.singles:
        raise PrivacyRefusal(
            f"algorithm.kind: each client of '{config.algorithm.kind}' sends in a place of its own, so that their sum under secure.kind={kind} "
            "would tell what it hides; use an algorithm without such places, as ifca in place of flhc or histogram_trees in place of bagged_trees, "
            "or secure.kind=none.",
            f"privacy.incompatible.{about}.singles",
        )
    if carries or selects:
        raise PrivacyRefusal(
            f"pacing.kind: with '{config.pacing.kind}' it is not known beforehand whose updates are in a sum, and clients hide theirs for one "
            "cohort; use pacing.kind=synchronous, or secure.kind=none.",
            f"privacy.incompatible.{about}.asynchronous",
        )
    for stage in stages:
        if stage.place == "lossy":
            raise PrivacyRefusal(
                f"compression.kind: {hidden} update has all its values of 64 bits, so '{config.compression.kind}' would lose accuracy and save "
                "nothing; use compression.kind=none, or secure.kind=none.",
                f"privacy.incompatible.{about}.compression",
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
            f"privacy.incompatible.{about}.secret_cohort",
        )
    if protocol.encrypts and config.privacy.whole_clients == "distributed":
        raise PrivacyRefusal(
            f"privacy.regime: each client adds its share of the noise only, and under secure.kind={kind} any client that gives the driver its key "
            "lets it read single updates; use secure.kind=secagg, or privacy.regime=client.",
            "privacy.incompatible.encrypted.distributed",
        )
    if protocol.encrypts and config.privacy.adaptive_clip is not None:
        raise PrivacyRefusal(
            f"privacy.adaptive_clip: the clip norm follows a noised count of clients, which is not proven under secure.kind={kind}; use a fixed "
            "privacy.clip, or secure.kind=secagg.",
            "privacy.incompatible.encrypted.adaptive_clip",
        )
    if protocol.approximate and traits.exact:
        raise PrivacyRefusal(
            f"algorithm.kind: '{config.algorithm.kind}' sends whole numbers whose sum must be exact, and sums under secure.kind={kind} are approximate; "
            "use secure.kind=bfv or secagg.",
            "privacy.incompatible.encrypted.exact",
        )


def check_hidden_losses(config: Config, reads: bool) -> None:
    """Refuse cohorts that depend on single clients' training losses where these are hidden.

    Args:
        config: the run.
        reads: who is drawn depends on such losses.

    Raises:
        PrivacyRefusal: with what to use instead.
    """
    protocol = make_protocol(config.secure)
    if protocol is None or not reads:
        return
    about = "encrypted" if protocol.encrypts else "secure"
    raise PrivacyRefusal(
        f"cohort.kind: '{config.cohort.kind}' chooses clients by their losses, and under secure.kind={config.secure.kind} nobody sees those of one "
        "client; use fixed, poisson or importance, or secure.kind=none.",
        f"privacy.incompatible.{about}.losses",
    )
