"""Limits of a silo's own: a file ``limits.yaml`` in the folder of its books, which no run's config can raise.

Whoever keeps the ledger writes it, by hand; fedray only reads it, before anything is charged to a book of that folder::

    epsilon: 4.0            # the most that may be spent in all on any record (or client) whose book lies here
    delta: 1.0e-5           # the largest delta at which it may be claimed
    units: [record]         # whom a guarantee may be for: record, client
    regimes: [record]       # privacy.regime: record, client, local, distributed
    void_claims: false      # whether runs may be charged whose claim is void from the start

Every key may be left out, and then allows whatever a config asks for; but runs whose claim is void (``privacy.insecure_seed``,
``privacy.unprotected``) are refused wherever the file is, unless it says otherwise. A book notes the limits that it was held to,
so that it is found out where the file is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from fedray.config import Section
from fedray.configfile import parse_yaml
from fedray.errors import ConfigError, LedgerError, PrivacyRefusal
from fedray.privacy.clientplan import Plan
from fedray.privacy.ledger.location import Location, location
from fedray.rounding import as_given
from fedray.stores.s3 import Bucket

FILE = "limits.yaml"

P = TypeVar("P", bound=Plan)


class Terms(Section):
    """The file's content; see the module's text."""

    epsilon: float | None = Field(None, gt=0.0)
    delta: float | None = Field(None, gt=0.0, lt=1.0)
    units: list[Literal["record", "client"]] | None = Field(None, min_length=1)
    regimes: list[Literal["record", "client", "local", "distributed"]] | None = Field(None, min_length=1)
    void_claims: bool = False


@dataclass(frozen=True)
class Limits:
    """What may be charged to the books of one folder.

    Attributes:
        where: the file.
        terms: its content.
    """

    where: str
    terms: Terms

    def check(self, plans: Iterable[Plan], void: Sequence[str] = (), path: str = "privacy") -> None:
        """Refuse a run that asks for more than is allowed here.

        Args:
            plans: whose charges would come to a book of this folder.
            void: why the run's claim is void from the start.
            path: the config's section that the plans follow, for the sentence.

        Raises:
            PrivacyRefusal: the first thing that is not allowed, with the nearest setting that is.
        """
        terms, books = self.terms, "for whoever's books lie in its folder, and no config can raise it"
        if void and not terms.void_claims:
            raise PrivacyRefusal(
                f"{void[0]}, so the run's claim would be void, and {self.where} lets no such run use the records whose books lie "
                "in its folder; take that setting out.",
                "privacy.limits.void_claim",
            )
        for plan in plans:
            regime = plan.terms()["regime"]
            for what, allowed, asked in (("units", terms.units, plan.unit), ("regimes", terms.regimes, regime)):
                if allowed is not None and asked not in allowed:
                    raise PrivacyRefusal(
                        f"privacy.regime: {regime} protects one {plan.unit}, but {self.where} allows only the {what} {', '.join(allowed)} "
                        f"{books}; choose a regime that it allows.",
                        f"privacy.limits.{what}",
                    )
            if terms.delta is not None and plan.delta > terms.delta:
                raise PrivacyRefusal(
                    f"{path}.delta: {as_given(plan.delta)} is more than the {as_given(terms.delta)} that {self.where} allows {books}; "
                    f"set {path}.delta={as_given(terms.delta)} or less.",
                    "privacy.limits.delta",
                )
            if terms.epsilon is not None and plan.budget is not None and plan.budget > terms.epsilon:
                raise PrivacyRefusal(
                    f"{path}.budget: an epsilon of {as_given(plan.budget)} is more than the {as_given(terms.epsilon)} in all that {self.where} allows "
                    f"{books}; set {path}.budget={as_given(terms.epsilon)} or less.",
                    "privacy.limits.epsilon",
                )

    def hold(self, plan: P) -> P:
        """The plan with this limit as its budget where it has none, for judging what may still be charged; its hash is another."""
        if plan.budget is not None or self.terms.epsilon is None:
            return plan
        return replace(plan, budget=self.terms.epsilon)

    def binds(self, plan: Plan) -> bool:
        """Whether the budget that the plan is held to cannot be raised, because it is this limit."""
        return self.terms.epsilon is not None and self.hold(plan).budget == self.terms.epsilon


def load_limits(directory: str | Location) -> Limits | None:
    """The limits of a folder of books; None where it has none.

    Raises:
        LedgerError: they cannot be read, or are not understood: nothing may be charged then.
    """
    directory = location(directory)
    where = f"{directory / FILE}"
    try:
        found = (directory / FILE).read_bytes() if isinstance(directory, Path) else Bucket(directory).get(f"/{FILE}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LedgerError(
            f"{where}: cannot be read ({error.strerror or error}), so nothing may be charged; let this process read it."
        ) from None
    if found is None:
        return None
    try:
        return Limits(where, Terms.model_validate(parse_yaml(found.decode(), where) or {}))
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    except ConfigError as error:  # not YAML
        problem = str(error).removeprefix(f"{where}: ").rstrip(".")
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg'][0].lower()}{first['msg'][1:]}, but is {first['input']!r}"
    raise LedgerError(f"{where}: {problem}; nothing may be charged to the books beside it until the file is mended.")
