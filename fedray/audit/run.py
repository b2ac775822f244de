"""``fedray audit``: runs the checks and attacks that a config or a finished run allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from fedray.audit.canaries import canary_attacks
from fedray.audit.checks import record_checks
from fedray.audit.findings import Attack, Check
from fedray.audit.inversion import inversion_attack
from fedray.audit.lira import lira_attack
from fedray.audit.local_run import subjects
from fedray.audit.membership import Target, membership_attack, sides
from fedray.audit.releases import bit_check, client_attacks, client_release, cohort_checks, driver_release, release_checks
from fedray.audit.report import Report
from fedray.audit.statistics import guarded
from fedray.config import Config
from fedray.configfile import load_config
from fedray.data.records import Federation
from fedray.errors import ConfigError
from fedray.experiment.finished import trained_model
from fedray.planning.preparation import Prepared, prepare
from fedray.privacy.accounting import accountant
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.ledger.inspect import verify_all
from fedray.privacy.mechanisms.local_noise import LocalGaussian
from fedray.runfiles import RunFiles
from fedray.training.losses import find_loss
from fedray.whole import check, read_config

Kind = Literal["all", "checks", "canaries", "membership", "lira", "inversion"]
KINDS: tuple[str, ...] = get_args(Kind)
CANARIES = 1000
#: Attacks that go by single records' losses.
_BY_LOSS = frozenset(("canaries", "membership", "lira"))
#: Largest number of canary clients.
MOST_CLIENTS = 1000


@dataclass(frozen=True)
class AuditRequest:
    """The arguments of an audit.

    Attributes:
        target: a config file, or a run's output directory.
        overrides: overrides of the config, ``key.path=value``.
        attack: one kind, or ``all`` for every kind that the target allows.
        canaries: number of canary records, and largest number of canary clients.
        seed: seed of all draws of the audit except noise.
        output: directory for files; None for ``audit`` in the run's directory, or ``runs/NAME-audit`` for a config.
    """

    target: Path
    overrides: Sequence[str] = ()
    attack: str = "all"
    canaries: int = CANARIES
    seed: int = 0
    output: Path | None = None


def audit(request: AuditRequest) -> Report:
    """Run the requested checks and attacks in this process, without ledgers and without a cluster.

    Raises:
        ConfigError: the target is neither a config nor a run, or it does not allow the attack.
        FedrayError: a client failed.
    """
    if request.attack not in KINDS:
        raise ConfigError(f"--attack {request.attack}: choose from {', '.join(KINDS)}.")
    finished = request.target.is_dir()
    files = RunFiles(request.target)
    if finished and not files.config.exists():
        raise ConfigError(f"{request.target}: is no run's output directory; give one, or a config.")
    if finished:
        check(files)
    config = read_config(files, request.overrides) if finished else load_config(request.target, request.overrides)
    if request.attack in ("membership", "lira") and not (finished and files.model.exists()):
        raise ConfigError(f"--attack {request.attack}: needs a finished run; give its output directory instead of a config.")
    prepared, notes = prepare(config), list[str]()
    if prepared.federation is None:  # in a run only each silo's actor reads its file
        notes.append("This audit read the files of all silos; run an audit only where that is allowed.")
        prepared = prepare(_hosted(config))
    federation = prepared.federation
    assert federation is not None and prepared.model is not None
    if any(one.tokens for one in federation.inputs):
        raise ConfigError(
            f"{request.target}: has records with several inputs of which some are tokens, which no audit can make up; audit without them."
        )
    wanted = {request.attack} if request.attack != "all" else set(KINDS)
    apart, couples = prepared.model.apart, find_loss(config.training.loss).couples
    if (apart or couples) and wanted & _BY_LOSS:
        why = (
            f"the model does not predict by itself, because {apart}"
            if apart
            else f"training.loss={config.training.loss} is of whole batches"
        )
        if request.attack != "all":
            raise ConfigError(f"--attack {request.attack}: goes by each record's loss, but {why}.")
        notes.append(f"No attacks by a record's loss: {why}.")
        wanted -= _BY_LOSS
    checks: list[Check] = []
    attacks: list[Attack] = []
    if "checks" in wanted:
        checks = _checks(prepared, federation) + (_figures(files) if finished else [])
        plan = prepared.client_plan
        if plan is not None and not _checkable(plan):
            notes.append(f"Not checked: the mechanism '{plan.kind}' of whole clients.")
        if not checks:
            notes.append("No checks: nothing in this config claims privacy that can be checked here.")
    if "canaries" in wanted:
        attacks += _canaries(prepared, federation, request)
    if finished and files.model.exists() and wanted & {"membership", "lira"}:
        attacks += _on_the_model(prepared, federation, files, request, wanted)
    if "inversion" in wanted:
        if any(plan is not None for plan in prepared.plans) and not prepared.model.facts.tokens:
            attacks.append(
                inversion_attack(subjects(prepared)[0], prepared.test, federation.classes, request.seed, federation.target_shape)
            )
        elif request.attack == "inversion":
            raise ConfigError(
                "--attack inversion: compares settings of record-level privacy on real-valued features, which this config does not have."
            )
    default = request.target / "audit" if finished else Path("runs") / f"{config.name}-audit"
    return Report(config, request.target, request.output or default, checks, attacks, request.seed, notes)


def _hosted(config: Config) -> Config:
    """The config with all clients hosted in one process."""
    groups = [group.model_copy(update={"ledger": None}) for group in config.clients.groups]
    return config.model_copy(update={"clients": config.clients.model_copy(update={"placement": "hosted", "groups": groups})})


def _checks(prepared: Prepared, federation: Federation) -> list[Check]:
    found: list[Check] = []
    groups = subjects(prepared)
    for subject in groups:
        front = f"{subject.group.name}: " if len(groups) > 1 else ""
        found += [replace(c, name=front + c.name) for c in record_checks(subject, federation.classes, federation.target_shape)]
    plan, seed = prepared.client_plan, prepared.config.privacy.insecure_seed
    if plan is not None and _checkable(plan):
        release = driver_release(plan, seed, fresh=True) if plan.regime == "client" else client_release(plan, seed)
        own = release_checks(release)
        facts = plan.facts
        if facts.sampling == "poisson" and facts.cap is None and all(g.rate == g.every == 1 for g in prepared.groups):
            own += cohort_checks(plan, prepared.sampler, seed)
        if plan.adaptive is not None:
            own.append(bit_check(plan, seed))
        found += [replace(c, name=f"whole clients: {c.name}") for c in own]
    return found


def _checkable(plan: ClientPlan) -> bool:
    return plan.regime == "client" or isinstance(plan.mechanism, LocalGaussian)


def _figures(files: RunFiles) -> list[Check]:
    """Check a finished run's figures against the entries of its own ledger."""
    if not any(files.ledger.glob("*.jsonl")):
        return []
    name = "the run's figures follow from its ledger"
    return [guarded(name, lambda: Check(name, True, "; ".join(verify_all(files.root))))]


def _canaries(prepared: Prepared, federation: Federation, request: AuditRequest) -> list[Attack]:
    found: list[Attack] = []
    config, plan = prepared.config, prepared.client_plan
    if config.privacy.record or not config.privacy.regimes:
        found += canary_attacks(prepared, federation, request.canaries, request.seed)
    if plan is not None and plan.regime == "client":
        release = driver_release(plan, config.privacy.insecure_seed, fresh=False)
        found += client_attacks(release, config.rounds, min(request.canaries, MOST_CLIENTS), plan.planned_epsilon, plan.delta, request.seed)
    return found


def _on_the_model(prepared: Prepared, federation: Federation, files: RunFiles, request: AuditRequest, wanted: set[str]) -> list[Attack]:
    config, model = prepared.config, prepared.model
    assert model is not None
    trained, _ = trained_model(files, config)
    members, others = sides(federation, request.seed)
    epsilon, delta = _claimed(prepared, files)
    target = Target(trained, find_loss(config.training.loss), members, others, epsilon, delta)
    found = [membership_attack(target)] if "membership" in wanted else []
    if "lira" in wanted:
        found.append(lira_attack(target, model.facts.build, config.training, config.rounds, request.seed))
    return found


def _claimed(prepared: Prepared, files: RunFiles) -> tuple[float | None, float]:
    """Epsilon and delta of one record in the finished run; None and 0 if records are not protected."""
    plans = [plan for plan in prepared.plans if plan is not None]
    if not plans:
        return None, 0.0
    rounds = int((files.read_summary() or {}).get("rounds", prepared.config.rounds))
    figures = [accountant.bound({plan.event(): min(rounds, plan.max_participations or rounds)}, plan.delta) for plan in plans]
    return max(figures), max(plan.delta for plan in plans)
