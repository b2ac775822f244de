"""An actor whose terms or exchanged fields are not the driver's is refused before it trains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedray.clients import actors, inbox, rounds, slots
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.placement import Place
from fedray.clients.pool import Pool
from fedray.clients.terms import Site, Terms, make_terms
from fedray.configfile import build_config
from fedray.data.records import Federation, Records
from fedray.errors import ConfigError, FedrayError
from fedray.models.facts import first_model
from tests.virtualray import Handle, VirtualRay

CONFIG = build_config(
    {
        "name": "terms",
        "rounds": 1,
        "data": {"source": "sklearn:digits"},
        "model": {"kind": "softmax"},
        "training": {"batch_size": 2, "epochs": 1},
    }
)
FEDERATION = Federation(["a"], Records(np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])), np.array([0, 4]), None, None, None, 2)
GROUP = make_groups(CONFIG, FEDERATION.names)[0]
FACTS = first_model(CONFIG.model, (3,), 2, CONFIG.seed)[1]
TERMS = make_terms(CONFIG, GROUP, None, FACTS, job="run/1")


def host(terms: Terms) -> ClientHost:
    return ClientHost(terms, Site(device="cpu"), FEDERATION)


@pytest.mark.parametrize("ours", [TERMS, replace(TERMS, job="run/2")])
def test_a_pool_refuses_an_actor_that_works_by_other_terms(ours: Terms, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = VirtualRay(lambda client: 0.0)
    for module in (actors, inbox, rounds, slots):
        monkeypatch.setattr(module, "ray", ray)
    pool = Pool(
        [Place("default/0", "default", 0, GROUP.resources)],
        lambda place: Handle(ray, host(TERMS)),
        FEDERATION.sizes,
        members={"default": GROUP.members},
        restarts=0,
        retries=0,
        grace=1.0,
        terms=lambda place: ours.sha256,
    )
    if ours is TERMS:
        assert pool.wait_ready(1.0, True)["default/0"].terms == TERMS.sha256
        return
    with pytest.raises(FedrayError, match="client actor default/0 works by other terms .* than this run's .* install the same version"):
        pool.wait_ready(1.0, True)


def test_an_actor_that_learns_the_model_later_completes_its_terms() -> None:
    actor = host(replace(TERMS, model=None))
    assert actor.ready().terms != TERMS.sha256
    assert actor.configure(FACTS, "") == TERMS.sha256


def test_an_actor_whose_algorithm_exchanges_other_fields_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fedavg' exchanges other fields in this process"):
        host(replace(TERMS, exchange="0" * 64)).ready()
