"""The limits of a silo: a file ``limits.yaml`` in the folder of its ledgers, which no run's config can raise.

The silo's operator writes the file by hand. fedray reads it before anything is charged to a ledger in that folder::

    epsilon: 4.0            # largest total epsilon of any record (or client) whose ledger is in this folder
    delta: 1.0e-5           # largest delta at which epsilon may be claimed
    units: [record]         # allowed protected units: record, person, client
    regimes: [record]       # allowed values of privacy.regime: record, client, local, distributed
    void_claims: false      # whether a run may be charged if its claim is void from the start

A missing key allows every value, with one exception: if the file exists, runs whose claim is void (``privacy.insecure_seed``,
``privacy.unprotected``) are refused unless ``void_claims`` is true. A ledger records the limits that it was held to, so that the loss of
the file is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from fedray.choices import Section
from fedray.configfile import parse_yaml
from fedray.errors import ConfigError, LedgerError, PrivacyRefusal
from fedray.privacy.queryplan import AnyPlan
from fedray.rounding import as_given
from fedray.stores.object_path import Location, location
from fedray.stores.s3 import Bucket

FILE = "limits.yaml"

P = TypeVar("P", bound=AnyPlan)


class LimitsSection(Section):
    """The content of the file; see the module's description."""

    epsilon: float | None = Field(None, gt=0.0)
    delta: float | None = Field(None, gt=0.0, lt=1.0)
    units: list[Literal["record", "person", "client"]] | None = Field(None, min_length=1)
    regimes: list[Literal["record", "client", "local", "distributed"]] | None = Field(None, min_length=1)
    void_claims: bool = False


@dataclass(frozen=True)
class Limits:
    """The limits on charges to the ledgers of one folder.

    Attributes:
        where: address of the limits file.
        terms: content of the file.
    """

    where: str
    terms: LimitsSection

    def check(self, plans: Iterable[AnyPlan], void: Sequence[str] = (), path: str = "privacy") -> None:
        """Refuse a run that asks for more than the limits allow.

        Args:
            plans: plans whose charges would be written to a ledger of this folder.
            void: reasons for which the run's claim is void from the start.
            path: section of the config from which the plans were made, for the sentence.

        Raises:
            PrivacyRefusal: a setting is not allowed; the sentence names the nearest allowed one.
        """
        terms, books = self.terms, "for all ledgers in its folder, and no config can raise it"
        if void and not terms.void_claims:
            raise PrivacyRefusal(
                f"{void[0]}, so the run's claim would be void, and {self.where} refuses such runs for the records whose ledgers are "
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
                    f"{path}.budget: an epsilon of {as_given(plan.budget)} is more than the total of {as_given(terms.epsilon)} that {self.where} allows "
                    f"{books}; set {path}.budget={as_given(terms.epsilon)} or less.",
                    "privacy.limits.epsilon",
                )

    def hold(self, plan: P) -> P:
        """The plan, with the limit as its budget if it has none. The changed plan decides refusals only, because its hash is another."""
        if plan.budget is not None or self.terms.epsilon is None:
            return plan
        return replace(plan, budget=self.terms.epsilon)

    def binds(self, plan: AnyPlan) -> bool:
        """Whether this limit sets the plan's budget, so that no config can raise it."""
        return self.terms.epsilon is not None and self.hold(plan).budget == self.terms.epsilon


def load_limits(directory: str | Location) -> Limits | None:
    """The limits of a folder of ledgers; None if it has no limits file.

    Raises:
        LedgerError: the file cannot be read or is invalid, so nothing may be charged.
        StoreError: its object store cannot be reached, so nothing may be charged.
    """
    directory = location(directory)
    where = f"{directory / FILE}"
    try:
        found = (directory / FILE).read_bytes() if isinstance(directory, Path) else Bucket(directory).get(FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LedgerError(
            f"{where}: cannot be read ({error.strerror or error}), so nothing may be charged; let this process read it."
        ) from None
    if found is None:
        return None
    try:
        return Limits(where, LimitsSection.model_validate(parse_yaml(found.decode(), where) or {}))
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    except ConfigError as error:  # not YAML
        problem = str(error).removeprefix(f"{where}: ").rstrip(".")
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg'][0].lower()}{first['msg'][1:]}, but is {first['input']!r}"
    raise LedgerError(f"{where}: {problem}; nothing may be charged to the ledgers in its folder until the file is corrected.")
