"""Who attacks in a run, and where each kind of attack acts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each
from fedray.attacks.attack import Agreed, Attack, Collusion, RecordAttack, UpdateAttack, make_attack
from fedray.components import nearest
from fedray.config import Config
from fedray.data.records import Federation, Records, positions
from fedray.errors import ConfigError, FedrayError, PrivacyRefusal
from fedray.parameters import Vector
from fedray.rng import generator
from fedray.traits import Traits, Wants


@dataclass(frozen=True, eq=False)
class Attacked(Each):
    """A round's updates as the driver gets them after malicious clients have agreed on what they send.

    Attributes:
        updates: what all clients would send.
        mine: which of them are malicious, bool ``[count]``.
        agreed: what these send.
    """

    updates: Each = field(kw_only=True)
    mine: npt.NDArray[np.bool_] = field(kw_only=True)
    agreed: Agreed = field(kw_only=True)

    def columns(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """As :meth:`Each.columns`, with what the malicious clients send."""
        found = self.updates.columns(start, stop)
        found[self.mine] = self.agreed(found)
        return found


@dataclass(frozen=True)
class Attackers:
    """The malicious clients of a run; none in most.

    Attributes:
        kind: of the attack.
        clients: their indices.
        attack: what they do; None where there are none.
        seed: of what they draw.
    """

    kind: str = "none"
    clients: frozenset[int] = frozenset()
    attack: Attack | None = None
    seed: int = 0

    @classmethod
    def of(cls, config: Config, names: Sequence[str]) -> Attackers:
        """Those whom the config names, or draws by its seed from all clients.

        Raises:
            ConfigError: a name is no client's, the fraction leaves nobody or everybody, or as :func:`make_attack`.
        """
        section, attack = config.attack, make_attack(config.attack)
        if attack is None:
            return cls()
        if section.clients is not None:
            position = positions(names)
            try:
                drawn = [position(name) for name in section.clients]
            except (LookupError, ValueError):
                wrong = next(name for name in section.clients if name not in names)
                raise ConfigError(f"attack.clients: there is no client '{wrong}'.{nearest(wrong, names)}") from None
        else:
            number = math.ceil(Fraction(str(section.fraction)) * len(names))  # 0.07 * 100 is above 7 in float64
            drawn = generator(config.seed, "attackers").permutation(len(names))[:number].tolist()
        if not 0 < len(set(drawn)) < len(names):
            raise ConfigError(f"attack: {len(set(drawn))} of {len(names)} clients would attack; let some be honest and some not.")
        return cls(section.kind, frozenset(drawn), attack, config.seed)

    def described(self, names: Sequence[str]) -> str:
        """A sentence about them, for everyone who may see what the run has made; empty if there are none."""
        if self.attack is None:
            return ""
        some = ", ".join(names[k] for k in sorted(self.clients)[:5])
        more = f" and {len(self.clients) - 5} more" if len(self.clients) > 5 else ""
        return (
            f"attack.kind: {len(self.clients)} of {len(names)} clients ({some}{more}) attack this run on purpose by '{self.kind}'; its model is an "
            "experiment's, and not for use."
        )

    def changed(self, federation: Federation) -> Federation:
        """The federation after attacks on records: of the malicious clients' training records, and of nothing else.

        Raises:
            ConfigError: the attack does not go with these records.
        """
        if not isinstance(self.attack, RecordAttack):
            return federation
        x, y = federation.train.x, federation.train.y.copy()
        for k in sorted(self.clients):
            rows = slice(int(federation.offsets[k]), int(federation.offsets[k + 1]))
            before = Records(x[rows], y[rows])
            after = self.attack.changed(before, federation.classes, generator(self.seed, "attack", -1, k))
            if after.x.shape != before.x.shape or after.y.shape != before.y.shape:
                raise FedrayError(f"attack.kind: '{self.kind}' made records of shape {after.x.shape} of {before.x.shape}.")
            if after.x is not before.x:
                if x is federation.train.x:
                    x = x.copy()
                x[rows] = after.x
            y[rows] = after.y
        return replace(federation, train=replace(federation.train, x=x, y=y))

    def sent(self, round_: int, client: int, update: Vector) -> Vector:
        """What a client sends for its update, float32 ``[size]``.

        Raises:
            FedrayError: the attack gives another shape.
        """
        if client not in self.clients or not isinstance(self.attack, UpdateAttack):
            return update
        found = np.asarray(self.attack.sent(update, generator(self.seed, "attack", round_, client)), dtype=np.float32)
        if found.shape != update.shape:
            raise FedrayError(f"attack.kind: '{self.kind}' sends an array of shape {found.shape} for an update of {update.shape}.")
        return found

    def forges(self, client: int) -> bool:
        """Whether this client sends something else than its update."""
        return client in self.clients and isinstance(self.attack, UpdateAttack)

    def seen(self, got: Each) -> Each:
        """A round's single updates as the driver sees them."""
        mine = np.array([client in self.clients for client in got.clients], dtype=np.bool_)
        if not isinstance(self.attack, Collusion) or not mine.any():
            return got
        return Attacked(got.size, got.segments, got.parts, got.root, updates=got, mine=mine, agreed=self.attack.agreed(got, mine))


def check_attack(config: Config, traits: Traits, wants: Wants) -> None:
    """Refuse an attack that would not run as it says.

    Args:
        config: the run.
        traits: of the algorithm.
        wants: what the aggregation rule is given.

    Raises:
        ConfigError: with what to use instead.
        PrivacyRefusal: a guarantee would be claimed for a run that is attacked on purpose.
    """
    attack, kind = make_attack(config.attack), config.attack.kind
    if attack is None:
        return
    if config.privacy.regimes:
        raise PrivacyRefusal(
            f"attack.kind: '{kind}' makes clients do other things than their guarantee is proven for; attack runs with privacy.regime=none, or "
            "take the attack out.",
            f"privacy.incompatible.{config.privacy.regimes[0]}.attack",
        )
    if config.clients.apart:
        raise ConfigError(
            f"attack.kind: '{kind}' would have to be run by silos on their own records; simulate it with clients.placement=hosted."
        )
    if isinstance(attack, Collusion) and wants == "sum":
        raise ConfigError(
            f"attack.kind: '{kind}' needs single updates, which '{config.aggregation.kind}' does not collect; use a rule of single updates "
            "(trimmed_mean with share=0.0 is their mean)."
        )
    if not isinstance(attack, RecordAttack) and (traits.divides or traits.exact):
        raise ConfigError(
            f"attack.kind: '{kind}' changes whole updates, of which '{config.algorithm.kind}' divides one part by another; use an algorithm such "
            "as fedavg or fedprox."
        )
