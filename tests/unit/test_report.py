"""The report of a run: whole, self-contained, and written whatever the run left behind."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedray.cli import cli
from fedray.config import Config
from fedray.configfile import build_config, dump_config
from fedray.privacy.account import Account
from fedray.privacy.recordplan import plan_record
from fedray.privacy.statement import Guarantee, privacy_statement, statement_markdown
from fedray.reporting.report_html import page
from fedray.reporting.report_page import write_report


def config(private: bool) -> Config:
    training = {"sampling_rate": 0.25, "steps": 2, "expected_batch": 30} if private else {"batch_size": 8, "steps": 2}
    privacy = {"regime": "record", "noise_multiplier": 1.1, "delta": 1e-4} if private else {"regime": "none"}
    raw = {"name": "trial", "rounds": 3, "data": {"source": "sklearn:digits"}, "model": {"kind": "softmax"}, "training": training}
    return build_config({**raw, "privacy": privacy, "tracking": {"uri": "http://me:secret@host:5000"}})


def finished(folder: Path, private: bool = True, status: str = "completed") -> Path:
    """A run's directory as a run leaves it."""
    folder.mkdir()
    given = config(private)
    (folder / "config.yaml").write_text(dump_config(given))
    rows = [{"round": r, "time": 1.7e9 + r, "metrics": {"eval/accuracy": 0.1 * r, "privacy/epsilon": 1.0 * r}} for r in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "partition.json").write_text(
        json.dumps({"clients": 2, "rows": [{"client": c, "records": 9} for c in "ab"], "model": {"parameters": 650}})
    )
    summary: dict[str, Any] = {
        "status": status,
        "error": "the <cluster> burnt down" if status == "failed" else None,
        "name": "trial",
        "rounds": 3,
        "planned_rounds": 3,
        "model_sha256": "ab" * 32,
        "final": {"eval/accuracy": 0.3},
        "best": {"eval/accuracy": 0.31, "round": 2},
        "privacy": {"unit": None, "regime": "none", "epsilon": None},
        "faults": {"actor_deaths": 4},
        "performance": {"seconds_per_round": 0.25},
        "mlflow": {"tracking_uri": "http://me:secret@host:5000", "run_id": "r1"},
        "fedray": "0.1.0",
    }
    if private:
        plan = plan_record(given)
        with Account.open_run(folder / "ledger", dict.fromkeys("ab", plan), "run/1") as account:
            account.authorize(0, 0, ["a", "b"])
            statement = privacy_statement(given, [Guarantee("record", [plan], account.groups(), account.figures())], account.head, 1)
        (folder / "privacy_statement.json").write_text(json.dumps(statement))
        (folder / "privacy_statement.md").write_text(statement_markdown(statement))
        summary["privacy"] = statement["summary"]
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class _Links(HTMLParser):
    """Everything that a browser would load, and whether all elements end."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        assert tag not in ("script", "link", "iframe", "form")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def looked_at(html: Path) -> str:
    text = html.read_text()
    links = _Links()
    links.feed(text)
    assert not links.open
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in links.loads)
    addresses = set(re.findall(r"https?://[^\s\"'<]*", text)) - {"http://www.w3.org/1999/xlink", "http://me:***@host:5000"}
    assert not addresses, addresses
    assert {load.removeprefix("#") for load in links.loads if load.startswith("#")} <= set(links.ids)
    assert len(links.ids) == len(set(links.ids))
    return text


def test_a_private_run_is_told_whole(tmp_path: Path) -> None:
    html, markdown = write_report(finished(tmp_path / "run"))
    assert (html, markdown) == (tmp_path / "run" / "report.html", tmp_path / "run" / "report.md")
    text, page_ = markdown.read_text(), looked_at(html)
    statement = json.loads((tmp_path / "run" / "privacy_statement.json").read_text())
    for phrase in (
        "**accuracy 0.3** · epsilon",
        "Completed all 3 rounds.",
        statement["guarantee"]["statement"],
        "Not covered",
        statement["ledger"]["head_sha256"],
        "whole, ",
        "the figures of 2 clients follow from",
        "| actor deaths | 4 |",
        "sklearn:digits",
        "18 training records, 9 to 9 a client",
        "The best accuracy of a round was 0.3100, in round 2.",
        "Not audited",
        "noise_multiplier: 1.1",
        "dp-accounting",
    ):
        assert phrase in text, phrase
    assert "me:secret" not in text
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert pictures == [f"report_files/{name}.svg" for name in ("accuracy", "accuracy_vs_epsilon", "epsilon", "budget_by_client")]
    assert page_.count("<svg") == page_.count("<figcaption>") == len(pictures)
    for picture in pictures:
        assert (markdown.parent / picture).read_text().startswith("<?xml")
        assert (markdown.parent / picture).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_page_suits_phones_dark_screens_and_paper(tmp_path: Path) -> None:
    text = looked_at(write_report(finished(tmp_path / "run"))[0])
    for words in (
        'name="viewport" content="width=device-width',
        "prefers-color-scheme: dark",
        "@media print",
        'class="config"',
        "currentColor",
    ):
        assert words in text, words


def test_the_head_says_when_by_whom_and_with_what_a_run_was_made(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    origin = {"command": "fedray run trial.yaml seed=3", "host": "box", "operator": "Ada", "commit": "c0ffee", "clean": True}
    again = {**origin, "command": "fedray run trial.yaml seed=3 --resume"}
    starts = [{"number": 1, "time": 1.7e9, "after": 0, "origin": origin}, {"number": 2, "time": 1.7e9 + 60, "after": 2, "origin": again}]
    (run / "starts.jsonl").write_text("".join(json.dumps(s) + "\n" for s in starts))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": 3, "time": 1.7e9 + 3700, "metrics": {"eval/accuracy": 0.3, "privacy/epsilon": 3.0}}) + "\n")
    text = write_report(run)[1].read_text()
    first = text.partition("## ")[0]
    for words in (
        "2023-11-14 22:13:20 UTC, 1 h 1 min from the first start to the end",
        "| started again | 2023-11-14 22:14:20 UTC after round 2 |",
        "| operator | Ada, on box |",
        "| command | `fedray run trial.yaml seed=3` |",
        "| command | `fedray run trial.yaml seed=3 --resume` |",
        "| commit | `c0ffee`, no tracked file changed |",
        "torch ",
    ):
        assert words in first, words
    assert first.index("accuracy at the end") < first.index("epsilon for one record")
    (run / "starts.jsonl").write_text(json.dumps({**starts[0], "origin": {"host": "box"}}) + "\n")
    assert "| operator | withheld, or not known, on box |" in write_report(run)[1].read_text()


def test_the_twin_without_privacy_and_guessing_stand_beside_the_result(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    twin = finished(tmp_path / "run-2", private=False)
    (twin / "config.yaml").write_text((run / "config.yaml").read_text().replace("regime: record", "regime: none"))
    summary = json.loads((twin / "summary.json").read_text())
    (twin / "summary.json").write_text(json.dumps({**summary, "final": {"eval/accuracy": 0.32}}))
    (run / "class_results.json").write_text(json.dumps({"labels": ["a", "b"], "confusion": [[2, 1], [1, 0]], "round": 3}))
    html, markdown = write_report(run)
    text = markdown.read_text()
    assert "| same config without privacy | accuracy 0.3200 (run-2), 0.0200 more; the guarantee does not cover that run |" in text
    assert "| always the most frequent class | accuracy 0.7500 |" in text
    assert "run-2, without privacy" in looked_at(html)


def test_a_void_claim_stands_before_the_epsilon(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["privacy"] |= {"claim": "void", "claim_reasons": ["the seed is known"]}
    (run / "summary.json").write_text(json.dumps(summary))
    first = write_report(run)[1].read_text().partition("## ")[0]
    assert first.index("**claim void") < first.index("epsilon")
    assert "| claim | void: the seed is known |" in first


def test_what_the_optimiser_does_not_use_is_not_listed(tmp_path: Path) -> None:
    text = write_report(finished(tmp_path / "run"))[1].read_text()
    assert "betas" not in text and "nesterov" not in text
    assert "lr" in text


def test_a_run_that_writes_its_own_report_does_not_say_that_its_ledger_was_checked(tmp_path: Path) -> None:
    text = write_report(finished(tmp_path / "run"), verify=False)[1].read_text()
    assert "checked for this report" not in text
    assert "`fedray ledger verify run` checks it" in text


def test_a_changed_ledger_is_said_so(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    book = run / "ledger" / "records.jsonl"
    book.write_text(book.read_text().replace('"round":0', '"round":7', 1))
    text = write_report(run)[1].read_text()
    assert "**Not verified:**" in text
    assert "the line was changed" in text


def test_charges_that_tell_secret_cohorts_are_left_out(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    path = run / "privacy_statement.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reveals_cohorts": True}))
    text = write_report(run)[1].read_text()
    assert "2 checks passed" in text
    assert "charges to" not in text


def test_a_failed_run_and_one_without_privacy(tmp_path: Path) -> None:
    html, markdown = write_report(finished(tmp_path / "run", private=False, status="failed"))
    text = markdown.read_text()
    assert "Failed after 3 of 3 rounds: the <cluster> burnt down" in text
    assert "No guarantee of differential privacy is claimed for this run." in text
    assert "the &lt;cluster&gt; burnt down" in looked_at(html)


def test_a_stopped_run_says_so_before_its_result_and_what_earlier_runs_spent(tmp_path: Path) -> None:
    run = finished(tmp_path / "run-2", status="budget_reached")
    note = {"number": 1, "time": 1.7e9, "spent_before": {"record": 1.0}, "output": "/runs/run-2"}
    (run / "starts.jsonl").write_text(json.dumps(note) + "\n")
    first = write_report(run)[1].read_text().partition("## ")[0]
    assert first.startswith(
        "# run-2\n\n**Stopped by its budget after 3 of 3 rounds**; 1.00 of 2.23 was spent by earlier runs.\n\n**accuracy 0.3"
    )
    assert "regime record; 1.00 of 2.23 was spent by earlier runs |" in first


@pytest.mark.parametrize("private", [True, False])
def test_what_clients_say_of_their_errors_is_left_out_where_records_are_private(tmp_path: Path, private: bool) -> None:
    run = finished(tmp_path / "run", private)
    lines = [
        {
            "round": 2,
            "time": 1.7e9 + i,
            "kind": "client",
            "what": f"round 2: client {c} on n failed: KeyError: 'Ann'",
            "client": c,
            "node": "n",
        }
        for i, c in enumerate(("north", "south"))
    ]
    lines.append({"round": 2, "time": 1.7e9, "kind": "node", "what": "node n left"})
    (run / "faults.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report(run)[1].read_text()
    assert ("Ann" in text) != private
    assert ("it may hold private values" in text) == private
    assert "round 2: client north on n failed" in text and "The same holds for 1 more clients: south." in text
    assert "node n left" in text


def test_an_interrupted_run_without_summary(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    for name in ("summary.json", "privacy_statement.json", "privacy_statement.md", "partition.json"):
        (run / name).unlink()
    html, markdown = write_report(run, tmp_path / "out.html")
    text = markdown.read_text()
    assert "Unfinished: there is no summary.json" in text
    assert "There is no privacy statement" in text
    assert "whole, " in text
    assert "metrics.jsonl has 3 rounds" in text
    assert "**accuracy 0.3 after round 3** · epsilon 3 after round 3, for which nothing is claimed yet" in text
    assert (html, markdown) == (tmp_path / "out.html", tmp_path / "out.md")
    looked_at(html)


def test_an_audit_is_shown_beside_epsilon_but_not_what_is_private(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    (run / "audit").mkdir()
    attacks = [
        {"what": "canaries", "lower": 0.5, "estimate": 0.9, "epsilon": 1.4, "verdict": "consistent", "private": False},
        {"what": "membership", "lower": 0.77, "estimate": None, "epsilon": 1.4, "verdict": "consistent", "private": True},
        {"what": "unmarked", "lower": 0.66, "estimate": None, "epsilon": 1.4, "verdict": "consistent"},
    ]
    found = {"checks": [{"what": "sensitivity", "verdict": "holds"}], "attacks": attacks, "faults": ["something is off"]}
    (run / "audit" / "audit.json").write_text(json.dumps(found))
    text = write_report(run)[1].read_text()
    assert "| canaries | 0.5 | 0.9 | 1.4 | consistent |" in text
    assert "| sensitivity |  |  |  | holds |" in text
    assert "something is off" in text
    assert "0.77" not in text and "0.66" not in text
    assert "Left out, because their figures may come from private records: membership, unmarked." in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "is no run's directory" in result.stderr
    result = CliRunner().invoke(cli, ["report", str(finished(tmp_path / "run")), "--output", str(tmp_path / "x.pdf")])
    assert result.exit_code == 2
    assert "ends in .html" in result.stderr


def test_markdown_becomes_html() -> None:
    text = page("a & b", "# One\n\n| a | b\\|c |\n| --- | --- |\n| **x** | `<y>` |\n\n- 1\n- 2\n\nword\n\n```\n# <no>\n```\n", str.__add__)
    assert "<title>a &amp; b</title>" in text
    assert "<h1>One</h1>" in text
    assert "<th>b|c</th>" in text
    assert "<td><strong>x</strong></td><td><code>&lt;y&gt;</code></td>" in text
    assert "<ul><li>1</li><li>2</li></ul>" in text
    assert "<p>word</p>" in text
    assert "<pre><code># &lt;no&gt;</code></pre>" in text
