"""The model that a run begins with, where another run or a file gives it: where it is, and what its training has cost in privacy.

The statement of a run is about the run's own training. What the initial model tells of the records that it was trained on is not in the run's
epsilon, unless the same ledger holds the charges of that training; so the statement names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.choices import ModelChoice
from fedray.config import Config
from fedray.configfile import parse_yaml
from fedray.credentials import cleaned
from fedray.errors import ConfigError, FedrayError
from fedray.models.build import reads_weights
from fedray.rounding import rounded_up
from fedray.runfiles import RunFiles
from fedray.storage import read_json
from fedray.tensorfile import DIGEST, read_tensors
from fedray.traces import read_traces
from fedray.tracking.mlflow_store import masked, resolve_uri
from fedray.tracking.versions import find_version, is_reference

#: Directory of the runs whose output is not given, beside which their MLflow store lies.
_RUNS = "runs"
_TOLD = ("unit", "epsilon", "delta", "claim", "ledger_sha256")


@dataclass(frozen=True)
class Initial:
    """Where the initial model comes from.

    Attributes:
        where: as the config says it, without secrets.
        path: of the weights on this machine.
        run: the id under which the privacy books know the run that trained it; empty if that is not known.
        known: what is known of that run: name, unit, epsilon, delta, claim, ledger, ledger_sha256, and its own initial model; None if nothing is.
    """

    where: str
    path: str
    run: str = ""
    known: Mapping[str, str] | None = None

    @property
    def private(self) -> bool:
        """Whether the training of the initial model is known to have a valid claim."""
        return (self.known or {}).get("claim") == "valid"

    @property
    def described(self) -> str:
        """Origin and cost of the initial model, as a clause."""
        known = self.known or {}
        if not known:
            return f"training began with the weights of {self.where}; how they were trained, and on which records, is not known here"
        what = f"training began with {self.where}, trained by the run {known.get('name') or self.run or 'of an unknown name'}"
        before = f"; of that run: {known['initial']}" if known.get("initial") else ""
        if not self.private:
            return f"{what} without a valid claim of privacy ({known.get('claim', 'none')}){before}"
        ledger = ", ".join(filter(None, (known.get("ledger"), known.get("ledger_sha256"))))
        return (
            f"{what} with epsilon {known['epsilon']} at delta {known['delta']} for one {known['unit']} (claim valid"
            f"{f', ledger {ledger}' if ledger else ''}){before}"
        )

    def said(self, lacking: int | None) -> str:
        """:attr:`described`, and what the figures of a run with privacy that begins so do not contain, as a clause.

        Args:
            lacking: number of subjects for which the run's ledger holds no charge of the initial model's run; None where the run keeps no book
                of that unit.
        """
        begins = f"{self.described}; the claim covers this run's training only"
        if not self.private:
            return f"{begins}: if the initial model was trained on the same private records, what it tells of them is not limited by epsilon here"
        if lacking == 0:
            return f"{begins}, but the ledgers of this run hold the charges of that run, so the figures here contain them"
        many = "" if lacking is None else f", which the ledgers of {lacking} subjects do not hold"
        return f"{begins}: the charges of that run{many}, are not in the figures here and add to them where the records are the same"


def find_initial(config: Config) -> Initial | None:
    """Where the initial model of a run comes from; None where the factory draws it.

    Raises:
        ConfigError: there is no such version, or its files cannot be fetched.
        TrackingError: MLflow's registry cannot be used.
    """
    place = config.model.weights
    if place is None:
        return None
    where = cleaned(masked(place))
    if reads_weights(config.model):  # a factory's argument, whose meaning only the factory knows
        return Initial(where, place)
    if is_reference(place):
        version = find_version(place, resolve_uri(config.tracking, _RUNS))
        tags = dict(version.tags)
        known = {name: tags[name] for name in _TOLD if name in tags} | {
            "name": tags.get("run", ""),
            "initial": tags.get("initial_model", ""),
        }
        known["claim"] = known.get("claim", "none")
        return Initial(version.reference, str(version.graph()), tags.get("ledger_run", ""), known)
    if not (Path(place) / "summary.json").is_file():
        return Initial(where, place)
    _check_left_out(config.data.without, Path(place))
    return _of_run(where, Path(place))


def _check_left_out(without: Sequence[str], directory: Path) -> None:
    """Refuse to begin with a model that the data of clients which are left out went into, or may have, by the runs that it came through.

    Raises:
        ConfigError: names the run and the client.
    """
    found, _ = read_traces([directory]) if without else ([], [])
    for trace in found[:1]:
        for name in without:
            took, _ = trace.took(name)
            if took != "no":
                may = "went" if took == "yes" else "may have gone"
                raise ConfigError(
                    f"model.weights: the data of '{name}', which data.without leaves out, {may} into the model of {directory}; begin with a model "
                    "that it has no part in, such as a replay of that run without it."
                )
        before = Path((trace.began or {}).get("where") or ".")
        if trace.began is not None and (before / "summary.json").is_file():
            _check_left_out(without, before)


def _of_run(where: str, directory: Path) -> Initial:
    files = RunFiles(directory)
    try:
        summary = files.read_summary() or {}
        if read_tensors(files.model)[1][DIGEST] != summary.get("model_sha256"):
            raise FedrayError(f"{files.model}: is not the model that summary.json names.")
        run = str((read_json(directory / "run.json") or {}).get("id", ""))
        privacy = parse_yaml(files.config.read_text(encoding="utf-8"), "config.yaml").get("privacy") or {}
    except (FedrayError, OSError, KeyError, AttributeError) as error:
        raise ConfigError(f"model.weights: {directory} is no whole run: {str(error).rstrip('.')}.") from None
    private: Mapping[str, Any] = summary.get("privacy") or {}
    told = {name: str(private[name]) for name in _TOLD if private.get(name) is not None}
    if "epsilon" in told:
        told["epsilon"] = rounded_up(private["epsilon"])
    ledger = cleaned(masked(str(privacy.get("ledger") or ""))) if told else ""
    named = {"name": str(summary.get("name", "")), "initial": str(summary.get("initial") or "")}
    return Initial(where, str(directory), run, {"claim": "none", **told, **named, "ledger": ledger})


def pinned(config: Config, runs: Path) -> Config:
    """The config with the version that an alias means now, so that a restart or a resume does not begin with another one.

    Args:
        config: the run.
        runs: directory of the run's output directory, beside which the MLflow store lies if the config names none.

    Raises:
        ConfigError: there is no such version.
        TrackingError: MLflow's registry cannot be used.
    """
    place = config.model.weights
    if place is None or not is_reference(place) or reads_weights(config.model):
        return config
    uri = resolve_uri(config.tracking, runs)
    model: ModelChoice = config.model.model_copy(update={"weights": find_version(place, uri).reference})
    # A store that only this machine's files or the config name; one with a password is in the environment, and stays there.
    named = {} if config.tracking.uri is not None or uri != masked(uri) else {"tracking": config.tracking.model_copy(update={"uri": uri})}
    return config.model_copy(update={"model": model, **named})


def warned(config: Config, initial: Initial | None) -> list[str]:
    """What is said before a run that begins with a model whose training had no valid claim, or is not known, where that matters."""
    if initial is None:
        return []
    said = [] if initial.private or not config.privacy.regimes else [initial.said(None)]
    if config.data.without and not (Path(initial.path) / "summary.json").is_file():
        left = ", ".join(config.data.without)
        said.append(
            f"training begins with {initial.where}, and whether the data of {left}, which data.without leaves out, went into it is not known here "
            "(fedray lineage says it where its run is at hand)"
        )
    return [f"{text[0].upper()}{text[1:]}." for text in said]
