"""What a silo allows: the file ``policy.yaml``, which its operator writes and no run's config can change.

Everything that the file does not name is refused. Each key knows its line, so that a refusal can say which one it follows from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from fedray.choices import Choice, Section
from fedray.configfile import parse_yaml
from fedray.errors import ConfigError, shortened

#: What a run may be told of a silo beside its updates; see :mod:`fedray.silos.withheld`.
Fact = Literal["records", "class_counts", "loss", "evaluation", "charged_evaluation", "timings", "errors", "host"]
Unmasked = Literal["never", "noised", "always"]
RegimeName = Literal["none", "record", "client", "local", "distributed"]

_HOURS = re.compile(r"^([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_OWN = re.compile(r"^python:[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


@dataclass(frozen=True)
class Part:
    """An entry of a list of allowed parts: a name, and arguments that must have these very values; those that it does not name are free."""

    kind: str
    arguments: Mapping[str, Any]

    def allows(self, choice: Choice) -> bool:
        """Whether a config's section is one of these."""
        given = choice.arguments
        return choice.kind == self.kind and all(name in given and given[name] == value for name, value in self.arguments.items())

    def __str__(self) -> str:
        if not self.arguments:
            return self.kind
        return "{" + ", ".join(f"{k}: {v}" for k, v in {"kind": self.kind, **self.arguments}.items()) + "}"


#: Lists of names of parts, of which those that begin with ``python:`` need a digest.
PARTS = ("models", "adapters", "algorithms", "losses", "compressions", "bounds", "mechanisms", "secure")


class Policy(Section):
    """A silo's policy. Every default refuses."""

    models: list[str | dict[str, Any]] = Field(
        [], description="Models (model.kind). An entry {kind: mlp, hidden: [64]} fixes arguments, too."
    )
    adapters: list[str | dict[str, Any]] = Field([], description="Adapters on models (model.adapters.kind).")
    weights: list[str] = Field([], description="Values of model.weights: files and addresses from which this silo may read weights.")
    algorithms: list[str | dict[str, Any]] = Field([], description="Algorithms (algorithm.kind).")
    losses: list[str | dict[str, Any]] = Field([], description="Losses (training.loss).")
    metrics: list[str] = Field([], description="Metrics that may be computed on this silo's held-out records (evaluation.metrics).")
    compressions: list[str | dict[str, Any]] = Field([], description="What may make updates smaller (compression.kind) besides none.")
    bounds: list[str | dict[str, Any]] = Field([], description="What may limit updates (bound.kind) besides none.")
    code: dict[str, str] = Field(
        {},
        description="Own code that is installed here: python:package.module:name, with the SHA-256 of the module's file. None comes over the wire.",
    )
    regimes: list[RegimeName] = Field([], description="Values of privacy.regime; none = runs without differential privacy.")
    mechanisms: list[str | dict[str, Any]] = Field([], description="What may noise whole clients (privacy.mechanism.kind).")
    epsilon_run: float | None = Field(None, gt=0.0, description="Largest epsilon that one run may come to.")
    epsilon_total: float | None = Field(None, gt=0.0, description="Largest epsilon of all runs together, by this silo's own ledger.")
    delta: float | None = Field(None, gt=0.0, lt=1.0, description="Largest delta.")
    noise_multiplier: float | None = Field(None, gt=0.0, description="Smallest noise multiplier.")
    void_claims: bool = Field(
        False, description="Whether a run may take part whose claim is void (privacy.unprotected, privacy.insecure_seed)."
    )
    unmasked: Unmasked = Field(
        "never",
        description="Updates without a secure sum, which the driver reads one by one: never, noised (regimes record and local), always.",
    )
    secure: list[str | dict[str, Any]] = Field(
        [], description="Protocols of secure sums (secure.kind), best with the paths of identities and key."
    )
    cohort: int | None = Field(None, ge=2, description="Smallest number of clients in a secure sum.")
    unsigned_keys: bool = Field(
        False, description="Whether a secure sum may do without identities, so that the driver is believed whose keys are whose."
    )
    facts: list[Fact] = Field([], description=f"What may leave beside updates: {', '.join(get_args(Fact))}.")
    held_out: int | None = Field(None, ge=1, description="Fewest held-out records over which metrics may be told without noise.")
    evaluations_a_day: int = Field(0, ge=0, description="Evaluations on held-out records in a day, of all runs.")
    fine_tune: bool = Field(False, description="Whether the model may be trained here for an evaluation (evaluation.fine_tune).")
    hours: Literal["always"] | list[str] | None = Field(None, description="always, or hours such as 20:00-06:00 in which this silo trains.")
    time_zone: str = Field("UTC", description="Time zone of hours and days, such as Europe/Berlin.")
    rounds: int | None = Field(None, ge=1, description="Largest number of rounds of a run.")
    rounds_a_day: int = Field(0, ge=0, description="Trainings in a day, of all runs; a repeated round counts again.")
    approval: bool = Field(True, description="Whether each run waits until `fedray silo approve` has said yes to its terms.")

    _file: str = PrivateAttr("policy.yaml")
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    @field_validator(*PARTS)
    @classmethod
    def _kinds(cls, entries: list[Any]) -> list[Any]:
        for entry in entries:
            if not isinstance(entry, str) and not isinstance(entry.get("kind"), str):
                raise ValueError(f"an entry is a name, or a map with a kind, but one is {shortened(repr(entry))}")
        return entries

    @field_validator("code")
    @classmethod
    def _digests(cls, code: dict[str, str]) -> dict[str, str]:
        for name, digest in code.items():
            if not _OWN.match(name):
                raise ValueError(f"'{shortened(name)}' should read python:package.module:name")
            if not _SHA256.match(digest):
                raise ValueError(f"the digest of '{name}' should be 64 hex digits (fedray silo digest {name} prints it)")
        return code

    @field_validator("hours")
    @classmethod
    def _clock(cls, hours: Any) -> Any:
        for entry in hours if isinstance(hours, list) else ():
            found = _HOURS.match(entry)
            if not found or entry[:5] == entry[6:]:
                raise ValueError(f"'{shortened(entry)}' should read HH:MM-HH:MM with two different times, such as 20:00-06:00")
        return hours

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (LookupError, OSError, ValueError):  # each says that there is none
            raise ValueError(f"'{shortened(name)}' is no time zone of this machine; give one such as UTC or Europe/Berlin") from None
        return name

    @model_validator(mode="after")
    def _listed(self) -> Policy:
        for key in (*PARTS, "metrics"):
            for kind in (part.kind for part in self.parts(key)):
                if kind.startswith("python:") and kind not in self.code:
                    raise ValueError(
                        f"{key}: '{kind}' is own code, so code needs the digest of its file (fedray silo digest {kind} prints it)"
                    )
        if self.epsilon_run is not None and self.epsilon_total is not None and self.epsilon_run > self.epsilon_total:
            raise ValueError(
                f"epsilon_run: {self.epsilon_run:g} is more than epsilon_total, {self.epsilon_total:g}, so it would do nothing"
            )
        return self

    def parts(self, key: str) -> list[Part]:
        """The entries of a list of parts."""
        entries = [{"kind": e} if isinstance(e, str) else e for e in getattr(self, key)]
        return [Part(e["kind"], {name: value for name, value in e.items() if name != "kind"}) for e in entries]

    def line(self, key: str) -> int | None:
        """The line, from 1, on which a key stands; None if it stands nowhere."""
        return self._lines.get(key)

    def where(self, key: str) -> str:
        """The place from which a refusal follows: the file's name, without its directory, the line and the key."""
        line = self.line(key)
        return f"{self._file}, which has no line for {key}" if line is None else f"{self._file}, line {line}"

    def local(self, now: datetime) -> datetime:
        """A time in the policy's time zone."""
        return now.astimezone(ZoneInfo(self.time_zone))

    def open_at(self, now: datetime) -> bool:
        """Whether this silo trains at a time; the end of a range of hours is outside of it."""
        if self.hours is None:
            return False
        return self.hours == "always" or any(_within(entry, self.local(now).time()) for entry in self.hours)


def _within(hours: str, now: time) -> bool:
    start, end = (time.fromisoformat(text) for text in hours.split("-"))
    return start <= now < end if start < end else now >= start or now < end


class PolicyFile:
    """A policy that may change while it is in use; its file is read again where it did.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._version, self._policy = path, (0, 0, 0, 0), Policy()

    def read(self) -> Policy:
        """The policy as it is now; raises as :func:`read_policy`."""
        version = (0, 0, 0, 0)
        with suppress(OSError):  # which reading it says better
            found = self._path.stat()
            version = found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
        if version == (0, 0, 0, 0) or version != self._version:
            self._policy, self._version = read_policy(self._path), version
        return self._policy


def read_policy(path: str | Path) -> Policy:
    """Read a policy file.

    Raises:
        ConfigError: it cannot be read or is wrong: one sentence for each problem, with its line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"{path}: the silo's policy cannot be read ({reason}), so nothing is allowed; `fedray silo policy` prints one."
        ) from None
    return parse_policy(text, str(path))


def parse_policy(text: str, path: str = "policy.yaml") -> Policy:
    """Read a policy's text; raises as :func:`read_policy`."""
    raw = parse_yaml(text, path)
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: should hold keys such as models: [softmax], but holds {type(raw).__name__}; `fedray silo policy` prints one."
        )
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in root.value} if isinstance(root, yaml.MappingNode) else {}
    try:
        policy = Policy.model_validate(raw)
    except ValidationError as error:
        problems = dict.fromkeys(_sentence(path, lines, dict(problem)) for problem in error.errors())
        raise ConfigError("\n".join(problems)) from None
    policy._file, policy._lines = Path(path).name, lines
    return policy


def _sentence(path: str, lines: Mapping[str, int], problem: Mapping[str, Any]) -> str:
    key = str(problem["loc"][0]) if problem["loc"] else ""
    said = str((problem.get("ctx") or {}).get("error", problem["msg"]))
    key = key or next((name for name in lines if said.startswith(f"{name}:")), "")
    place = f"{path}, line {lines[key]}" if key in lines else path
    if problem["type"] == "extra_forbidden":
        return f"{place}: '{key}' is no key of a policy. Allowed: {', '.join(Policy.model_fields)}."
    front = "" if said.startswith(f"{key}:") or not key else f"{key}: "
    shown = "" if problem["type"] == "value_error" else f", but is {shortened(repr(problem.get('input')))}"
    return f"{place}: {front}{said[0].lower()}{said[1:]}{shown}."
