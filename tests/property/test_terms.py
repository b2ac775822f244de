"""A run's terms are data: what is read back from their text is the same, by value and by hash, and other terms have another hash."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedray.choices import ModelChoice
from fedray.clients.groups import make_groups
from fedray.clients.terms import Terms, check_terms, make_terms
from fedray.config import Config
from fedray.configfile import build_config
from fedray.errors import FedrayError
from fedray.inputs import Input
from fedray.models.facts import ModelFacts
from fedray.parameters import Entry, Kind, Layout
from fedray.privacy.recordplan import RecordPlan

HASH = "0123456789abcdef" * 4

positive = st.floats(min_value=1e-300, allow_nan=False)
names = st.text(max_size=8)
shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(st.from_regex(r"z_[a-z]{1,4}", fullmatch=True), plain, max_size=3)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    raw: dict[str, Any] = {
        "name": "terms",
        "seed": draw(st.integers(0, 2**63)),
        "rounds": draw(st.integers(1, 1000)),
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}},
        "model": {"kind": "mlp", **draw(arguments)},
        "algorithm": {"kind": "fedprox", **draw(arguments)},
        "training": {"lr": draw(positive), "batch_size": 8, "epochs": draw(st.integers(1, 9))},
        "evaluation": {"every": draw(st.integers(0, 3)), "batch_size": draw(st.integers(1, 99))},
        "clients": {"groups": [{"name": "first", "clients": 2, "training": {"momentum": draw(st.floats(0, 0.9))}}]},
    }
    return build_config(raw)


def layouts() -> st.SearchStrategy[Layout]:
    kinds: list[Kind] = ["shared", "buffer"]
    entries = st.builds(Entry, names, shapes, st.integers(0, 10**9), st.sampled_from(kinds))
    return st.lists(entries, max_size=3).map(lambda rows: Layout(tuple(rows)))


models = st.builds(
    ModelFacts,
    choice=arguments.map(lambda more: ModelChoice.model_validate({"kind": "mlp", **more})),
    seed=st.integers(0, 2**63),
    shape=shapes,
    outputs=st.integers(1, 99),
    dtype=st.sampled_from([torch.float32, torch.int64]),
    layout=layouts(),
    frozen=st.sampled_from(["", HASH]),
    positions=st.none() | st.integers(1, 9),
    inputs=st.lists(st.builds(Input, names, shapes, st.booleans()), max_size=2).map(tuple),
    personal=layouts(),
)
plans = st.builds(
    RecordPlan,
    sampling_rate=st.fractions(Fraction(1, 10**9), 1),
    steps=st.integers(1, 1000),
    expected_batch=positive,
    noise_multiplier=positive,
    clip=positive,
    delta=positive,
    budget=st.none() | positive,
    target_epsilon=st.none() | positive,
    participations=st.integers(1, 1000),
    max_participations=st.none() | st.integers(1, 1000),
    max_silos_per_person=st.integers(1, 9),
    accountant=names,
    accountant_version=names,
    interval=positive,
    rng=names,
    clipping=st.sampled_from(["flat", "per_layer"]),
)


@st.composite
def agreed(draw: st.DrawFn) -> Terms:
    config = draw(configs())
    group = draw(st.sampled_from(make_groups(config, ["a", "b", "c", "d"])))
    model = draw(st.none() | models)
    return make_terms(
        config, group, draw(st.none() | plans), model, "" if model is None else draw(st.sampled_from(["", HASH])), draw(names)
    )


@given(agreed())
def test_terms_read_from_their_text_are_the_same(terms: Terms) -> None:
    found = Terms.of(json.loads(json.dumps(terms.document())))
    assert found == terms
    assert found.sha256 == terms.sha256 == pickle.loads(pickle.dumps(terms)).sha256


@given(agreed(), st.data())
def test_terms_that_differ_have_another_hash_and_are_refused(terms: Terms, data: st.DataObject) -> None:
    config, training = terms.config, terms.config.training
    other = data.draw(
        st.sampled_from(
            [
                replace(terms, job=terms.job + "x"),
                replace(terms, config=config.model_copy(update={"seed": config.seed + 1})),
                replace(terms, config=config.model_copy(update={"training": training.model_copy(update={"batch_size": 9})})),
                replace(terms, exchange="f" * 64),
                *([replace(terms, plan=replace(terms.plan, steps=terms.plan.steps + 1))] if terms.plan else []),
                *([replace(terms, model=replace(terms.model, outputs=terms.model.outputs + 1))] if terms.model else []),
            ]
        )
    )
    check_terms("default/0", terms.sha256, terms.sha256)
    with pytest.raises(FedrayError, match="client actor default/0 works by other terms"):
        check_terms("default/0", other.sha256, terms.sha256)


@given(configs())
def test_terms_say_nothing_of_servers_and_have_the_training_of_their_group(config: Config) -> None:
    secret = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": "http://user:secret@host"})})
    for group in make_groups(secret, ["a", "b", "c", "d"]):
        terms = make_terms(secret, group, None, None)
        assert "secret" not in json.dumps(terms.document())
        assert terms.config.training == group.training
        assert terms == make_terms(config, group, None, None)
