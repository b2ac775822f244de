"""The settings and models that a privacy claim excludes, and the reasons for which a claim is void.

A combination that would void the guarantee is refused when the config is read: with a code ``privacy.incompatible.<a>.<b>``, and a
sentence that gives the reason and the nearest legal setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedray.config import Config, Privacy
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.privacy.evaluationplan import check_charged
from fedray.privacy.ledgerrules import check_ledgers
from fedray.privacy.queriedrules import check_queried
from fedray.privacy.trainingrules import check_batches, check_person, check_training
from fedray.traits import Traits

_UNPROTECTED = {
    "evaluation": "clients report metrics on their private held-out records without noise",
    "class_counts": "the number of records of each class and client is published without noise",
    "train_metrics": "clients report their training loss without noise",
    "partition": "the number of records of each client is published without noise",
    "classes": "the labels that occur in the clients' records determine the model's classes without noise",
}


@dataclass(frozen=True)
class Claim:
    """Whether the run's epsilon may be claimed; ``reasons`` is empty if so."""

    valid: bool
    reasons: list[str]


def check(config: Config, private_statistics: bool = False) -> list[str]:
    """Refuse every combination that voids the guarantee.

    Args:
        config: the run.
        private_statistics: whether preprocessing computes statistics over private records.

    Returns:
        Warnings on settings that are legal but weaken the guarantee or void the claim.

    Raises:
        PrivacyRefusal: a combination voids the guarantee.
        ConfigError: a run without a regime has privacy settings, or the ledger's address is none.
    """
    privacy = config.privacy
    if config.tracking.system_metrics and not config.tracking.enabled:
        raise ConfigError("tracking.system_metrics: has no effect, because tracking.enabled is false; take one of them out.")
    if not privacy.regimes:
        _check_none(privacy)
        check_charged(config)
        return []
    _check_data(config, private_statistics)
    check_batches(config)
    if privacy.record:
        check_training(config)
        check_person(config)
    elif privacy.person is not None:
        raise ConfigError(
            "privacy.person: is about records in local training, which this regime does not protect one by one; set privacy.regime=record, or "
            "take it out."
        )
    elif privacy.clipping != "flat" or privacy.fewer_steps:
        raise ConfigError(
            "privacy.clipping, privacy.fewer_steps: apply to local steps on records only; add record to privacy.regime or take them out."
        )
    if privacy.whole_clients is None:
        _check_only_records(privacy)
    else:
        _check_whole_clients(config)
    check_ledgers(config)
    return _warnings(config)


def check_algorithm(config: Config, traits: Traits, by_records: bool) -> None:
    """Refuse an algorithm that does with a client's records what the regime's guarantee does not cover.

    Args:
        config: the run.
        traits: of the algorithm.
        by_records: clients are weighted by their numbers of records.

    Raises:
        PrivacyRefusal: with what to use instead.
    """
    privacy, kind, regime = config.privacy, config.algorithm.kind, config.privacy.whole_clients
    if privacy.record and traits.reads - {"count"}:
        raise PrivacyRefusal(
            f"algorithm.kind: the clients of '{kind}' send what they have made of their {' and '.join(sorted(traits.reads - {'count'}))} without "
            "noise, which no step of DP-SGD covers; use an algorithm that only trains, such as fedavg, fedprox or fednova.",
            "privacy.incompatible.record.reads",
        )
    if privacy.record and traits.composes:
        raise PrivacyRefusal(
            f"algorithm.kind: a step of '{kind}' takes several gradients, or that of more than the loss, but DP-SGD clips, noises and charges one of the "
            "loss; use an algorithm whose steps take that, such as fedavg, fedprox or scaffold, or fedper for layers that stay with the clients.",
            "privacy.incompatible.record.composed",
        )
    if privacy.record and traits.adapted:
        raise PrivacyRefusal(
            f"algorithm.kind: the models that clients of '{kind}' measure are made by gradients over their training records without noise; use an "
            "algorithm whose clients keep what noised steps have made, such as fedper, or fedavg.",
            "privacy.incompatible.record.adapted",
        )
    if privacy.record and traits.passes > 1:
        raise PrivacyRefusal(
            f"algorithm.kind: '{kind}' trains more than once in a turn, of which a turn's charge covers one training; use an algorithm that trains "
            "once, such as fedavg or fedprox, or fedper for layers that stay with the clients.",
            "privacy.incompatible.record.passes",
        )
    if regime is not None and "count" in traits.reads:
        raise PrivacyRefusal(
            f"algorithm.kind: '{kind}' sends each client's number of local steps, which is no public constant; use fedavg or fedprox, or set "
            "training.steps, with which all clients take as many steps, and fedavg.",
            f"privacy.incompatible.{regime}.steps",
        )
    if regime is not None and traits.state:
        raise PrivacyRefusal(
            f"algorithm.kind: the clients of '{kind}' keep a state between their turns, which lies in the run's directory and shows who took "
            "part; use privacy.regime=record, or an algorithm without state, such as fedavg or fedprox.",
            f"privacy.incompatible.{regime}.client_state",
        )
    if regime is not None and traits.divides:
        raise PrivacyRefusal(
            f"algorithm.kind: the driver of '{kind}' divides by what clients send, which noise can make zero or negative, and the model would be "
            "meaningless; use fedavg or fedprox.",
            f"privacy.incompatible.{regime}.quotient",
        )
    if regime is not None and traits.exact:
        raise PrivacyRefusal(
            f"algorithm.kind: the clients of '{kind}' send exact digits, which clipping and noise would make meaningless; use fedavg or fedprox.",
            f"privacy.incompatible.{regime}.exact_totals",
        )
    if regime is not None and by_records and privacy.weight_cap is None:
        raise PrivacyRefusal(
            "algorithm.weights: a mean weighted by records divides by the cohort's records, so one client moves it by more than its share; "
            "set algorithm.weights=uniform, or privacy.weight_cap to the public number of records at which a client counts fully.",
            f"privacy.incompatible.{regime}.sample_weights",
        )


def _check_none(privacy: Privacy) -> None:
    defaults = Privacy()
    given = [n for n in Privacy.model_fields if n not in ("regime", "ledger") and getattr(privacy, n) != getattr(defaults, n)]
    if given:
        names = ", ".join(f"privacy.{name}" for name in given)
        raise ConfigError(
            f"{names}: given, but privacy.regime is none, so nothing is protected; to train without privacy replace the whole section "
            'with "privacy={regime: none}", or set privacy.regime=record.'
        )


def _check_only_records(privacy: Privacy) -> None:
    for name in ("mechanism", "adaptive_clip", "weight_cap", "denominator"):
        if getattr(privacy, name) is not None:
            raise ConfigError(
                f"privacy.{name}: applies to guarantees for whole clients only, but privacy.regime is record; "
                "set privacy.regime=client (or local, distributed), or take it out."
            )


def _check_whole_clients(config: Config) -> None:
    """Refuse what does not go together with a central, local or distributed guarantee for whole clients."""
    privacy, regime = config.privacy, config.privacy.whole_clients
    if privacy.denominator is not None and regime == "local":
        raise ConfigError(
            "privacy.denominator: has no effect with privacy.regime local, which takes the mean of the noised updates; take it out."
        )
    if config.tracking.system_metrics and config.cohort.kind not in ("all", "cyclic"):
        raise PrivacyRefusal(
            "tracking.system_metrics: load and traffic of the driver's node vary with the cohort, which must stay secret; set it to false, or "
            "let all clients take part (cohort.kind=all or cyclic).",
            f"privacy.incompatible.{regime}.system_metrics",
        )
    if regime == "distributed" and config.cohort.min_clients < 2:
        raise PrivacyRefusal(
            "cohort.min_clients: with distributed noise each client adds a share, and this many shares are guaranteed in the sum; "
            "set it to the number of updates below which a round is given up, at least 2.",
            "privacy.incompatible.distributed.min_clients",
        )


def _check_data(config: Config, private_statistics: bool) -> None:
    if config.privacy.record and (private_statistics or config.data.normalize.kind == "standardize_client"):
        raise PrivacyRefusal(
            f"data.normalize: '{config.data.normalize.kind}' computes statistics over private records, so every record's "
            "gradient depends on all others; use constants with public means and deviations, unit_norm or none.",
            "privacy.incompatible.record.private_statistics",
        )
    check_queried(config)
    check_charged(config)


def check_classes(privacy: Privacy, declared: bool, class_labels: Sequence[str | int | float | bool]) -> None:
    """Refuse classes that were found in private records, because a label that only one record has would add an output to the model.

    Labels 0 and 1 need no declaration, because every classification has at least two classes.

    Raises:
        PrivacyRefusal: the classes are not declared; the sentence says how to declare them.
    """
    accepted = {"classes", "class_counts"} & set(privacy.unprotected)
    if not privacy.regimes or declared or accepted or list(class_labels) in ([], [0, 1]):
        return
    raise PrivacyRefusal(
        "data.classes: the labels that occur in the clients' records are private, so the classes must be declared under privacy; set data.classes=C "
        "for the labels 0 to C-1, or data.labels to the labels in class order, or accept it with privacy.unprotected=[classes], which voids the claim.",
        f"privacy.incompatible.{privacy.regimes[0]}.undeclared_classes",
    )


def _warnings(config: Config) -> list[str]:
    privacy, warnings = config.privacy, []
    if privacy.insecure_seed is not None:
        warnings.append("privacy.insecure_seed: noise and sampling can be replayed; the privacy claim of this run is void.")
    warnings += [f"privacy.unprotected: {_UNPROTECTED[name]}; the privacy claim of this run is void." for name in privacy.unprotected]
    if config.algorithm.kind.startswith("python:"):
        warnings.append("algorithm.kind: epsilon does not cover what your own algorithm sends besides the model that the engine trained.")
    if (privacy.target_epsilon or privacy.budget or 0.0) > 10:
        warnings.append("privacy: an epsilon above 10 is a weak guarantee; say so if you publish it.")
    return warnings


def check_buffers(model: nn.Module) -> None:
    """Refuse a model with buffers, because no noised gradient trains them and private statistics could leave in them.

    Raises:
        PrivacyRefusal: the model has a buffer; the sentence names it and what to use instead.
    """
    buffers = [name for name, _ in model.named_buffers()]
    if buffers:
        raise PrivacyRefusal(
            f"model: buffer '{buffers[0]}' is not trained by noised gradients, so it could release private statistics; keep a constant as a "
            "plain attribute (without register_buffer), and take GroupNorm or InstanceNorm without running statistics.",
            "privacy.incompatible.buffers",
        )


def check_layers(model: nn.Module) -> None:
    """Refuse a model that couples records in a layer, has buffers, or cannot be clipped in float32.

    This is the part of :func:`check_model` without the import of Opacus, which takes seconds.

    Raises:
        PrivacyRefusal: the model is refused; the sentence names the layer and what to use instead.
        ConfigError: the model has no trainable parameter.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise PrivacyRefusal(
                f"model: '{name or type(model).__name__}' is compiled by TorchScript, which hides the layers that each record's gradient is computed for; "
                "give the uncompiled module (torch.compile is allowed).",
                "privacy.incompatible.record.script",
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or "batchnorm" in type(module).__name__.lower():
            raise PrivacyRefusal(
                f"model: layer '{name}' ({type(module).__name__}) normalises each record by the other records of its batch, even if it is frozen; "
                "use GroupNorm (opacus.validators.ModuleValidator.fix replaces it).",
                "privacy.incompatible.record.batchnorm",
            )
    check_buffers(model)
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("model: has no trainable parameter; unfreeze some.")
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and (
            module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        ):
            raise PrivacyRefusal(
                f"model: embedding '{name}' changes its weights or gradients by the batch (max_norm, scale_grad_by_freq, sparse); leave these "
                "at their defaults.",
                "privacy.incompatible.record.embedding",
            )
    for name, parameter in parameters:
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise PrivacyRefusal(
                f"model: a hook on the gradient of parameter '{name}' sees sums over records before clipping; take it out.",
                "privacy.incompatible.record.hook",
            )
        if parameter.dtype not in (torch.float32, torch.float64):
            raise PrivacyRefusal(
                f"model: parameter '{name}' is {str(parameter.dtype).removeprefix('torch.')}, whose rounding lets a clipped gradient "
                "exceed the clip norm; use float32.",
                "privacy.incompatible.record.precision",
            )


def check_model(model: nn.Module) -> None:
    """Apply :func:`check_layers`, and refuse a layer for which Opacus cannot compute each record's gradient.

    Raises:
        PrivacyRefusal: the model is refused; the sentence names the layer and what to use instead.
        ConfigError: the model has no trainable parameter.
    """
    check_layers(model)
    from opacus.validators import ModuleValidator

    training = model.training
    try:
        errors = ModuleValidator.validate(model.train(), strict=False)
    finally:
        model.train(training)
    if errors:
        reason = str(errors[0]).split(". ")[0].rstrip(".")
        raise PrivacyRefusal(
            f"model: Opacus cannot compute the gradient of each record for it ({reason}); {_instead(reason)}.",
            "privacy.incompatible.record.module",
        )


def _instead(reason: str) -> str:
    """The replacement for a layer of torch that Opacus does not support, as a clause."""
    kind = next((name for name in ("LSTM", "GRU", "RNN", "MultiheadAttention") if f"nn.{name} " in reason), None)
    if kind is None:
        return "use a layer that Opacus supports"
    also = ", or training.engine=auto where the other layers are torch's own" if kind == "LSTM" else ""
    return f"use opacus.layers.DP{kind} in its place{also}"


def claim(config: Config, problems: Sequence[str] = ()) -> Claim:
    """Whether the run's privacy claim is valid.

    Args:
        config: the run.
        problems: faults during the run that void the claim, such as a local round that differs from the charged one.
    """
    privacy = config.privacy
    if not privacy.regimes:
        return Claim(False, ["privacy.regime is none"])
    reasons = []
    if privacy.insecure_seed is not None:
        reasons.append("noise and sampling came from privacy.insecure_seed and can be replayed")
    reasons += [f"privacy.unprotected: {_UNPROTECTED[name]}" for name in privacy.unprotected]
    reasons += list(problems)
    return Claim(not reasons, reasons)
