"""Reading configs: overrides, YAML, and sentences for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import ROOT

import fedray
from fedray.config import Config
from fedray.configfile import build_config, dump_config, is_query, load_config, parse_yaml, resolve_config, schema
from fedray.errors import ConfigError
from fedray.queryconfig import QueryConfig, dump_query, load_query

MINIMAL = """
name: t
rounds: 3
data: {source: "sklearn:digits", partition: {kind: iid, clients: 3}}
model: {kind: softmax}
training: {batch_size: 8, epochs: 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid_and_says_what_it_shows(path):
    if is_query(path):
        query = load_query(path)
        assert build_config(parse_yaml(dump_query(query), "dump"), QueryConfig) == query
    else:
        config = load_config(path)
        assert build_config(parse_yaml(dump_config(config), "dump")) == config
    assert path.read_text().startswith("#")


def test_overrides_are_yaml_and_reach_any_depth(file):
    config = load_config(
        file,
        [
            "privacy.delta=1e-5",
            "data.partition.clients=9",
            "cohort={kind: fixed, size: 2}",
            "clients.groups=[{name: g, clients: 1}]",
            "clients.groups.0.rate=0.5",
        ],
    )
    assert config.privacy.delta == 1e-5
    assert config.data.partition.arguments == {"clients": 9}
    assert config.cohort.arguments == {"size": 2}
    assert config.clients.groups[0].rate == 0.5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rouns=3", "rouns: unknown key. Did you mean 'rounds'?"),
        ("training.learning_rate=3", "training.learning_rate: unknown key"),
        ("clients.resources.cpus=1", "Did you mean 'cpu'?"),
        ("rounds=three", "rounds: input should be a valid integer, but is 'three'"),
        ("rounds=0", "rounds: input should be greater than or equal to 1, but is 0"),
        ("rounds=true", "rounds: input should be a valid integer"),
        ("privacy.clip=-1.0", "privacy.clip: input should be greater than 0, but is -1.0"),
        ("privacy.regime=recrod", "privacy.regime: input should be 'none', 'record', 'client', 'local', 'distributed' or a list"),
        ("training.epochs=null", "training.epochs: give exactly one of epochs and steps"),
        ("training.sampling_rate=0.5", "training.sampling_rate: replaces batch_size and epochs"),
        ("clients.resources.gpu=1.5", "neither a fraction below 1 nor a whole number"),
        ("name=a/b", "name: string should match pattern"),
        ("rounds.x=3", "rounds: is the value 3, not a section"),
        ("rounds", "an override reads key.path=value"),
        ("clients.groups.3.rate=1.0", "the list has 0 entries"),
    ],
)
def test_one_sentence_for_what_is_wrong(file, override, expected):
    if override.startswith("clients.groups.3"):
        override_list = ["clients.groups=[]", override]
    else:
        override_list = [override]
    with pytest.raises(ConfigError) as caught:
        load_config(file, override_list)
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_are_told_at_once(file):
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["rounds=-1", "model.kind=null", "seed=x"])
    assert len(str(caught.value).splitlines()) == 3


def test_broken_files(tmp_path, file):
    with pytest.raises(ConfigError, match="there is no such config file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_text("a: [1, 2")
    with pytest.raises(ConfigError, match="not valid YAML at line"):
        load_config(tmp_path / "b.yaml")
    (tmp_path / "l.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="should hold sections"):
        load_config(tmp_path / "l.yaml")
    file.write_text(MINIMAL + "rounds: 4\n")
    with pytest.raises(ConfigError, match=r"rounds: stands twice in the file \(line 7\)"):
        load_config(file)


def test_numbers_are_yaml_1_2():
    assert parse_yaml("[1e-5, 08, on, 1_000, 0.5, -3, .5, true]", "t") == [1e-5, "08", "on", 1000, 0.5, -3, 0.5, True]


def test_schema_documents_every_field_and_accepts_the_shipped_configs():
    document = schema()
    json.dumps(document)
    undocumented = [
        f"{name}.{field}"
        for name, section in document["$defs"].items()
        for field, spec in section.get("properties", {}).items()
        if "description" not in spec and "$ref" not in str(spec)
    ]
    assert undocumented == []
    jsonschema = pytest.importorskip("jsonschema")
    for path in (ROOT / "configs").glob("*.yaml"):
        document = schema(QueryConfig if is_query(path) else Config)
        jsonschema.Draft202012Validator(document).validate(parse_yaml(path.read_text(), str(path)))


PLAIN = parse_yaml(MINIMAL, "minimal")


@pytest.mark.parametrize("kind", ["path", "mapping", "config"])
def test_overrides_reach_whatever_the_config_is(kind, file):
    config = {"path": file, "mapping": PLAIN, "config": load_config(file)}[kind]
    before = json.dumps(PLAIN)
    overrides = ["rounds=9", "privacy={regime: record, target_epsilon: 2.0, delta: 1e-4}", "privacy.clip=0.5"]
    found = resolve_config(config, overrides)
    assert found == load_config(file, overrides)
    assert (found.rounds, found.privacy.regime, found.privacy.clip) == (9, "record", 0.5)
    assert json.dumps(PLAIN) == before


@pytest.mark.parametrize("overrides", [("rounds=9",), (text for text in ["rounds=9"]), map(str, ["rounds=9"])])
def test_overrides_of_any_iterable_are_applied(overrides):
    assert resolve_config(PLAIN, overrides).rounds == 9


@pytest.mark.parametrize("overrides", [None, 3, {"rounds": 9}, {"rounds=9": 1}, [b"rounds=9"], ["rounds=" + "9" * 5000]])
def test_overrides_of_another_form_are_one_sentence(overrides):
    with pytest.raises(ConfigError, match="overrides: should be a list of texts|not valid YAML"):
        resolve_config(PLAIN, overrides)


def test_an_override_that_is_wrong_is_refused_for_mappings_too():
    with pytest.raises(ConfigError, match="rouns: unknown key"):
        fedray.run(PLAIN, overrides=["rouns=9"])
    with pytest.raises(ConfigError, match=r"privacy\.regime: input should be"):
        fedray.run(build_config(PLAIN), overrides=["privacy.regime=strict"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"overrides": "rounds=9"}, "overrides: should be a list of texts"),
        ({"overrides": ["model=3"], "model": lambda: 1}, "model: is the value 3, not a section"),
        ({"callbacks": print}, "callbacks: should be a list of functions"),
        ({"overrides": {"rounds": 9}, "model": 3}, "model: should be a function, but is a int"),
        ({"overrides": [3]}, "overrides: should be a list of texts"),
        ({"data": [1, 2]}, "data: should be a function, but is a list"),
        ({"callbacks": [3]}, "callbacks: should be a list of functions"),
        ({"model": dict, "overrides": ["model.kind=mlp"]}, "'model.kind=mlp' contradicts the argument model="),
        ({"data": dict, "overrides": ["data={source: 'npz:x'}"]}, "contradicts the argument data="),
    ],
)
def test_what_run_is_given_is_applied_or_refused(arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        fedray.run(PLAIN, **arguments)
    with pytest.raises(ConfigError, match="config: should be a path, a mapping or a Config, but is a int"):
        fedray.run(3)


def test_a_part_that_is_given_takes_the_place_of_the_configs_and_needs_none():
    given = {"model.kind": "python:provided:model", "data.source": "python:provided:data"}
    bare = {key: value for key, value in PLAIN.items() if key not in ("model", "data")}
    for config in (PLAIN, bare, build_config(PLAIN)):
        found = resolve_config(config, ["model.hidden=3"], given)
        assert (found.model.kind, found.model.arguments, found.data.source) == (
            "python:provided:model",
            {"hidden": 3},
            "python:provided:data",
        )


@pytest.mark.parametrize("override", ["rounds=" + "x" * 100_000, "rounds=" + "x " * 50_000, "x" * 100_000 + "=1", "x" * 100_000])
def test_a_value_of_100000_characters_is_cut_in_an_error(override, file):
    with pytest.raises(ConfigError, match=r"\(\d{2,3},\d{3} characters\)") as found:
        load_config(file, [override])
    assert len(str(found.value)) < 2500
