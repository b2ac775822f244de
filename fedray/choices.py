"""What sections of a config are made of, and how a section names a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator


class Section(BaseModel):
    """Unknown keys are refused, values are not coerced across types, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Choice(Section):
    """A named part with its own arguments beside ``kind``."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, protected_namespaces=())

    kind: str = Field(description="A built-in (see `fedray list`) or python:package.module:name.")

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything beside ``kind``."""
        return dict(self.model_extra or {})


class LossChoice(Choice):
    """The loss: its name alone, or ``{kind: NAME, ...}`` with the loss's arguments. Without arguments it is written as its name."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"kind": given} if isinstance(given, str) else given

    @model_serializer(mode="wrap")
    def _written(self, usual: Callable[[LossChoice], dict[str, Any]]) -> str | dict[str, Any]:
        return usual(self) if self.arguments else self.kind

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core)]}

    def __str__(self) -> str:
        return self.kind


class ModelChoice(Choice):
    """The model: its factory, and what is done to what the factory makes. Other keys are the factory's arguments."""

    weights: str | None = Field(
        None,
        description="The weights to begin with: a run's output directory, a safetensors file, models:/NAME@ALIAS or models:/NAME/VERSION in "
        "MLflow's registry, or a folder in the Hugging Face layout; with the model's own names. null: as the factory draws them.",
    )
    adapters: Choice | None = Field(
        None, description="What is trained in place of the model's own parameters, which are then frozen (see `fedray list adapters`)."
    )


class ServerChoice(Choice):
    """The optimiser of the global model. Other keys are its arguments."""

    schedule: Choice = Field(Choice(kind="constant"), description="Factor on the server's lr over rounds; see `fedray list schedules`.")


class AdaptiveClip(Section):
    """A clip norm that follows a quantile of the clients' update norms, found privately (Andrew et al. 2021)."""

    quantile: float = Field(0.5, gt=0.0, lt=1.0, description="Fraction of the clients' updates that should not be clipped.")
    rate: float = Field(0.2, gt=0.0, description="Step size of the clip norm's logarithm in a round.")
    bit_noise: float | None = Field(
        None,
        gt=0.0,
        description="Standard deviation of the noise on the sum of the clients' bits, in which a bit's sensitivity is 1/2; null = expected cohort / 20.",
    )


class Joint(Section):
    """The second line of joint use: the client-level guarantee beside the record-level one."""

    target_epsilon: float | None = Field(None, gt=0.0, description="As privacy.target_epsilon.")
    noise_multiplier: float | None = Field(None, gt=0.0, description="As privacy.noise_multiplier.")
    max_participations: int | None = Field(None, ge=1, description="As privacy.max_participations.")
    budget: float | None = Field(None, gt=0.0, description="As privacy.budget.")
    delta: float | None = Field(None, gt=0.0, lt=1.0, description="At most 1 / (10 x clients).")
    clip: float = Field(1.0, gt=0.0, description="Clip norm of a client's whole update.")
    ledger: str = Field("run", description="As privacy.ledger, for the driver's book of clients.")


class Augment(Section):
    """Changes to images, drawn anew for each record in each step of local training. Evaluation sees the records as they are."""

    flip: bool = Field(False, description="Mirror an image left to right, with probability 1/2.")
    crop: int = Field(
        0, ge=0, description="Move an image by up to so many pixels, up or down and left or right; what is moved in is 0 (pad and crop)."
    )
    brightness: float = Field(
        0.0,
        ge=0.0,
        description="Add a number from [-brightness, brightness] to all values of an image, which are those after data.normalize.",
    )

    @model_validator(mode="after")
    def _something(self) -> Augment:
        if not (self.flip or self.crop or self.brightness):
            raise ValueError("flip: nothing is changed; set flip, crop or brightness, or leave augment out")
        return self


class Unfreeze(Section):
    """A stage of training: layers that train from a round on, beside those of the stages before."""

    round: int = Field(ge=1, description="The first round in which they train, from 1.")
    layers: list[str] = Field(
        min_length=1, description="Names of parameters, or beginnings of names up to a dot, as in the model's state_dict, e.g. [out]."
    )


class GatewayChoice(Section):
    """The gateway that silos outside the cluster dial (placement remote)."""

    listen: str = Field(description="HOST:PORT that the gateway listens on, on the driver's node; 0.0.0.0:PORT for all its addresses.")
    identity: str = Field(description="The federation's directory on the driver's node, made by `fedray federation init`.")


class Agreed(Section):
    """The data that the parties have agreed on (see docs/agreed_data.md)."""

    registration: str = Field(
        description="File of `fedray register`, or s3:// address: what each client's records must be, before each round."
    )
    salts: str | None = Field(
        None,
        description="Directory with the secret salts of the registration, at each place that holds records; null = beside the clients' privacy.ledger.",
    )


class Signing(Section):
    """Signed receipts of what each client sent (see docs/receipts.md)."""

    driver: str = Field(description="The driver's private key, a file on its machine that `fedray identity` makes.")
    key: str | None = Field(
        None,
        description="dedicated: each client's private key, a file on its own machine that `fedray identity` makes; {client} stands for its name. "
        "remote: null, for a silo signs by the key of its identity.",
    )
    chain: str | None = Field(
        None,
        description="dedicated: each client's file of all its receipts, on its own machine, which outlives runs; null = beside its key, as "
        "NAME.receipts.",
    )

    @property
    def files(self) -> tuple[str, str]:
        """Each dedicated client's key, and where its receipts are."""
        key = self.key or ""
        return key, self.chain if self.chain is not None else f"{key.removesuffix('.pem')}.receipts"


class PersonChoice(Section):
    """The unit of record-level privacy is a person instead of a record. ``data.person`` says whose each record is."""

    kind: Literal["bounded", "clipped"] = Field(
        description="bounded: at most records of a person's records take part in a turn, and the price is that of so many. clipped: persons "
        "are sampled with all their records, and the mean of a person's gradients is clipped as one (engine hooks)."
    )
    records: int | None = Field(
        None, ge=1, description="bounded: of a person with more records so many take part in a turn, drawn anew for each, secretly."
    )

    @model_validator(mode="after")
    def _counted(self) -> PersonChoice:
        if (self.records is not None) != (self.kind == "bounded"):
            raise ValueError("records: goes with kind bounded, and bounded needs it; of a clipped person all records take part")
        return self


class PacingChoice(Choice):
    """The schedule of rounds, and the time in which updates arrive. Other keys are the schedule's arguments."""

    kind: str = Field(
        "synchronous",
        description="synchronous (a step of the model waits for the cohort), semi_synchronous (over: more clients are asked than count), fedbuff "
        "(buffer, concurrency: a step for every so many updates, from whatever version of the model), or python:package.module:name.",
    )
    arrival: Literal["real", "simulated"] = Field(
        "real",
        description="real: updates count as they come. simulated: as they would come from clients of different speeds, in a virtual time that "
        "follows from the seed and not from the machine.",
    )
    spread: float | None = Field(
        None, ge=1.0, description="simulated: speed of the fastest client over that of the slowest; log-uniform between; null = 20."
    )
    records_per_second: float | None = Field(
        None, gt=0.0, description="simulated: records that the fastest client trains on in a virtual second; null = 1000."
    )
    jitter: float | None = Field(
        None, ge=0.0, lt=1.0, description="simulated: a turn takes up to this fraction more or less than usual for its client; null = 0.1."
    )

    @model_validator(mode="after")
    def _read(self) -> PacingChoice:
        given = [name for name in ("spread", "records_per_second", "jitter") if getattr(self, name) is not None]
        if given and self.arrival == "real":
            raise ValueError(f"{given[0]}: has no effect on real arrivals; set arrival to simulated, or take it out")
        return self


class Stragglers(Section):
    """Clients that do not get through all their passes, for experiments with clients of different speeds."""

    share: float = Field(
        gt=0.0, lt=1.0, description="Share of each cohort that straggles, rounded to whole clients, drawn by the run's seed."
    )
    drop: bool = Field(
        False, description="true: their updates do not count. false: they count, after 1 to training.epochs - 1 passes, drawn uniformly."
    )


class AttackChoice(Choice):
    """Clients that attack the run on purpose, for experiments with aggregation rules. Other keys are the attack's arguments."""

    kind: str = Field("none", description="none, or what the malicious clients do: see `fedray list attacks`.")
    fraction: float | None = Field(
        None, gt=0.0, lt=1.0, description="Fraction of all clients that attack, drawn by the run's seed, rounded up to whole clients."
    )
    clients: list[str] | None = Field(None, min_length=1, description="Names of the clients that attack, instead of a fraction.")

    @model_validator(mode="after")
    def _who(self) -> AttackChoice:
        given = [*(name for name in ("fraction", "clients") if getattr(self, name) is not None), *self.arguments]
        if self.kind == "none" and given:
            raise ValueError(f"{given[0]}: kind is none, so it would do nothing; take it out, or name a kind")
        if self.kind != "none" and (self.fraction is None) == (self.clients is None):
            raise ValueError("fraction: give exactly one of fraction and clients")
        return self


class RootChoice(Section):
    """The root set: records that the driver has itself, for aggregation rules that compare the clients' updates with what these records say."""

    share: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="Fraction of the driver's held-out records that become the root set, and test nothing; null = no root set.",
    )
    public: bool = Field(
        False, description="true: these records are public. The driver trains on them without protection, so it must be so, and be said."
    )

    @model_validator(mode="after")
    def _public(self) -> RootChoice:
        if self.share is not None and not self.public:
            raise ValueError(
                "public: the driver trains on the root set, and nothing protects it; set it to true to say that its records are public"
            )
        if self.share is None and self.public:
            raise ValueError("public: there is no root set without share, so it would do nothing; give share, or take it out")
        return self


class Resources(Section):
    """Ray resources of one actor."""

    cpu: float = Field(1.0, ge=0.0, description="CPUs; torch uses max(1, floor(cpu)) threads.")
    gpu: float = Field(0.0, ge=0.0, description="GPUs; a fraction shares one GPU between actors.")
    memory_gb: float | None = Field(None, gt=0.0, description="Memory that Ray sets aside for the actor, GiB; null = not counted.")
    custom: dict[str, float] = Field({}, description="Custom Ray resources, e.g. {site_1: 1}.")
    labels: dict[str, str] = Field({}, description="Node labels that the actor's node must carry, e.g. {region: eu}.")

    @model_validator(mode="after")
    def _whole_gpus(self) -> Resources:
        if self.gpu > 1 and self.gpu != int(self.gpu):
            raise ValueError(f"gpu: {self.gpu} is neither a fraction below 1 nor a whole number")
        return self
