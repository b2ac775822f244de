"""A client's evaluation of the model on its own held-out records: metrics as they are, or sums with noise that are charged."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fedray.algorithms.algorithm import one_model_beside
from fedray.clients.devices import end_if_lost, on_device
from fedray.clients.finetuning import FineTuning, tuned_training
from fedray.clients.messages import ClientTask, LocalEvaluation, NoisedEvaluation
from fedray.clients.surroundings import Kept, described, told
from fedray.clients.terms import Terms
from fedray.clients.trainer import Trainer
from fedray.data.records import Records
from fedray.errors import FedrayError
from fedray.models.build import evaluating
from fedray.parameters import Vector, get_vector
from fedray.privacy.account import Account
from fedray.privacy.csprng import noise_source
from fedray.privacy.evaluationplan import EvaluationPlan, plan_evaluation
from fedray.privacy.integersums import noised
from fedray.training.evaluate import evaluate, find_metrics
from fedray.training.kept import kept_refusal, left_by
from fedray.training.losses import Loss
from fedray.training.metrics import MetricFn
from fedray.training.noisedmetrics import Counted, counted_for, sums_over

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")


class Measuring:
    """Evaluates for the clients of one actor.

    Args:
        terms: the run's.
        trainer: has the records and the model.
        loss: the run's.
        device: that the model is on.
        kept: what client code runs within.
        classes: number of classes of the targets; None in regression.
        account: the silo's own ledger; None where the driver charges, or nothing is charged.
    """

    def __init__(
        self, terms: Terms, trainer: Trainer, loss: Loss, device: torch.device, kept: Kept, classes: int | None, account: Account | None
    ) -> None:
        self._config, self._trainer, self._loss, self._device, self._kept, self._account = (
            terms.config,
            trainer,
            loss,
            device,
            kept,
            account,
        )
        self._global_beside = one_model_beside(trainer.algorithm, trainer.layout)
        tune = self._config.evaluation.fine_tune
        tuned = None if tune is None else tuned_training(self._config.training, tune)
        self._tuning = None if tuned is None else FineTuning(self._config.seed, tuned, trainer, loss)
        self._counted: list[Counted] = []
        self._plan: EvaluationPlan | None = None
        self._spent = set[str]()  # charges under which something may have left
        section = self._config.evaluation.charged
        if section is not None and terms.plan is not None:
            self._counted = counted_for(self._config.evaluation.metrics, section, classes)
            self._plan = plan_evaluation(terms.plan, [(one.name, one.size) for one in self._counted])

    def plainly(self, weights: Vector, clients: Sequence[ClientTask]) -> list[LocalEvaluation]:
        """Each client's metrics, without noise.

        Raises:
            FedrayError: the config protects them.
        """
        privacy = self._config.privacy
        if privacy.regimes and "evaluation" not in privacy.unprotected:
            raise FedrayError("evaluation.federated: the config protects the clients' records, so metrics are not told without noise.")
        metrics = find_metrics(self._config.evaluation.metrics)
        rows = []
        for client in clients:
            test = self._trainer.data(client).test
            if test is None or not len(test):
                continue
            values, failed, cluster = dict[str, float](), dict[str, str](), None
            for front, model in self._models(weights, client).items():
                found, problems = self._plainly(client, test, model, metrics)
                cluster = self._cluster(weights) if not front else cluster
                values |= {front + name: value for name, value in found.items()}
                failed |= {front + name: problem for name, problem in problems.items()}
            rows.append(LocalEvaluation(client.name, len(test), values, failed, cluster))
        return rows

    def _cluster(self, weights: Vector) -> int | None:
        """Which of several global models the trainer's model is; None where there is one, or where it is none of them."""
        models = weights[: self._trainer.exchange.model_size].reshape(-1, self._trainer.layout.size)
        if len(models) < 2:
            return None
        mine = get_vector(self._trainer.model, self._trainer.layout)
        return next((k for k, model in enumerate(models) if np.array_equal(model, mine)), None)

    def _models(self, weights: Vector, client: ClientTask) -> dict[str, Callable[[], nn.Module]]:
        """What makes each model that is evaluated at a client, by the beginning of its metrics' names."""
        models: dict[str, Callable[[], nn.Module]] = {"": lambda: self._trainer.measured(weights, client)}
        if self._global_beside:
            models["global/"] = lambda: self._trainer.global_model(weights)
        tuning = self._tuning
        if tuning is not None:
            models["fine_tuned/"] = lambda: tuning.model(weights, client)
        return models

    def _plainly(
        self, client: ClientTask, test: Records, made: Callable[[], nn.Module], metrics: Mapping[str, MetricFn]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Metrics of a model on a client's records, and why some could not be taken."""
        x, y = on_device(test, _CPU)  # a batch at a time is moved from there
        failed: dict[str, str] = {}
        try:
            with self._kept(None):
                size = self._config.evaluation.batch_size
                return evaluate(made(), x, y, metrics, self._loss, size, self._device, failed), failed
        except FedrayError:
            raise
        except BaseException as error:  # of the client's code or data: its own evaluation's end alone
            end_if_lost(error)
            log.warning("client %s could not be evaluated:\n%s", client.name, told(error))
            return dict.fromkeys(metrics, math.nan), dict.fromkeys(metrics, described(error))

    def noised(self, weights: Vector, clients: Sequence[ClientTask], round_: int) -> list[NoisedEvaluation]:
        """Each client's sums with noise. A silo charges its own ledger first; other clients bring the charge of the driver's ledger.

        Args:
            weights: the globals.
            clients: who is asked; clients without held-out records are left out, before anything is charged.
            round_: after which the evaluation takes place, from 0.
        """
        found = []
        for client in clients:
            test = self._trainer.data(client).test
            if test is not None and len(test):
                found.append(self._noised(weights, client, round_))
        return found

    def _noised(self, weights: Vector, client: ClientTask, round_: int) -> NoisedEvaluation:
        plan = self._plan
        if plan is None:
            return NoisedEvaluation(client.name, problem=f"{client.name}: the config charges for no evaluation, so it tells nothing.")
        reservation = dict(client.reservations).get(plan.unit)
        if self._account is not None:
            decision = self._account.authorize(round_, 0, [client.name], plan)
            for refusal in decision.refused.values():
                return NoisedEvaluation(client.name, problem=str(refusal))
            reservation = decision.reservations[client.name].id
        if reservation is None or reservation in self._spent:
            why = "was not charged for an evaluation" if reservation is None else "has answered under this charge"
            return NoisedEvaluation(client.name, problem=f"{client.name}: {why}, so it tells nothing.")
        self._spent.add(reservation)
        try:
            with self._kept(None):
                sums = self._sums(weights, client, plan, round_)
        except BaseException as error:  # its text may quote records
            end_if_lost(error)
            log.warning("client %s could not be evaluated:\n%s", client.name, told(error))
            why = f"{client.name}: could not be evaluated ({type(error).__name__}); it is charged, and the log of its actor says why."
            return NoisedEvaluation(client.name, problem=why, charged=True)
        receipt = {"reservation": reservation, "plan": plan.sha256, "noise_multiplier": plan.noise_multiplier, "clip": plan.clip}
        if self._account is not None:
            self._account.commit(round_, 0, {client.name: receipt}, evaluates=True)
        test = self._trainer.data(client).test
        return NoisedEvaluation(client.name, 0 if test is None else len(test), sums, receipt)

    def _sums(self, weights: Vector, client: ClientTask, plan: EvaluationPlan, round_: int) -> dict[str, list[int]]:
        """The noised sums; nothing else of the records leaves this method."""
        test = self._trainer.data(client).test
        assert test is not None
        x, y = on_device(test, _CPU)
        model = self._trainer.measured(weights, client)
        with evaluating(model):
            totals, changed = left_by(model, self._loss, lambda: sums_over(self._counted, model, x, y, self._loss))
        if changed is not None:
            raise kept_refusal(changed)
        source = noise_source(self._config.privacy.insecure_seed, round_, f"evaluation {client.name}")
        return {one.name: noised(totals[one.name], one.variance, source).tolist() for one in plan.sums}
