"""The configuration of a run: one typed section per concern, each field documented here.

This module is the schema; :mod:`fedray.configfile` reads files, applies overrides and words the
errors. Sections that name a part (``model``, ``algorithm``, ...) hold ``kind`` plus that part's own
arguments, which are checked against the part itself.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from fedray.choices import (
    AdaptiveClip,
    Agreed,
    AttackChoice,
    Augment,
    Choice,
    GatewayChoice,
    Joint,
    LossChoice,
    ModelChoice,
    PacingChoice,
    PersonChoice,
    Resources,
    RootChoice,
    Section,
    ServerChoice,
    Signing,
    Stragglers,
    Unfreeze,
)
from fedray.evaluationconfig import Evaluation
from fedray.sweepconfig import SweepSection


class Holdout(Section):
    """Records kept out of training for evaluation, where the source has no test set of its own."""

    fraction: float = Field(0.2, ge=0.0, lt=1.0, description="Fraction of the records that is held out; 0 = none.")
    stratify: bool | None = Field(None, description="Keep the label proportions in both parts; null = only at the driver.")
    at: Literal["driver", "clients"] = Field(
        "driver",
        description="driver: split before the partition, evaluated by the driver. clients: each client keeps its own held-out records.",
    )


class Data(Section):
    """Where the records come from and which client holds which. Other keys are the source's arguments (classes, label, features, ...)."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, protected_namespaces=())

    source: str = Field(
        description="KIND:WHERE, e.g. sklearn:digits, npz:mnist.npz, parquet:DIR, csv:DIR, text:PATH, hf:NAME, torchvision:MNIST, python:module:function."
    )
    partition: Choice = Field(
        Choice(kind="natural"), description="How records are dealt to clients: iid, dirichlet, shards, quantity, natural."
    )
    holdout: Holdout = Field(Holdout(), description="Held-out records; not used where the source brings its own test set.")
    without: list[str] = Field(
        [], description="Names of clients that are left out, as if they had never been there (see docs/withdrawal.md); [] = none."
    )
    normalize: Choice = Field(Choice(kind="none"), description="Transform of every record before training; see `fedray list normalizers`.")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments for the source."""
        return dict(self.model_extra or {})


class Group(Section):
    """Clients that differ from the others in resources, settings or sampling rate."""

    name: str = Field(description="Name of the group, shown in reports.")
    clients: int | list[str] = Field(description="How many clients (taken in order) or their names.")
    resources: Resources | None = Field(None, description="Instead of clients.resources.")
    rate: float = Field(1.0, ge=0.0, le=1.0, description="Factor on the cohort fraction for these clients (Poisson cohorts).")
    every: int = Field(1, ge=1, description="They can take part in the first of every so many rounds only.")
    training: dict[str, Any] = Field({}, description="Overrides of the training section, e.g. {lr: 0.05}.")
    ledger: str | None = Field(None, description="Directory of these clients' ledgers, instead of privacy.ledger.")


class Clients(Section):
    """Where clients run."""

    placement: Literal["hosted", "dedicated", "remote"] = Field(
        "hosted",
        description="hosted: a pool of actors trains all clients, data in shared memory. dedicated: one actor per client, the only one to load its "
        "data. remote: silos outside the cluster, which dial the gateway (see docs/federation.md).",
    )
    gateway: GatewayChoice | None = Field(None, description="remote: where silos dial; null for other placements.")
    actors: int | Literal["auto"] = Field(
        "auto", description="hosted: number of actors; auto = what free CPUs or GPUs allow, at most the cohort."
    )
    resources: Resources = Field(Resources(), description="What each client actor asks of Ray.")
    groups: list[Group] = Field([], description="Groups of clients with settings of their own.")
    start_timeout: float = Field(120.0, gt=0.0, description="Seconds to wait for client actors to be placed and started.")
    restarts: int = Field(10, ge=0, description="How often one actor is replaced after it died before the run gives up on it.")
    unreachable_after: float = Field(
        30.0, gt=0.0, description="Seconds for which a working actor may leave its driver's calls unanswered before it is replaced."
    )
    node_sums: bool = Field(
        True,
        description="Add up the partial sums of a node's actors on the node, so that the driver gets one partial sum per node. "
        "Updates that clients sign always travel one by one.",
    )
    signing: Signing | None = Field(None, description="Clients and driver sign what they did, for `fedray verify`; dedicated clients only.")

    @model_validator(mode="after")
    def _positive(self) -> Clients:
        if isinstance(self.actors, int) and self.actors < 1:
            raise ValueError(f"actors: {self.actors} is below 1")
        if (self.placement == "remote") != (self.gateway is not None):
            raise ValueError("gateway: goes with placement remote, and remote needs it: {listen: HOST:PORT, identity: DIR}")
        return self

    @property
    def apart(self) -> bool:
        """Whether each client has a process of its own, which alone reads its records."""
        return self.placement != "hosted"


class Cohort(Section):
    """Which clients take part in a round, and how failures of clients are handled."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, protected_namespaces=())

    kind: str = Field(
        "all",
        description="poisson (fraction), fixed (size or fraction), cyclic, importance (size), power_of_choice (size, candidates), all; see `fedray list cohorts`.",
    )
    min_clients: int = Field(1, ge=0, description="Updates that a round needs; with fewer the round fails.")
    deadline: float | None = Field(
        None, gt=0.0, description="Seconds, virtual ones if arrival is simulated, after which clients still training are late; null = wait."
    )
    grace: float = Field(5.0, ge=0.0, description="Seconds that a late actor gets to hand over what it has finished.")
    retries: int = Field(2, ge=0, description="How often a client is tried again within a round after its actor died.")
    availability: str | None = Field(
        None, description="A .csv or .json file with the rounds in which each client can take part; null = in all."
    )
    stragglers: Stragglers | None = Field(None, description="Simulated clients that do only some of their passes; null = none.")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments for the sampler (fraction, size)."""
        return dict(self.model_extra or {})


#: What a model computes in while it trains.
Precision = Literal["fp32", "bf16", "fp16", "bf16_convolutions"]


class Training(Section):
    """Local training: what a client does with its records in a round."""

    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Local optimiser, made new each round.")
    lr: float = Field(0.1, gt=0.0, description="Learning rate before the schedule.")
    momentum: float = Field(0.0, ge=0.0, lt=1.0, description="SGD momentum.")
    nesterov: bool = Field(False, description="Nesterov momentum (needs momentum).")
    weight_decay: float = Field(0.0, ge=0.0, description="L2 coefficient, applied by the optimiser after noise under DP.")
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2, description="Adam's coefficients.")
    batch_size: int | None = Field(
        None, ge=1, description="Batch size: records per optimiser step, drawn by shuffling; at least 1. Not under record-level DP."
    )
    batch_bound: Literal["smallest"] | None = Field(
        None, description="smallest: no batch is larger than the smallest client's number of records, of all clients; null = no bound."
    )
    epochs: int | None = Field(None, ge=1, description="Passes over the client's records; with batch_size.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps per round; with batch_size or sampling_rate.")
    sampling_rate: float | None = Field(
        None, gt=0.0, le=1.0, description="Each record joins a step with this probability (Poisson); with steps."
    )
    expected_batch: float | None = Field(None, gt=0.0, description="Public constant that a Poisson step's summed gradient is divided by.")
    physical_batch: int = Field(256, ge=1, description="Records in memory at once; larger logical batches are accumulated.")
    loss: LossChoice = Field(
        LossChoice(kind="cross_entropy"),
        description="A loss's name, or {kind: NAME, ...} with its arguments: see `fedray list losses`, or python:module:function(outputs, targets) "
        "-> a loss for each record (of a whole batch: couples).",
    )
    max_grad_norm: float | None = Field(
        None,
        gt=0.0,
        description="Largest L2 norm of a step's gradient, the mean over its batch; a longer one is scaled down to it, before the algorithm's "
        "own corrections. null = none is. Not under record-level DP, which clips by privacy.clip.",
    )
    schedule: Choice = Field(Choice(kind="constant"), description="Learning rate over rounds; see `fedray list schedules`.")
    precision: Precision = Field(
        "fp32",
        description="What the model computes in while it trains: fp32; bf16 or fp16 (GPUs only) with weights, losses and steps in fp32; or bf16 in its "
        "convolutions alone, the faster choice on CPUs. Sixteen bits: engine plain; not under record-level DP.",
    )
    unfreeze: list[Unfreeze] | None = Field(
        None,
        min_length=1,
        description="Stages [{round, layers}]: layers train from that round on, the others are frozen; null = all train.",
    )
    augment: Augment | None = Field(None, description="Random changes to images in each step; null = none. Not with engine lockstep.")
    engine: str = Field("auto", description="Local engine: auto, plain, lockstep, book, hooks, ghost; see `fedray list engines`.")

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs momentum above 0")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum: is SGD's; {self.optimizer} takes betas")
        if self.sampling_rate is not None:
            if self.batch_size is not None or self.epochs is not None:
                raise ValueError("sampling_rate: replaces batch_size and epochs; give steps and expected_batch beside it")
            if self.steps is None or self.expected_batch is None:
                raise ValueError("sampling_rate: needs steps and expected_batch")
        elif self.trains:
            if self.batch_size is None:
                raise ValueError("batch_size: give batch_size with epochs or steps, or sampling_rate with steps and expected_batch")
            if (self.epochs is None) == (self.steps is None):
                raise ValueError("epochs: give exactly one of epochs and steps")
            if self.expected_batch is not None:
                raise ValueError("expected_batch: goes with sampling_rate")
        return self

    @property
    def trains(self) -> bool:
        """Whether it says how much a client trains; only algorithms whose clients do not train need not be told."""
        return any(v is not None for v in (self.batch_size, self.epochs, self.steps, self.sampling_rate, self.expected_batch))


Regime = Literal["none", "record", "client", "local", "distributed"]


class Privacy(Section):
    """The differential-privacy regime, its parameters and its books."""

    regime: Regime | list[Regime] = Field(
        "none",
        description="none; record: DP-SGD at each client, the unit is one record of one client; client: noise at the driver, the unit is a "
        "whole client; local: noise at each client, for an untrusted driver; distributed: integer noise at the clients, which adds up in the sum. "
        "[record, client] (or local, distributed) for both units, the second by privacy.joint.",
    )
    mechanism: Choice | None = Field(
        None,
        description="What noises whole clients, see `fedray list mechanisms`; null = gaussian (client), local_gaussian (local), ddg (distributed).",
    )
    target_epsilon: float | None = Field(
        None, gt=0.0, description="Epsilon after the planned participations; the noise multiplier is found from it."
    )
    noise_multiplier: float | None = Field(
        None, gt=0.0, description="Noise standard deviation on the sum over the clip norm; instead of target_epsilon."
    )
    max_participations: int | None = Field(
        None,
        ge=1,
        description="Largest number of rounds in which one client takes part; null = all rounds. A smaller number needs less noise.",
    )
    budget: float | None = Field(None, gt=0.0, description="Epsilon at which a client is refused; null = target_epsilon.")
    delta: float | None = Field(
        None, gt=0.0, lt=1.0, description="At most 1 / (10 x records) of every client; for whole clients 1 / (10 x clients)."
    )
    clip: float = Field(1.0, gt=0.0, description="Clip norm of one record's gradient, or of a client's whole update.")
    clipping: Literal["flat", "per_layer"] = Field(
        "flat", description="Record level: clip a record's whole gradient, or each parameter tensor's to clip / sqrt(their number)."
    )
    adaptive_clip: AdaptiveClip | None = Field(None, description="Let the clip norm of updates follow a quantile of their norms.")
    weight_cap: int | None = Field(
        None, ge=1, description="Whole clients: a client counts min(records / weight_cap, 1) instead of 1; a public constant."
    )
    denominator: float | None = Field(
        None, gt=0.0, description="Whole clients: the public constant that the noised sum is divided by; null = the expected cohort."
    )
    fewer_steps: bool = Field(
        False, description="A client whose budget does not allow a whole round takes the most local steps that it allows, then leaves."
    )
    joint: Joint | None = Field(None, description="With two regimes: the constants of the second.")
    ledger: str = Field(
        "run",
        description="run: in this run's output (public data). Else a directory or s3:// URI that outlives runs and is shared by all runs on the same records.",
    )
    person: PersonChoice | None = Field(None, description="Record level: the unit is a person, not a record (see docs/persons.md).")
    max_silos_per_person: int = Field(
        1, ge=1, description="In how many clients one person may have records; the figure for a person adds the largest that many."
    )
    unprotected: list[Literal["evaluation", "class_counts", "train_metrics", "partition", "classes"]] = Field(
        [], description="Releases from private data that you accept without protection; each voids the claim and is written down."
    )
    insecure_seed: int | None = Field(None, description="TESTS ONLY: noise and sampling from a seed. Voids the claim.")

    @model_validator(mode="before")
    @classmethod
    def _one_regime(cls, values: Any) -> Any:
        names, value = get_args(Regime), values.get("regime") if isinstance(values, dict) else None
        if isinstance(value, str) and value not in names:
            raise ValueError(f"regime: input should be {', '.join(map(repr, names))} or a list of two of them, but is {value!r}")
        return values

    @model_validator(mode="after")
    def _regimes(self) -> Privacy:
        if isinstance(self.regime, list) and not (
            len(self.regime) == 2 and self.regime[0] == "record" and self.regime[1] in ("client", "local", "distributed")
        ):
            raise ValueError("regime: a list is [record, client], [record, local] or [record, distributed]")
        if isinstance(self.regime, list) != (self.joint is not None):
            raise ValueError("joint: goes with two regimes, and two regimes need it")
        return self

    @property
    def regimes(self) -> tuple[str, ...]:
        """The regimes that are on; empty for none."""
        named = [self.regime] if isinstance(self.regime, str) else self.regime
        return tuple(name for name in named if name != "none")

    @property
    def record(self) -> bool:
        """Whether records are protected in local training."""
        return "record" in self.regimes

    @property
    def whole_clients(self) -> str | None:
        """The regime whose unit is a whole client: client, local, distributed, or None."""
        return next((name for name in self.regimes if name != "record"), None)


class Checkpoint(Section):
    """What is kept for resuming."""

    every: int = Field(1, ge=0, description="Write a checkpoint in every so many rounds; 0 = only at the end.")
    keep: int = Field(2, ge=1, description="Number of checkpoints that are kept.")


class Tracking(Section):
    """MLflow."""

    uri: str | None = Field(None, description="Tracking URI; null = MLFLOW_TRACKING_URI, else a local SQLite file beside the runs.")
    register_as: str | None = Field(None, description="Name of the registered model; null = the run's name.")
    enabled: bool = Field(True, description="false: no MLflow; the run's own files are still written.")
    system_metrics: bool = Field(False, description="Also log load, memory and traffic of the driver's node; a side channel.")
    open_timeout: float = Field(60.0, ge=0.0, description="Seconds to wait at the start for a tracking server that does not answer yet.")
    close_timeout: float = Field(60.0, gt=0.0, description="Seconds to wait at the end for a tracking server that does not answer.")


class RayCluster(Section):
    """Which Ray cluster."""

    address: str = Field(
        "auto",
        description="auto = the cluster of this machine (RAY_ADDRESS, `ray start`), else a local Ray; local = always a local Ray; else an address.",
    )
    cpus: int | None = Field(None, ge=1, description="CPUs of a local Ray; null = the machine's cores.")
    gpus: int | None = Field(None, ge=0, description="GPUs of a local Ray; null = those found.")
    connect_timeout: float = Field(30.0, gt=0.0, description="Seconds to wait for a given address.")
    driver: Resources = Field(
        Resources(cpu=0.0),
        description="What the driver actor asks of Ray; without custom resources and labels it goes to a node that is not the head.",
    )
    lost_after: float = Field(
        600.0,
        gt=0.0,
        description="Seconds for which the driver actor may not answer (its node or the head is lost) before the command gives up.",
    )


class Config(Section):
    """One run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run and its output directory.")
    experiment: str | None = Field(None, min_length=1, description="MLflow experiment; null = the run's name.")
    seed: int = Field(0, ge=0, description="Seed of all random draws that are not for privacy.")
    rounds: int = Field(ge=1, description="Planned rounds.")
    data: Data
    agreed: Agreed | None = Field(None, description="The data that the clients have registered; null: they are not compared with anything.")
    model: ModelChoice
    clients: Clients = Clients()
    cohort: Cohort = Cohort()
    pacing: PacingChoice = PacingChoice()
    training: Training
    algorithm: Choice = Choice(kind="fedavg")
    server: ServerChoice = ServerChoice(kind="sgd")
    aggregation: Choice = Choice(kind="mean")
    compression: Choice = Field(
        Choice(kind="none"), description="What makes an update smaller on its way: none, or see `fedray list compressions`."
    )
    download: Choice = Field(
        Choice(kind="none"), description="What makes the model smaller on its way to the clients: none, or see `fedray list downloads`."
    )
    bound: Choice = Field(
        Choice(kind="none"), description="What limits how far one update moves the model: none, or see `fedray list bounds`."
    )
    secure: Choice = Field(
        Choice(kind="none"), description="How the driver is kept from reading single updates: none, or see `fedray list protocols`."
    )
    root: RootChoice = RootChoice()
    attack: AttackChoice = AttackChoice()
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    ray: RayCluster = RayCluster()
    sweep: SweepSection | None = Field(None, description="Settings that `fedray sweep` tries; null = none.")
