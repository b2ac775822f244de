"""The model of one client of a run whose clients have models, or layers, of their own.

They lie in the run's directory among the clients' states and nowhere else: in no exchange, not in the saved model and not in MLflow. Where there are
several global models, each client's is the one that it took in its last evaluation.
"""

from __future__ import annotations

from torch import nn

from fedray.algorithms.algorithm import Algorithm, make_algorithm, own_models
from fedray.algorithms.turn import PERSONAL, ClientView, Personal
from fedray.checkpoint import Saved, load_latest
from fedray.clients.messages import ClientTask
from fedray.clients.states import StateFiles
from fedray.components import nearest
from fedray.config import Config
from fedray.errors import FedrayError
from fedray.experiment.finished import untrained_model
from fedray.frozen import check_frozen
from fedray.parameters import Layout, set_vector
from fedray.rounds.clientstates import ClientStates
from fedray.runfiles import CLUSTERS, RunFiles
from fedray.storage import read_json, reading
from fedray.tracking.rundata import client_rows
from fedray.updates.pipeline import of_algorithm


def personal_model(files: RunFiles, config: Config, client: str) -> nn.Module:
    """The model by which a client predicts: what its metrics were taken of, in evaluation mode.

    Args:
        files: of the run, where its clients' states still lie.
        config: the run's.
        client: the client's name.

    Raises:
        FedrayError: the algorithm gives clients no model of their own, there is no such client, it never took part or was never evaluated, or
            its state is gone.
    """
    algorithm = make_algorithm(config.algorithm)
    if not own_models(algorithm):
        raise _without(config)
    model, facts = untrained_model(files, config)
    layout = Layout.of(model, algorithm.personal)
    several = algorithm.exchange(layout).model_size > layout.size
    if not several and (not algorithm.traits.state or algorithm.traits.reads or algorithm.traits.adapted):
        raise _without(config)
    with reading(files.partition):
        names = [str(row.get("client", row.get("name"))) for row in client_rows(read_json(files.partition) or {})]
    if client not in names:
        raise FedrayError(f"{files.root}: has no client '{client}' among its {len(names)}.{nearest(client, names)}")
    saved = load_latest(files.checkpoints)
    if saved is None:
        raise FedrayError(
            f"{files.checkpoints}: holds no checkpoint, which says where the clients' models are; bring the run's own files back."
        )
    check_frozen(model, config.model.kind, facts.get("frozen_sha256"))
    if several:
        set_vector(model, layout, saved.weights[_cluster(files, client) * layout.size :][: layout.size])
    else:
        _put_own(model, algorithm, files, saved, names.index(client), client)
    return model.eval()


def _put_own(model: nn.Module, algorithm: Algorithm, files: RunFiles, saved: Saved, index: int, client: str) -> None:
    """Set the model to the one that a client's state and the global model make.

    Raises:
        FedrayError: the client has no state.
    """
    (task,) = ClientStates(files.states, 1, saved.states).attached([ClientTask(index, client)])
    state = None if task.state is None else of_algorithm(StateFiles(str(files.states)).read(task.state))
    if state is None:
        raise FedrayError(f"{files.root}: client '{client}' never took part, so it has no model of its own.")
    layout, own = Layout.of(model, algorithm.personal), Layout.personal(model, algorithm.personal)
    personal = Personal(own, state[PERSONAL]) if own.entries else None
    globals_ = algorithm.exchange(layout).views(saved.globals, "down")
    view = ClientView(index, 0, globals_, model, layout, None, state, None, personal)
    view.put(algorithm.measured(view))


def _cluster(files: RunFiles, client: str) -> int:
    """Which of several models a client took in its last evaluation.

    Raises:
        FedrayError: it was never evaluated.
    """
    for row in client_rows(read_json(files.root / CLUSTERS) or {}):
        if row["client"] == client:
            return int(row["cluster"])
    raise FedrayError(
        f"{files.root / CLUSTERS}: does not say which of the models client '{client}' takes, because it was never evaluated; train with "
        "evaluation.federated=true and records held out at the clients."
    )


def _without(config: Config) -> FedrayError:
    return FedrayError(
        f"algorithm.kind: the clients of '{config.algorithm.kind}' keep no model of their own in the run's directory; ask for the model "
        "without a client, or use fedper, fedrep, ditto, pfedme, ifca or flhc."
    )
