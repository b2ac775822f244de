"""The model of one client of a run whose clients have models, or layers, of their own.

They lie in the run's directory among the clients' states and nowhere else: in no exchange, not in the saved model and not in MLflow.
"""

from __future__ import annotations

from torch import nn

from fedray.algorithms.algorithm import make_algorithm
from fedray.algorithms.turn import PERSONAL, ClientView, Personal
from fedray.checkpoint import load_latest
from fedray.clients.messages import ClientTask
from fedray.clients.states import StateFiles
from fedray.components import nearest
from fedray.config import Config
from fedray.errors import FedrayError
from fedray.experiment.finished import untrained_model
from fedray.frozen import check_frozen
from fedray.parameters import Layout
from fedray.rounds.clientstates import ClientStates
from fedray.runfiles import RunFiles
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
        FedrayError: the algorithm gives clients no model of their own, there is no such client, it never took part, or its state is gone.
    """
    algorithm = make_algorithm(config.algorithm)
    if not algorithm.traits.state or algorithm.traits.reads or algorithm.traits.adapted:
        raise FedrayError(
            f"algorithm.kind: the clients of '{config.algorithm.kind}' keep no model of their own in the run's directory; ask for the model "
            "without a client, or use fedper, fedrep, ditto or pfedme."
        )
    with reading(files.partition):
        names = [str(row.get("client", row.get("name"))) for row in client_rows(read_json(files.partition) or {})]
    if client not in names:
        raise FedrayError(f"{files.root}: has no client '{client}' among its {len(names)}.{nearest(client, names)}")
    saved = load_latest(files.checkpoints)
    if saved is None:
        raise FedrayError(
            f"{files.checkpoints}: holds no checkpoint, which says where the clients' models are; bring the run's own files back."
        )
    index = names.index(client)
    (task,) = ClientStates(files.states, 1, saved.states).attached([ClientTask(index, client)])
    state = None if task.state is None else of_algorithm(StateFiles(str(files.states)).read(task.state))
    if state is None:
        raise FedrayError(f"{files.root}: client '{client}' never took part, so it has no model of its own.")
    model, facts = untrained_model(files, config)
    check_frozen(model, config.model.kind, facts.get("frozen_sha256"))
    layout, own = Layout.of(model, algorithm.personal), Layout.personal(model, algorithm.personal)
    personal = Personal(own, state[PERSONAL]) if own.entries else None
    globals_ = algorithm.exchange(layout).views(saved.globals, "down")
    view = ClientView(index, 0, globals_, model, layout, None, state, None, personal)
    view.put(algorithm.measured(view))
    return model.eval()
