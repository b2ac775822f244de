"""Reading configs: overrides, YAML, and sentences for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import ROOT

from fedray.configfile import build_config, dump_config, load_config, parse_yaml, schema
from fedray.errors import ConfigError

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
        jsonschema.Draft202012Validator(document).validate(parse_yaml(path.read_text(), str(path)))
