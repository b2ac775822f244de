"""A silo's process without its link: what it makes of a run's messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from silopolicies import allow_all

from fedray.aggregation.exact import ExactSum
from fedray.algorithms.algorithm import make_algorithm
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, Terms, make_terms
from fedray.config import Config, Data
from fedray.configfile import build_config
from fedray.errors import ConfigError
from fedray.models.facts import first_model
from fedray.privacy.ledger.chain import Withdrawal
from fedray.privacy.ledger.withdrawal import enter
from fedray.privacy.recordplan import plan_record
from fedray.silos.calls import SiloOpening, pack_call, read_answer
from fedray.silos.forms import codec
from fedray.silos.hosting import Hosting, own_data
from fedray.silos.parcels import Parcel
from fedray.silos.siteconfig import SiteConfig

NAME = "client-0001"
DATA: dict[str, Any] = {"source": "sklearn:iris", "partition": {"kind": "iid", "clients": 3}}
PRIVATE: dict[str, Any] = {
    "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-3, "ledger": "silos", "insecure_seed": 1},
    "training": {"lr": 0.5, "sampling_rate": 0.5, "expected_batch": 20, "steps": 2},
    "evaluation": {"metrics": []},
}
TASK = ClientTask(1, NAME)

pytestmark = pytest.mark.usefixtures("one_thread")


def site_of(directory: Path, **data: Any) -> SiteConfig:
    (directory / "state" / "ledger").mkdir(parents=True, exist_ok=True)
    allow_all(directory / "policy")
    about = {name: str(directory / name) for name in ("identity", "state", "policy")}
    return SiteConfig.model_validate({"client": NAME, "gateway": "localhost:1", **about, "data": {**DATA, **data}})


def config_of(**sections: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "iris",
        "rounds": 2,
        "data": {"source": f"silos:client-0000,{NAME},client-0002", "classes": 3, "holdout": {"fraction": 0.0}},
        "model": {"kind": "softmax"},
        "training": {"lr": 0.5, "batch_size": 16, "epochs": 1},
        "clients": {"placement": "remote", "gateway": {"listen": "localhost:1", "identity": "federation"}},
    }
    return build_config(raw | sections)


def terms_of(config: Config) -> Terms:
    group = make_groups(config, ["client-0000", NAME, "client-0002"])[0]
    facts = first_model(config.model, (4,), 3, config.seed)[1]
    exchange = make_algorithm(config.algorithm).exchange(facts.layout)
    return make_terms(config, group, plan_record(config) if config.privacy.record else None, facts, exchange.sha256, "run/1")


OPENING = SiloOpening(TASK, None, 1, 3, 1.0, True, False, False, None)


class Asking:
    """A run that asks a silo, whose messages take no way at all."""

    def __init__(self, hosting: Hosting, terms: Terms, session: str = "s", opening: SiloOpening = OPENING) -> None:
        self.hosting, self.session, self._wire, self._first = hosting, session, codec(terms.config, 2**20), (terms, opening)

    def __call__(self, name: str, *arguments: Any, control: bool = False) -> Any:
        head, buffers = pack_call(self._wire, name, self.session, arguments)
        work = self.hosting.control if control else self.hosting.handle
        answer = work("0" * 32, Parcel(head, tuple(buffers)))
        return read_answer(self._wire, name, answer.head, answer.buffers)

    def open(self) -> Any:
        return self("open", *self._first)


def test_a_silo_trains_what_a_host_in_the_cluster_does(tmp_path: Path) -> None:
    config = config_of()
    terms, task = terms_of(config), RoundTask(0, 150.0, clients=3)
    inside = ClientHost(terms, Site(data=own_data(site_of(tmp_path), config.data), client=TASK))
    ours = inside.ready()
    weights = np.full(15, 0.01, dtype=np.float32)
    reports, part = inside.train_and_hand_over(task, weights, [TASK])
    ask = Asking(Hosting(site_of(tmp_path)), terms)
    said, info = ask.open()
    assert said == "answer" and (info.terms, info.silo, info.class_counts) == (ours.terms, ours.silo, ours.class_counts)
    assert info.node == NAME  # and not the machine's name
    assert ask("ping", control=True) == ("answer", None)
    said, (theirs, sent) = ask("train_and_hand_over", task, weights, [TASK])
    assert said == "answer" and [r._replace(seconds=0.0) for r in theirs] == [r._replace(seconds=0.0) for r in reports]
    assert isinstance(sent.total, ExactSum) and isinstance(part.total, ExactSum)
    assert sent.total.data() == part.total.data() and sent.clients == part.clients == [1]
    assert ask("evaluate", weights, [TASK]) == ("answer", inside.evaluate(weights, [TASK]))


def test_the_silos_own_ledger_is_charged_and_decides(tmp_path: Path) -> None:
    site, terms = site_of(tmp_path), terms_of(config_of(**{**PRIVATE, "privacy": PRIVATE["privacy"] | {"max_participations": 1}}))
    ask = Asking(Hosting(site), terms)
    assert ask.open()[0] == "answer"
    _, decision = ask("authorize", 0, 0)
    assert decision.granted == [NAME] and (site.ledger / f"{NAME}.jsonl").read_text().count('"reserve"') == 1
    _, (reports, part) = ask("train_and_hand_over", RoundTask(0, 150.0, clients=3), np.zeros(15, dtype=np.float32), [TASK])
    assert reports[0].status == "done" and reports[0].receipts["record"]["reservation"] == decision.reservations[NAME].id
    assert ask("commit", 0, 0, reports[0].receipts["record"]) == ("answer", None)
    _, refused = ask("authorize", 1, 0)
    assert not refused.granted and "max_participations" in str(refused.refused[NAME])
    _, (figures, head) = ask("spent", None)
    assert (figures.name, figures.charges) == (NAME, 1) and len(head) == 64
    again = Asking(ask.hosting, terms_of(config_of(**PRIVATE)), "later")  # another run on the same records
    assert again.open()[0] == "answer" and again("spent", None)[1][0].charges == 1


def test_an_earlier_start_has_no_part_any_more(tmp_path: Path) -> None:
    hosting, terms = Hosting(site_of(tmp_path)), terms_of(config_of())
    first, second = Asking(hosting, terms, "first"), Asking(hosting, terms, "second")
    assert first("preflight")[0] == "gone"
    first.open()
    assert first("ping", control=True)[0] == "answer"
    second.open()
    assert first("ping", control=True)[0] == first("collect", RoundTask(0, 1.0))[0] == "gone"
    first("close", control=True)  # says nothing of the second
    assert second("ping", control=True)[0] == "answer"
    second("close", control=True)
    assert second("ping", control=True)[0] == "gone"


def refused(directory: Path, terms: Terms, opening: SiloOpening = OPENING, **data: Any) -> tuple[str, str]:
    said, (kind, text) = Asking(Hosting(site_of(directory, **data)), terms, opening=opening).open()
    assert said == "error"
    return kind, text


def test_a_silo_opens_only_what_follows_from_what_it_is_shown(tmp_path: Path) -> None:
    private, plain = terms_of(config_of(**PRIVATE)), terms_of(config_of())
    assert private.plan is not None
    less = replace(private, plan=replace(private.plan, noise_multiplier=0.5))
    for lie in (less, replace(private, plan=None), replace(plain, plan=private.plan)):
        assert "plan" in refused(tmp_path, lie)[1]
    small = PRIVATE | {"privacy": PRIVATE["privacy"] | {"delta": 0.01}}
    kind, text = refused(tmp_path, terms_of(config_of(**small)))  # 50 records
    assert kind == "PolicyRefused" and "privacy.delta" in text and "50" not in text
    assert "calls this silo 'client-0002'" in refused(tmp_path, plain, replace(OPENING, client=ClientTask(2, "client-0002")))[1]
    assert refused(tmp_path, plain, holdout={"fraction": 0.5})[0] == "ConfigError"
    assert refused(tmp_path, terms_of(config_of(data={"source": f"silos:{NAME}", "classes": 4})))[0] == "DataError"
    statistics = {"source": f"silos:{NAME}", "classes": 3, "normalize": {"kind": "standardize_client"}}
    assert "private_statistics" in refused(tmp_path, terms_of(config_of(**PRIVATE, data=statistics)))[1]


def test_what_all_must_agree_on_is_the_runs_and_the_rest_the_sites(tmp_path: Path) -> None:
    agreed = Data.model_validate({"source": "silos:a", "classes": 3, "holdout": {"fraction": 0.3}, "normalize": {"kind": "unit_norm"}})
    found = own_data(site_of(tmp_path), agreed)
    assert (found.source, found.partition.kind, found.holdout.fraction, found.normalize.kind) == ("sklearn:iris", "iid", 0.3, "unit_norm")
    own_data(site_of(tmp_path, holdout={"fraction": 0.3}), agreed)
    with pytest.raises(ConfigError, match="normalize"):
        own_data(site_of(tmp_path, normalize={"kind": "none"}), agreed)


def test_of_an_unexpected_error_no_more_is_told_than_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(tmp_path)
    allow_all(tmp_path / "policy", facts=["records", "evaluation"])
    ask = Asking(Hosting(site), terms_of(config_of(evaluation={"federated": True})))
    ask.open()

    def fail(*_: Any) -> None:
        raise ValueError("the patient in row 7")

    monkeypatch.setattr(ClientHost, "evaluate", fail)
    said, (_, text) = ask("evaluate", np.zeros(15, dtype=np.float32), [TASK])
    assert said == "error" and "ValueError" in text and "row 7" not in text


def test_a_table_without_clients_is_all_the_silos(tmp_path: Path) -> None:
    """The site's file names one .csv; in the cluster it would be one of a folder."""
    draws = np.random.default_rng(0)
    folder = tmp_path / "all"
    folder.mkdir()
    for name in (NAME, "client-0002"):
        rows = [f"{draws.normal():.3f},{draws.normal():.3f},{draws.integers(2)}" for _ in range(30)]
        (folder / f"{name}.csv").write_text("\n".join(["u,v,y", *rows]))
    section = {"label": "y", "classes": 2, "holdout": {"fraction": 0.3, "at": "clients"}}
    run = config_of(data={"source": f"silos:{NAME},client-0002", "classes": 2, "holdout": section["holdout"]})
    alone = Data.model_validate({"source": f"csv:{folder / NAME}.csv", "label": "y", "classes": 2})
    site = site_of(tmp_path).model_copy(update={"data": alone})
    terms = replace(terms_of(run), model=first_model(run.model, (2,), 2, run.seed)[1], exchange="")
    inside = ClientHost(terms, Site(data=Data.model_validate({"source": f"csv:{folder}", **section}), client=TASK))
    assert Asking(Hosting(site), terms).open()[1].silo == inside.ready().silo


@pytest.mark.parametrize("private", [False, True])
def test_a_silo_that_withdraws_says_so_before_its_next_turn(tmp_path: Path, private: bool) -> None:
    """With a ledger that the run holds, and without privacy; a run that begins later is told nothing of the records."""
    config = config_of(**PRIVATE) if private else config_of()
    site, terms = site_of(tmp_path), terms_of(config)
    ask = Asking(Hosting(site), terms)
    _, info = ask.open()
    assert info.silo is not None and not info.withdrawn
    enter("withdraw", site.ledger, NAME, "contract ended")
    if private:
        _, decision = ask("authorize", 0, 0)
        assert not decision.granted and isinstance(decision.refused[NAME], Withdrawal)
    _, (reports, part) = ask("train_and_hand_over", RoundTask(0, 150.0, clients=3), np.zeros(15, dtype=np.float32), [TASK])
    assert [report.status for report in reports] == ["withdrawn"] and "contract ended" in reports[0].error
    assert not part.clients and not part.total.values.any()
    if not private:
        assert ask("evaluate", np.zeros(15, dtype=np.float32), [TASK]) == ("answer", [])
    ask("close", control=True)
    _, later = Asking(Hosting(site), replace(terms, job="later/1")).open()
    assert "contract ended" in later.withdrawn and later.silo is None and later.class_counts is None
