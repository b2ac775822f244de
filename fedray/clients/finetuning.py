"""The global model as each client would fine-tune it: trained on the client's records for an evaluation, and thrown away.

Source: Wang et al. 2019, Federated Evaluation of On-device Personalization; Yu, Bagdasaryan, Shmatikov 2020, Salvaging Federated Learning by
Local Adaptation.
"""

from __future__ import annotations

from torch import nn

from fedray.clients.memory import fitting
from fedray.clients.messages import ClientTask
from fedray.clients.trainer import Trainer
from fedray.config import Training
from fedray.evaluationconfig import FineTune
from fedray.parameters import Vector
from fedray.rng import generator, torch_seed
from fedray.training.augment import augmented
from fedray.training.engine import LocalJob, seed_torch
from fedray.training.losses import Loss

_STREAM, _ROUND = "fine_tune", -1  # in no round, so that a model's figures are the same whenever it is evaluated


def tuned_training(training: Training, section: FineTune) -> Training:
    """The training section of the fine-tuning: the run's, with the section's length and learning rate."""
    return training.model_copy(update={"epochs": section.epochs, "steps": section.steps, "lr": section.lr or training.lr})


class FineTuning:
    """Fine-tunes for the clients of one actor.

    Args:
        seed: of the run; batches and all else that is random are named by it and the client alone.
        training: see :func:`tuned_training`.
        trainer: has the records, the model and the engine; nothing may protect its records.
        loss: the run's.
    """

    def __init__(self, seed: int, training: Training, trainer: Trainer, loss: Loss) -> None:
        self._seed, self._training, self._trainer, self._loss = seed, training, trainer, loss

    def model(self, weights: Vector, client: ClientTask) -> nn.Module:
        """The global model after training on a client's records.

        Args:
            weights: the globals.
            client: whose records.
        """
        trainer, training = self._trainer, self._training
        x, y = trainer.tensors(trainer.data(client).train)
        if not len(y):
            return trainer.global_model(weights)

        whole = min(training.physical_batch, len(y))

        def tuned(physical_batch: int) -> nn.Module:
            model = trainer.global_model(weights)
            seed_torch(torch_seed(self._seed, _STREAM, client.index), trainer.device)
            job = LocalJob(
                training=training if physical_batch == whole else training.model_copy(update={"physical_batch": physical_batch}),
                lr=training.lr,
                loss=self._loss.of_client(y),
                draws=generator(self._seed, _STREAM, client.index),
                augment=augmented(training, self._seed, _ROUND, client.index),
                whole=trainer.needs.whole,
                fewest=trainer.needs.fewest,
                couples=trainer.needs.couples,
            )
            trainer.engine(model, x, y, job)
            return model

        return fitting(tuned, whole, trainer.needs.whole)[0]
