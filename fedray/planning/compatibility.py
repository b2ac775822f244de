"""What goes together with what: each part that a config can name, beside each way to protect what clients send.

No cell of the table is written down. Each is a small config, and what :func:`fedray.planning.combinations.check_only` says to it, which is what
it says to a run. So the table cannot differ from what happens, and a new part has its row as soon as it is in its room. What depends on the
model or the records (layers that couple records, buffers, a delta for the number of records) is refused once these are known.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedray import components
from fedray.configfile import build_config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_only

Sections = Mapping[str, Any]

_TRAINING: Sections = {"lr": 0.1, "batch_size": 16, "steps": 2}
_BY_RECORDS: Sections = {"lr": 0.1, "sampling_rate": 0.1, "steps": 2, "expected_batch": 24.0}
#: A run without protection. Its numbers have to be legal, and say nothing else.
BASE: Sections = {
    "name": "combination",
    "rounds": 3,
    "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 12}},
    "model": {"kind": "mlp", "hidden": [8]},
    "training": _TRAINING,
    "algorithm": {"kind": "fedavg"},
    "evaluation": {"metrics": []},
    "tracking": {"enabled": False},
}
_RECORD: Sections = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-5}
_NOISED: Sections = {"noise_multiplier": 4.0}
_WHOLE: Sections = {"noise_multiplier": 1.0, "delta": 8e-3}
_UNIFORM: Sections = {"algorithm": {"kind": "fedavg", "weights": "uniform"}}
#: The regimes as sections of a config.
_REGIMES: Mapping[str, Sections] = {
    "record": {"privacy": _RECORD, "training": _BY_RECORDS},
    "client": {"privacy": {**_WHOLE, "regime": "client"}, **_UNIFORM},
    "local": {"privacy": {**_WHOLE, "regime": "local", "noise_multiplier": 9.0}, **_UNIFORM},
    "distributed": {"privacy": {**_WHOLE, "regime": "distributed"}, **_UNIFORM, "cohort": {"kind": "all", "min_clients": 6}},
}
#: Rooms whose parts decide what clients send and what becomes of it.
_ROOMS = ("algorithms", "servers", "aggregators", "compressions", "bounds", "pacings", "cohorts")
#: Arguments of the parts that need some, by room and name.
_NEEDED: Mapping[tuple[str, str], Sections] = {
    ("algorithms", "fedper"): {"personal": ["out"]},
    ("algorithms", "fedrep"): {"personal": ["out"]},
    ("algorithms", "flhc"): {"clients": 12},
    ("aggregators", "bucketing"): {"rule": {"kind": "median"}},
    ("aggregators", "nnm"): {"rule": {"kind": "median"}},
    ("aggregators", "centered_clipping"): {"radius": 1.0},
    ("compressions", "randk"): {"share": 0.5},
    ("compressions", "topk"): {"share": 0.5},
    ("bounds", "norm"): {"norm": 1.0},
    ("pacings", "fedbuff"): {"buffer": 6, "concurrency": 8},
    ("cohorts", "cyclic"): {"size": 6},
    ("cohorts", "fixed"): {"size": 6},
    ("cohorts", "importance"): {"size": 6},
    ("cohorts", "power_of_choice"): {"size": 6, "candidates": 9},
    ("cohorts", "poisson"): {"fraction": 0.9},
    ("protocols", "bfv"): {"key": "/etc/fedray/consortium.key"},
    ("protocols", "ckks"): {"key": "/etc/fedray/consortium.key"},
}
#: Other sections that a part needs beside its own.
_BESIDE: Mapping[tuple[str, str], Sections] = {
    ("algorithms", "bagged_trees"): {"model": {"kind": "trees"}, "training": {}},
    ("algorithms", "histogram_trees"): {"model": {"kind": "trees"}, "training": {}},
    ("algorithms", "newton"): {"model": {"kind": "softmax"}, "training": {}},
    ("aggregators", "fltrust"): {"root": {"share": 0.1, "public": True}, "evaluation": {}},
    ("pacings", "semi_synchronous"): {"cohort": {"kind": "fixed", "size": 6}},
}
_SETTINGS: Mapping[str, Sequence[Sections]] = {
    "weights by records": ({"algorithm": {"kind": "fedavg", "weights": "samples"}}, {"privacy": {"weight_cap": 100}}),
    "adaptive clip norm": ({"privacy": {"adaptive_clip": {}}},),
    "evaluation at the clients": ({"evaluation": {"federated": True}},),
    "fine-tuned evaluation": ({"evaluation": {"federated": True, "fine_tune": {"steps": 1}}},),
    "charged evaluation at clients": (
        {"privacy": _RECORD, "training": _BY_RECORDS, "evaluation": {"federated": True, "metrics": ["accuracy"], "charged": _NOISED}},
    ),
    "normalizer standardize_client": ({"data": {"normalize": {"kind": "standardize_client"}}},),
    "loss cox": ({"training": {"loss": "cox"}},),
    "loss balanced by own records": (
        {"training": {"loss": {"kind": "cross_entropy", "weights": "balanced"}}},
        {"training": {"loss": {"counts": [150] * 10}}},
    ),
    "augment": ({"training": {"augment": {"flip": True}}},),
    "max_grad_norm": ({"training": {"max_grad_norm": 1.0}},),
    "server.schedule": ({"server": {"kind": "sgd", "schedule": {"kind": "cosine"}}},),
    "unfreeze": ({"training": {"unfreeze": [{"round": 1, "layers": ["out"]}, {"round": 2, "layers": ["fc1"]}]}},),
    "batch_bound": ({"training": {"batch_bound": "smallest"}},),
    "precision bf16": ({"training": {"precision": "bf16"}},),
    "download": ({"download": {"kind": "half"}},),
    "clients away in some rounds": ({"clients": {"groups": [{"name": "fortnightly", "clients": 12, "every": 2}]}},),
    "stragglers": ({"cohort": {"stragglers": {"share": 0.5}}, "training": {"lr": 0.1, "batch_size": 16, "epochs": 2}},),
    "attack": ({"attack": {"kind": "sign_flip", "fraction": 0.2}},),
    **{
        f"persons, {person['kind']}": ({"privacy": {**_RECORD, "person": person}, "training": _BY_RECORDS, "data": {"person": "patient"}},)
        for person in ({"kind": "bounded", "records": 2}, {"kind": "clipped"})
    },
    **{
        f"regime [record, {regime}]": (
            {
                "privacy": {**_RECORD, "regime": ["record", regime], "joint": {**_WHOLE, "noise_multiplier": 9.0}},
                "training": _BY_RECORDS,
                **_UNIFORM,
                "cohort": {"kind": "all", "min_clients": 6},
            },
        )
        for regime in ("client", "local", "distributed")
    },
}


@dataclass(frozen=True)
class Feature:
    """A row of the table.

    Attributes:
        section: what it shares with the rows around it: a room, or ``settings``.
        name: of the part or the setting.
        ways: the sections that ask for it, and then, one after another, what may be set beside them where they alone are refused.
    """

    section: str
    name: str
    ways: Sequence[Sections]


@dataclass(frozen=True)
class Verdict:
    """A cell of the table.

    Attributes:
        sections: the config that was asked about last.
        beside: what had to be set beside the feature, as ``key=value``; empty where nothing had to.
        refusal: why it is refused, in one sentence with the nearest setting that is allowed; empty where it is allowed.
        code: of the refusal, where privacy or a secure sum is the reason.
    """

    sections: Sections
    beside: str = ""
    refusal: str = ""
    code: str = ""

    @property
    def allowed(self) -> bool:
        """Whether a run may have both."""
        return not self.refusal


def grounds() -> dict[str, Sections]:
    """The columns: each regime and each protocol of secure sums, as sections of a config, by its name."""
    return {**_REGIMES, **_protocols()}


def _protocols() -> dict[str, Sections]:
    return {name: _part("protocols", name) for name in sorted(components.PROTOCOLS.parts())}


def features() -> list[Feature]:
    """The rows: each part of the rooms that decide what clients send and what becomes of it, then settings and protocols."""
    found = [Feature(room, name, _ways(room, name)) for room in _ROOMS for name in sorted(components.ROOMS[room].parts())]
    found += [Feature("settings", name, ways) for name, ways in _SETTINGS.items()]
    return found + [Feature("protocols", name, (sections,)) for name, sections in _protocols().items()]


def _part(room: str, name: str) -> dict[str, Any]:
    return {**_BESIDE.get((room, name), {}), components.ROOMS[room].section: {"kind": name, **_NEEDED.get((room, name), {})}}


def _ways(room: str, name: str) -> list[Sections]:
    section, takes = components.ROOMS[room].section, inspect.signature(components.ROOMS[room].parts()[name]).parameters
    more = [{section: {key: value}} for key, value in (("weights", "uniform"), ("feedback", False)) if key in takes]
    return [_part(room, name), *more, *([{"cohort": {"min_clients": 6}}] if room in ("cohorts", "pacings") else [])]


def verdict(feature: Feature, ground: str) -> Verdict | None:
    """What is said to a run that has a feature on a ground; None where they are two of a kind, of which a run has one."""
    regimes = feature.ways[0].get("privacy", {}).get("regime", [ground])
    if ground not in regimes if ground in _REGIMES else feature.section == "protocols":
        return None
    sections, beside, refused = merged(BASE, grounds()[ground]), "", Verdict({})
    for way in feature.ways:
        sections = merged(sections, way)
        beside = "" if way is feature.ways[0] else ", ".join(_settings(way))
        try:
            check_only(build_config(sections))
        except PrivacyRefusal as refusal:
            refused = Verdict(sections, refusal=str(refusal).removeprefix(f"[{refusal.code}] "), code=refusal.code)
        except ConfigError as error:
            refused = Verdict(sections, refusal=str(error))
        else:
            return Verdict(sections, beside)
    return refused


def merged(sections: Sections, more: Sections) -> dict[str, Any]:
    """Sections of a config with more of them: what names another kind or regime, or another way to draw records, replaces a section."""
    found = dict(sections)
    for key, value in more.items():
        old = found.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and value and not {"kind", "lr"} & value.keys():
            found[key] = merged(old, value)
        else:
            found[key] = value
    return found


def _settings(way: Sections, before: str = "") -> Iterator[str]:
    for key, value in way.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{before}{key}.")
        else:
            yield f"{before}{key}={str(value).lower() if isinstance(value, bool) else value}"
