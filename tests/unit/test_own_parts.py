"""Parts of the user's own: the examples of the documentation run, and every wrong use ends with one sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rehearsed import Rehearsed

from fedray import components
from fedray.algorithms.algorithm import Mean, stepped
from fedray.clients.messages import ClientTask, RoundTask
from fedray.config import Config
from fedray.configfile import build_config
from fedray.data.dataset import load_federation
from fedray.errors import FedrayError
from fedray.parameters import set_vector
from fedray.planning.preparation import prepare
from fedray.rounds.cohort import Population
from fedray.rounds.evaluator import Evaluator
from fedray.training.evaluate import evaluate, find_metrics
from fedray.training.losses import find_loss

PAGE = (Path(__file__).parents[2] / "docs" / "own_parts.md").read_text()
MODULES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.S))
FRAGMENTS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(?!# instead)(.*?)```", PAGE, re.S)]
INSTEAD = [yaml.safe_load(text) for text in re.findall(r"```yaml\n# instead\n(.*?)```", PAGE, re.S)]


def merged(*sections: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section in sections:
        for key, value in section.items():
            found[key] = merged(found.get(key) or {}, value) if isinstance(value, Mapping) else value
    return found


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in (MODULES | WRONG).items():
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
    monkeypatch.syspath_prepend(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    for name in MODULES | WRONG:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("modules")
def test_the_examples_of_the_page_are_one_run_that_learns() -> None:
    config = build_config(merged(*FRAGMENTS))
    prepared = prepare(config)
    assert prepared.federation is not None
    assert prepared.federation.sizes.tolist() == [240, 120, 60, 60]
    run, clients = Rehearsed(config, prepared.federation), len(prepared.names)
    frozen = {name for name, p in run.model.named_parameters() if not p.requires_grad}
    assert frozen == {"0.weight", "0.bias"}
    for number in range(config.rounds):
        cohort = prepared.sampler(Population.of(np.ones(clients, dtype=np.bool_), np.ones(clients), number), np.zeros(clients))
        assert cohort.tolist() == [number % 2, number % 2 + 2]
        run.train([cohort.tolist()])
    assert set(run.state) == {"momentum"}
    set_vector(run.model, run.layout, run.globals)
    assert prepared.test is not None
    test, metrics = prepared.test, find_metrics(config.evaluation.metrics)
    found = evaluate(run.model, torch.from_numpy(test.x), torch.from_numpy(test.y), metrics, find_loss(config.training.loss))
    assert found["in_top_two"] >= found["accuracy"] > 0.6


@pytest.mark.usefixtures("modules")
def test_the_pages_source_with_a_place_a_client() -> None:
    (other,) = INSTEAD
    base = {key: value for key, value in merged(*FRAGMENTS).items() if key not in ("data", "cohort")}
    federation = load_federation(build_config(merged(base, other)).data, 0)
    assert federation.names == ["machine-0", "machine-1", "machine-2", "machine-3"]
    assert federation.sizes.tolist() == [80] * 4
    assert federation.client_test is not None


# -- wrong uses ----------------------------------------------------------------------------------------

MINE = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from fedray.algorithms.algorithm import Algorithm, Update
from fedray.data.transforms import Transform

value = 3
def raises(*_, **__): raise ValueError("no such thing")
def exits(*_, **__): raise SystemExit(3)
def nothing(*_, **__): return None
def one(only): return only

# data sources
def data(records: int = 60):
    draws = np.random.default_rng(0)
    return draws.normal(size=(records, 4)), draws.integers(0, 3, records)
def array(): return data()[0]
def unequal(): return data()[0], data()[1][1:]
def hole():
    x, y = data()
    x[3, 1] = np.nan
    return x, y
class Nameless:
    classes = 3
    def clients(self): return None
    def load(self, client): return data()
class Placeless:
    def clients(self): return ["a"]
class Classless(Nameless):
    classes = "three"
    def clients(self): return ["a", "b"]
class Absent(Classless):
    classes = 3
    def load(self, client): raise OSError("no disk")

# partitioners
def two(labels, groups): return []
def floats(labels, groups, draws): return [np.array([0.5, 1.5])]
def owners(labels, groups, draws): return np.arange(len(labels)) % 3
def twice(labels, groups, draws): return [[0, 1], [1, 2]]
def beyond(labels, groups, draws): return [[0], [len(labels)]]
def empty(labels, groups, draws): return [[0, 1], []]
def nobody(labels, groups, draws): return []

# normalisers
def function(): return lambda x: x
def unfit(): return Transform(lambda train: None)
def fails(): return Transform(raises)
def applied(apply, **more): return Transform(lambda train: apply, **more)
def lost(): return applied(lambda x: None)
def wider(): return applied(lambda x: np.hstack([x, x]))
def whole(): return applied(lambda x: x.astype(int))
def log(): return applied(np.log)
def batch(): return applied(lambda x: x - x.mean(0))
def other(): return applied(lambda x: 2 * x, in_torch=lambda x: 3 * x)
def untraced(): return applied(lambda x: 2 * x, in_torch=raises)
def both(): return applied(lambda x: x, private_statistics=True, in_torch=lambda x: x)

# models and adapters
class Net(nn.Linear):
    def forward(self, x): return super().forward(x).long()
class Pair(nn.Linear):
    def forward(self, x): return x, x
module = nn.Linear(4, 3)
def small(outputs, width: int = 4): return nn.Sequential(nn.Linear(4, width), nn.Linear(width, outputs))
def integers(outputs): return Net(4, outputs)
def pair(): return Pair(4, 3)
def seven(): return nn.Linear(4, 7)
def five(outputs): return nn.Linear(5, outputs)
def frozen(outputs): return nn.Linear(4, outputs).requires_grad_(False)
def no_model(): return None
def freezes(model): return model.requires_grad_(False)

# losses
def well(outputs, targets): return functional.cross_entropy(outputs, targets, reduction="none")
def weighted(outputs, targets, weight): return well(outputs, targets)
def reduced(outputs, targets): return well(outputs, targets).mean()
def wrong(outputs, targets): return outputs.argmax(1) != targets
def centred(outputs, targets): return well(outputs - outputs.mean(0), targets)
def undefined(outputs, targets): return well(outputs, targets) * float("nan")
def said(**attributes):
    def loss(outputs, targets): return well(outputs, targets)
    vars(loss).update(attributes)
    return loss
no_outputs, one_class, shapeless = said(outputs=0), said(classes=1), said(targets="n")
unsure, taskless = said(couples="yes"), said(task="multi")

# metrics
def each(outputs, targets): return outputs
def word(outputs, targets): return "good"
def lower(outputs, targets): return 0.0
lower.lower_is_better = "yes"
def task(outputs, targets): return 0.0
task.task = "class"

# schedules
def text(round, rounds): return "0.1"
def falling(round, rounds): return -float(round)
def late(round, rounds): return [1.0][round]

# samplers
def mask(population, coins): return population.eligible
def same(population, coins): return [0, 0]
def outside(population, coins): return [len(coins)]
def square(population, coins): return np.zeros((2, 2), dtype=int)
def halves(population, coins): return np.array([0.5])

# algorithms
class NoUpdate(Algorithm):
    def local(self, turn): turn.train()
class NoFields(Algorithm):
    def exchange(self, layout): return None
class OtherField(Algorithm):
    def local(self, turn): return Update({"other": turn.train() and turn.moved()})
class Begins(Algorithm):
    def begin(self, layout, weights, another): return weights
class Serves(Algorithm):
    def server(self, globals_, mean): return None
class ServesOther(Algorithm):
    def server(self, globals_, mean): return {"other": 3}
class ServesRaises(Algorithm):
    def server(self, globals_, mean): return raises()

# server optimisers
class Still:
    def init(self, size): return {}
    def step(self, weights, delta, state): return weights + delta, {}
class Stepless:
    def init(self, size): return {}
class Stateless(Still):
    def init(self, size): return None
class Double(Still):
    def init(self, size): return {"momentum": np.zeros(size)}
class Single(Still):
    def step(self, weights, delta, state): return weights
class Short(Still):
    def step(self, weights, delta, state): return weights[1:], {}
class Forgets(Still):
    def step(self, weights, delta, state): return weights, None
class Undefined(Still):
    def step(self, weights, delta, state): return weights * np.float32("nan"), {}
class InPlace(Still):
    def step(self, weights, delta, state):
        weights += delta
        return weights, state
class Narrow(Still):
    def step(self, weights): return weights, {}
class Wants(Still):
    def __init__(self, lr: float): self.lr = lr
"""
WRONG = {"mine": MINE, "broken": "1 / 0\n", "quits": "raise SystemExit(3)\n", "needs": "import not_there\n"}

#: Each part with the config that names ``python:mine:NAME`` for it.
PLACES: dict[str, Any] = {
    "data.source": lambda name, keys: {"data": {"source": name, **keys}},
    "data.partition.kind": lambda name, keys: {"data": {"partition": {"kind": name, "clients": None, **keys}}},
    "data.normalize.kind": lambda name, keys: {"data": {"normalize": {"kind": name, **keys}}},
    "model.kind": lambda name, keys: {"model": {"kind": name, **keys}},
    "model.adapters.kind": lambda name, keys: {"model": {"adapters": {"kind": name, **keys}}},
    "training.loss": lambda name, keys: {"training": {"loss": name}},
    "evaluation.metrics": lambda name, keys: {"evaluation": {"metrics": [name]}},
    "training.schedule.kind": lambda name, keys: {"training": {"schedule": {"kind": name, **keys}}},
    "cohort.kind": lambda name, keys: {"cohort": {"kind": name, **keys}},
    "server.kind": lambda name, keys: {"server": {"kind": name, **keys}},
    "algorithm.kind": lambda name, keys: {"algorithm": {"kind": name, **keys}},
}
BASE = {
    "name": "wrong",
    "rounds": 2,
    "data": {"source": "python:mine:data", "partition": {"kind": "iid", "clients": 3}, "holdout": {"fraction": 0.2}},
    "model": {"kind": "softmax"},
    "training": {"lr": 0.1, "batch_size": 10, "epochs": 1},
}


def config_with(part: str, name: str, keys: Mapping[str, Any] | None = None) -> Config:
    raw = merged(BASE, PLACES[part](name, keys or {}))
    if part == "data.partition.kind":
        raw["data"]["partition"] = {"kind": name, **(keys or {})}
    if part == "data.source" and name[len("python:mine:") :][:1].isupper():  # a class has a place a client
        raw["data"] = {"source": name, "holdout": {"fraction": 0.2, "at": "clients"}}
        raw["evaluation"] = {"federated": True}
    return build_config(raw)


def used(config: Config) -> None:
    """Use a run's parts as a run does: all that is checked before training, then a client's turn."""
    prepared = prepare(config)
    assert prepared.federation is not None
    assert prepared.model is not None
    if prepared.test is not None:
        Evaluator(config, prepared.test, prepared.model.facts, {}).ready()
    run = Rehearsed(config, prepared.federation)
    (report,) = run.host(0).train(RoundTask(0, 100.0, clients=3), run.globals, [ClientTask(0, prepared.names[0])])
    stepped(
        run.algorithm,
        run.server,
        run.layout,
        run.exchange,
        run.globals,
        run.state,
        Mean(run.exchange.views(np.full(run.exchange.up_size, 1e-3, np.float32), "up"), 1, 1 / 3),
    )
    if report.status != "done":
        raise FedrayError(f"{report.name} {report.status}: {report.error}")


def said(part: str, name: str, keys: Mapping[str, Any] | None = None) -> str:
    """The sentence on a wrong part, with exit code 2, or that of a client that failed; lines are not numbered."""
    with pytest.raises(FedrayError) as caught:
        used(config_with(part, name if ":" in name else f"python:mine:{name}", keys))
    text = str(caught.value)
    assert caught.value.exit_code == (1 if text.startswith("client-") else 2)
    return re.sub(r"line \d+", "line N", text)


#: What can be wrong with any part, and what is said of it.
ANY: dict[str, str] = {
    "python:nowhere:f": "KEY: cannot import 'nowhere' (No module named 'nowhere'); is it on PYTHONPATH or beside the config?",
    "python:broken:f": "KEY: importing 'broken' failed with ZeroDivisionError: division by zero (broken.py, line N, in <module>).",
    "python:quits:f": "KEY: importing 'quits' failed with SystemExit: 3 (quits.py, line N, in <module>).",
    "python:needs:f": "KEY: importing 'needs' failed with ModuleNotFoundError: No module named 'not_there' (needs.py, line N, in <module>).",
    "python:mine": "KEY: 'python:mine' should read python:package.module:name.",
    "python:mine:well_": "KEY: module 'mine' has no 'well_'. Did you mean 'well'?",
    "python:mine:raises": "failed with ValueError: no such thing (mine.py, line N, in raises).",
    "python:mine:exits": "failed with SystemExit: 3 (mine.py, line N, in exits).",
}


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("part", PLACES)
def test_what_can_be_wrong_with_any_part(part: str) -> None:
    for name, sentence in ANY.items():
        found = said(part, name)
        assert found == sentence.replace("KEY", part) or (not sentence.startswith("KEY") and found.endswith(sentence))
    assert "'python:mine:value' is a int; name" in said(part, "value") or part == "data.source"
    assert "None" in said(part, "nothing") or part == "data.partition.kind"


#: What is wrong with a part of the module ``mine`` and its keys, and what is said of it.
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "data.source",
        "array",
        {},
        "python:mine:array: should give (x, y), (x, y, persons) or (x, y, x_test, y_test), or a dict of client name to these, but gave ndarray.",
    ),
    ("data.source", "unequal", {}, "python:mine:unequal: 60 records but 59 labels; there must be one each."),
    (
        "data.source",
        "hole",
        {},
        "python:mine:hole: record 4 has a feature that is not finite (NaN, infinite or beyond float32); clean the data.",
    ),
    ("data.source", "one", {}, "data.only: one needs it; add data.only=VALUE."),
    (
        "data.source",
        "data",
        {"records": "many"},
        "data.records: input should be a valid integer, unable to parse string as an integer, got 'many'.",
    ),
    ("data.source", "Nameless", {}, "python:mine:Nameless: clients() should give the clients' names, but gave NoneType."),
    (
        "data.source",
        "Placeless",
        {},
        "python:mine:Placeless: a class needs clients(), load(client) and classes; a function returns (x, y), (x, y, persons) or (x, y, x_test, y_test), or a dict of client name to these.",
    ),
    (
        "data.source",
        "Classless",
        {},
        "python:mine:Classless: classes should be a whole number above 0, or None in regression, but is 'three'.",
    ),
    ("data.source", "Absent", {}, "python:mine:Absent failed with OSError: no disk (mine.py, line N, in load)."),
    (
        "data.partition.kind",
        "two",
        {},
        "data.partition.kind: 'python:mine:two' takes (labels, groups), but is called with (labels, groups, draws); write it so.",
    ),
    (
        "data.partition.kind",
        "floats",
        {},
        "data.partition: the partitioner should return a list of arrays of whole numbers, the places of each client's records.",
    ),
    (
        "data.partition.kind",
        "owners",
        {},
        "data.partition: the partitioner should return a list of arrays of whole numbers, the places of each client's records.",
    ),
    (
        "data.partition.kind",
        "twice",
        {},
        "data.partition: each of the records 0 to 47 may go to one client only; the partitioner broke that.",
    ),
    (
        "data.partition.kind",
        "beyond",
        {},
        "data.partition: each of the records 0 to 47 may go to one client only; the partitioner broke that.",
    ),
    ("data.partition.kind", "empty", {}, "data.partition: client 1 got no records; use fewer clients."),
    ("data.partition.kind", "nobody", {}, "data.partition: the partitioner made no clients."),
    ("data.normalize.kind", "one", {}, "data.normalize.only: one needs it; add data.normalize.only=VALUE."),
    (
        "data.normalize.kind",
        "function",
        {},
        "data.normalize.kind: 'python:mine:function' should return a fedray.data.transforms.Transform, but returned function.",
    ),
    (
        "data.normalize.kind",
        "unfit",
        {},
        "data.normalize.kind: 'python:mine:unfit': fit returned a NoneType; return the function that is applied to features.",
    ),
    (
        "data.normalize.kind",
        "fails",
        {},
        "data.normalize.kind: 'python:mine:fails': fit failed with ValueError: no such thing (mine.py, line N, in raises).",
    ),
    (
        "data.normalize.kind",
        "lost",
        {},
        "data.normalize.kind: 'python:mine:lost': returned a NoneType for features float32 [48, 4]; return the same shape, as floats.",
    ),
    (
        "data.normalize.kind",
        "wider",
        {},
        "data.normalize.kind: 'python:mine:wider': returned float32 [48, 8] for features float32 [48, 4]; return the same shape, as floats.",
    ),
    (
        "data.normalize.kind",
        "whole",
        {},
        "data.normalize.kind: 'python:mine:whole': returned int64 [48, 4] for features float32 [48, 4]; return the same shape, as floats.",
    ),
    (
        "data.normalize.kind",
        "log",
        {},
        "data.normalize.kind: 'python:mine:log': gave a feature that is NaN or infinite; treat such values before.",
    ),
    (
        "data.normalize.kind",
        "batch",
        {},
        "data.normalize.kind: 'python:mine:batch': gives a record other values beside other records; compute statistics in fit, with private_statistics=True.",
    ),
    (
        "data.normalize.kind",
        "other",
        {},
        "data.normalize.kind: 'python:mine:other': in_torch gives other features than the function that fit returns; make it the same, for float32 tensors.",
    ),
    (
        "data.normalize.kind",
        "untraced",
        {},
        "data.normalize.kind: 'python:mine:untraced': in_torch failed with ValueError: no such thing (mine.py, line N, in raises).",
    ),
    (
        "data.normalize.kind",
        "both",
        {},
        "data.normalize.kind: 'python:mine:both': has private_statistics and in_torch, but one graph cannot hold each client's statistics; leave one out.",
    ),
    ("model.kind", "smal", {}, "model.kind: module 'mine' has no 'smal'. Did you mean 'small'?"),
    ("model.kind", "module", {}, "model.kind: 'python:mine:module' is a Linear; name a function or class that makes the model."),
    (
        "model.kind",
        "integers",
        {},
        "model.kind: 'python:mine:integers' gives outputs of torch.int64; it should give floats, which training can change.",
    ),
    ("model.kind", "pair", {}, "model.kind: 'python:mine:pair' returns a tuple from forward; it should return one tensor of outputs."),
    ("model.kind", "seven", {}, "model.kind: 'python:mine:seven' gives outputs of shape (2, 7) for 2 records, but the data has 3 classes."),
    (
        "model.kind",
        "five",
        {},
        "model.kind: 'python:mine:five' failed on a batch of float32 records of shape (4,) with RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x4 and 5x3); choose a model for records of that shape.",
    ),
    ("model.kind", "frozen", {}, "model.kind: 'python:mine:frozen' has no trainable parameters; nothing could be learnt."),
    (
        "model.kind",
        "small",
        {"width": "wide"},
        "model.width: input should be a valid integer, unable to parse string as an integer, got 'wide'.",
    ),
    ("model.kind", "small", {"widht": 4}, "model.widht: unknown argument of small (it takes width). Did you mean 'width'?"),
    (
        "model.adapters.kind",
        "no_model",
        {},
        "model.adapters.kind: 'python:mine:no_model' takes (), but is called with (model); write it so.",
    ),
    (
        "model.adapters.kind",
        "freezes",
        {},
        "model.adapters.kind: 'python:mine:freezes' leaves nothing to train; set requires_grad of the parameters that it adds or chooses.",
    ),
    ("training.loss", "one", {}, "training.loss: 'python:mine:one' takes (only), but is called with (outputs, targets); write it so."),
    (
        "training.loss",
        "weighted",
        {},
        "training.loss.weight: weighted needs it; add training.loss.weight=VALUE.",
    ),
    (
        "training.loss",
        "reduced",
        {},
        "training.loss: 'python:mine:reduced' returned shape () for 2 records; return one loss for each (or set its attribute couples = True).",
    ),
    (
        "training.loss",
        "wrong",
        {},
        "training.loss: 'python:mine:wrong' returned bool values without a gradient; compute them of the outputs by differentiable functions of torch, without argmax, detach or numpy.",
    ),
    (
        "training.loss",
        "centred",
        {},
        "training.loss: 'python:mine:centred' gives a record another value or gradient in another batch; make each record's loss a function of that record alone, or set the function's attribute couples = True and return one number for the whole batch.",
    ),
    (
        "training.loss",
        "undefined",
        {},
        "client-0000 rejected: 15 of 15 values of the update are NaN or infinite; lower the learning rate or check the data.",
    ),
    (
        "training.loss",
        "raises",
        {},
        "training.loss: 'python:mine:raises' failed with ValueError: no such thing (mine.py, line N, in raises).",
    ),
    ("training.loss", "no_outputs", {}, "training.loss: 'python:mine:no_outputs' has outputs = 0; give a whole number above 0, or None."),
    ("training.loss", "one_class", {}, "training.loss: 'python:mine:one_class' has classes = 1; give a whole number above 1, or None."),
    (
        "training.loss",
        "shapeless",
        {},
        "training.loss: 'python:mine:shapeless' has targets = 'n'; give a tuple such as ('n', 2), which begins with 'n'.",
    ),
    ("training.loss", "unsure", {}, "training.loss: 'python:mine:unsure' has couples = 'yes'; give True or False."),
    (
        "training.loss",
        "taskless",
        {},
        "training.loss: 'python:mine:taskless' has task = 'multi'; give one of 'classes', 'two classes', 'values', 'labels', 'survival', 'tokens', or None.",
    ),
    (
        "evaluation.metrics",
        "one",
        {},
        "evaluation.metrics: 'python:mine:one' takes (only), but is called with (outputs, targets); write it so.",
    ),
    (
        "evaluation.metrics",
        "weighted",
        {},
        "evaluation.metrics: 'python:mine:weighted' needs weight besides (outputs, targets), which a config cannot give; give it a default.",
    ),
    ("evaluation.metrics", "each", {}, "evaluation.metrics: 'each' returned a Tensor; return one number, NaN where it is not defined."),
    ("evaluation.metrics", "word", {}, "evaluation.metrics: 'word' returned a str; return one number, NaN where it is not defined."),
    (
        "evaluation.metrics",
        "raises",
        {},
        "evaluation.metrics: 'raises' failed with ValueError: no such thing (mine.py, line N, in raises).",
    ),
    ("evaluation.metrics", "lower", {}, "evaluation.metrics: 'python:mine:lower' has lower_is_better = 'yes'; give True or False."),
    (
        "evaluation.metrics",
        "task",
        {},
        "evaluation.metrics: 'python:mine:task' has task = 'class'; give one of 'classes', 'two classes', 'values', 'labels', 'survival', 'tokens', or None for any.",
    ),
    (
        "training.schedule.kind",
        "one",
        {},
        "training.schedule.kind: 'python:mine:one' takes (only), but is called with (round, rounds); write it so.",
    ),
    ("training.schedule.kind", "text", {}, "training.schedule.kind: 'python:mine:text' returned a str in round 1; return a number."),
    (
        "training.schedule.kind",
        "falling",
        {},
        "training.schedule: python:mine:falling gives a factor of -1.0 in round 2; it must be 0 or more.",
    ),
    (
        "training.schedule.kind",
        "late",
        {},
        "training.schedule.kind: 'python:mine:late' in round 2 failed with IndexError: list index out of range (mine.py, line N, in late).",
    ),
    ("cohort.kind", "one", {}, "cohort.kind: 'python:mine:one' takes (only), but is called with (population, coins); write it so."),
    (
        "cohort.kind",
        "mask",
        {},
        "cohort.kind: 'python:mine:mask' returned [True, True, True] in round 1; return the indices of the clients it chooses, different whole numbers from 0 to 2 (np.flatnonzero of a mask).",
    ),
    (
        "cohort.kind",
        "same",
        {},
        "cohort.kind: 'python:mine:same' returned [0, 0] in round 1; return the indices of the clients it chooses, different whole numbers from 0 to 2 (np.flatnonzero of a mask).",
    ),
    (
        "cohort.kind",
        "outside",
        {},
        "cohort.kind: 'python:mine:outside' returned [3] in round 1; return the indices of the clients it chooses, different whole numbers from 0 to 2 (np.flatnonzero of a mask).",
    ),
    (
        "cohort.kind",
        "square",
        {},
        "cohort.kind: 'python:mine:square' returned [[0, 0], [0, 0]] in round 1; return the indices of the clients it chooses, different whole numbers from 0 to 2 (np.flatnonzero of a mask).",
    ),
    (
        "cohort.kind",
        "halves",
        {},
        "cohort.kind: 'python:mine:halves' returned [0.5] in round 1; return the indices of the clients it chooses, different whole numbers from 0 to 2 (np.flatnonzero of a mask).",
    ),
    (
        "algorithm.kind",
        "NoUpdate",
        {},
        "client-0000 failed: algorithm.kind: local of 'NoUpdate' returned a NoneType; return an Update (docs/algorithms.md).",
    ),
    (
        "algorithm.kind",
        "OtherField",
        {},
        "client-0000 failed: algorithm.kind: it gave the fields {'other': (15,)} where it exchanges {'model': 15} values.",
    ),
    ("algorithm.kind", "NoFields", {}, "algorithm.kind: exchange of 'NoFields' returned a NoneType; return an Exchange."),
    ("algorithm.kind", "Begins", {}, "algorithm.kind: begin of 'Begins' returned a ndarray; return a dict with each field that goes down."),
    (
        "algorithm.kind",
        "Serves",
        {},
        "algorithm.kind: server of 'Serves' returned a NoneType; return a dict with each field that goes down or is kept: model.",
    ),
    (
        "algorithm.kind",
        "ServesOther",
        {},
        "algorithm.kind: server of 'ServesOther' returned the fields ['other']; return a dict with each field that goes down or is kept: model.",
    ),
    (
        "algorithm.kind",
        "ServesRaises",
        {},
        "algorithm.kind: server of 'ServesRaises' failed with ValueError: no such thing (mine.py, line N, in raises).",
    ),
    ("server.kind", "Stepless", {}, "server.kind: 'python:mine:Stepless' made a Stepless, which lacks init or step."),
    (
        "server.kind",
        "Stateless",
        {},
        "server.kind: init of 'python:mine:Stateless' returned a NoneType; return a dict of name to float32 array as the state ({} for none).",
    ),
    (
        "server.kind",
        "Double",
        {},
        "server.kind: init of 'python:mine:Double' returned an array float64 [15]; return float32 arrays as the state, by names, 'momentum' among them.",
    ),
    (
        "server.kind",
        "Single",
        {},
        "server.kind: step of 'python:mine:Single' returned an array float32 [15]; return a pair (new weights, new state).",
    ),
    (
        "server.kind",
        "Short",
        {},
        "server.kind: step of 'python:mine:Short' returned an array float32 [14]; return new weights as an array float32 [15].",
    ),
    (
        "server.kind",
        "Forgets",
        {},
        "server.kind: step of 'python:mine:Forgets' returned a NoneType; return a dict of name to float32 array as the state ({} for none).",
    ),
    (
        "server.kind",
        "Undefined",
        {},
        "server.kind: step of 'python:mine:Undefined' gave weights that are NaN or infinite; mind divisions and the learning rate.",
    ),
    (
        "server.kind",
        "InPlace",
        {},
        "server.kind: step of 'python:mine:InPlace' failed with ValueError: output array is read-only (mine.py, line N, in step).",
    ),
    (
        "server.kind",
        "Narrow",
        {},
        "server.kind: step of 'python:mine:Narrow' failed with TypeError: Narrow.step() takes 2 positional arguments but 4 were given.",
    ),
    ("server.kind", "Wants", {}, "server.lr: Wants needs it; add server.lr=VALUE."),
]


@pytest.mark.usefixtures("modules")
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("part", "name", "keys", "sentence"), CASES, ids=[f"{part}-{name}" for part, name, _, _ in CASES])
def test_wrong_uses_of_each_part(part: str, name: str, keys: dict[str, Any], sentence: str) -> None:
    assert said(part, name, keys) == sentence


def test_the_page_says_what_the_program_says() -> None:
    known = {sentence for _, _, _, sentence in CASES} | {text.replace("KEY", "model.kind") for text in ANY.values()}
    quoted = [line for block in re.findall(r"```text\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    assert len(quoted) > 30
    assert [line for line in quoted if line not in known] == []


def test_every_part_that_a_config_can_name_is_on_the_page() -> None:
    for room in components.ROOMS.values():
        assert f"`{room.path}`" in PAGE
