"""What a guarantee for records excludes in local training."""

from __future__ import annotations

from fedray.config import Config
from fedray.errors import ConfigError, PrivacyRefusal

#: Local engines that are known to clip and noise every record's gradient.
ENGINES = ("auto", "book", "hooks", "ghost")


def everywhere(config: Config, key: str) -> dict[str, str]:
    """The values of a key in the training section and in the groups' overrides, by their paths in the config."""
    values = {f"training.{key}": str(getattr(config.training, key))}
    for i, group in enumerate(config.clients.groups):
        if key in group.training:
            values[f"clients.groups.{i}.training.{key}"] = str(group.training[key])
    return values


def coupled_loss(path: str, name: str) -> PrivacyRefusal:
    """What to say of a loss that is of whole batches, so that no record has a gradient of its own to clip."""
    return PrivacyRefusal(
        f"{path}: '{name}' is one number for a whole batch, so no record has a gradient of its own that could be clipped; protect whole "
        "clients (privacy.regime=client, local or distributed), or use a loss of single records.",
        "privacy.incompatible.record.coupled_loss",
    )


def own_counts(path: str) -> PrivacyRefusal:
    """What to say of class weights that follow from the numbers of a client's private records, on which every record's gradient would depend."""
    return PrivacyRefusal(
        f"{path}: the weights of balanced classes would follow from the numbers of each client's private records, so every record's gradient "
        "would depend on all others; declare public numbers with counts, or give the weights themselves.",
        "privacy.incompatible.record.class_counts",
    )


def check_batches(config: Config) -> None:
    """Refuse batches whose size follows from the clients' private records.

    Raises:
        PrivacyRefusal: with what to use instead.
    """
    if config.training.batch_bound is not None and config.privacy.regimes:
        instead = "sampling_rate and expected_batch" if config.privacy.record else "batch_size to a public number"
        raise PrivacyRefusal(
            "training.batch_bound: the steps of all clients would follow from the smallest client's private number of records; take it out, and set "
            f"training.{instead}.",
            f"privacy.incompatible.{config.privacy.regimes[0]}.batch_bound",
        )


def check_training(config: Config) -> None:
    """Refuse local training that does not clip and noise each record's gradient as the guarantee needs.

    Raises:
        PrivacyRefusal: with what to use instead.
    """
    for path, precision in everywhere(config, "precision").items():
        if precision != "fp32":
            raise PrivacyRefusal(
                f"{path}: {precision} rounds gradients so coarsely that a clipped one can exceed the clip norm; use fp32.",
                "privacy.incompatible.record.precision",
            )
    for path, largest in everywhere(config, "max_grad_norm").items():
        if largest != "None":
            raise PrivacyRefusal(
                f"{path}: clips the gradient of a batch, but a guarantee for records rests on the clip of each record's own gradient; take it out "
                "and set privacy.clip.",
                "privacy.incompatible.record.max_grad_norm",
            )
    for path, engine in everywhere(config, "engine").items():
        if engine not in ENGINES:
            raise PrivacyRefusal(
                f"{path}: '{engine}' is not known to clip and noise every record's gradient; use auto, book, hooks or ghost.",
                "privacy.incompatible.record.engine",
            )


def check_person(config: Config) -> None:
    """Refuse persons of whom the records are not known, and engines that cannot clip a person's gradients as one."""
    person, source = config.privacy.person, config.data.source.partition(":")[0]
    if person is None:
        return
    if source != "python" and config.data.arguments.get("person") is None:
        raise ConfigError(
            "privacy.person: needs to know whose each record is; name the column with data.person (for an npz archive the key of an array)."
        )
    for path, engine in everywhere(config, "engine").items():
        if person.kind == "clipped" and engine not in ("auto", "hooks"):
            raise PrivacyRefusal(
                f"{path}: '{engine}' clips records one by one and has no gradient of a person that it could clip as one; use hooks or auto, or "
                "privacy.person.kind=bounded, which all private engines can do.",
                "privacy.incompatible.person.engine",
            )
