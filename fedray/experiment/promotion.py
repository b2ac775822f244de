"""Gives a run's registered model an alias, once the run's statement, ledger, audit and signed receipts have been verified.

What is checked here is what the run's files and ledgers say. The MLflow server itself lets everyone who may write to it set any alias.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.errors import FedrayError
from fedray.privacy.ledger.compare import unread
from fedray.privacy.ledger.inspect import verify_all
from fedray.reporting.verifiedrun import is_signed, verify_run
from fedray.rounding import as_given, rounded_up
from fedray.runfiles import RunFiles
from fedray.storage import read_json
from fedray.tracking.journal import State
from fedray.tracking.mlflow_store import connect, unmasked
from fedray.whole import check

#: Tag of a version that was given an alias by :func:`promote`: what was verified.
TAG = "fedray.promoted"


class NotPromoted(FedrayError):
    """The alias was not set; the sentence says why."""


def promote(run: Path, alias: str = "champion", without_audit: bool = False, keys: Path | None = None) -> str:
    """Set an alias of the version that a run has registered in MLflow.

    Args:
        run: the run's output directory.
        alias: to set.
        without_audit: whether a run that was not audited may have it; an audit that contradicts the claim never passes.
        keys: directory of the public keys of who signed; a run with receipts is not promoted without them.

    Returns:
        One sentence: which version has the alias now, and what was verified.

    Raises:
        NotPromoted: the run did not end, claims no privacy or a void one, was not audited or not with success, is not as it was signed, or
            has no registered version of this model.
        FedrayError: a file of the run is damaged, or a figure does not follow from the ledger's entries.
        TrackingError: MLflow cannot be used.
    """
    files = RunFiles(run)
    check(files)
    summary = files.read_summary() or {}
    private = summary.get("privacy") or {}
    _check_ended(run, summary, private)
    if not files.model.exists():  # that it is the summary's has been checked
        raise NotPromoted(f"{run}: has no model.safetensors; bring the run's own files back.")
    hidden = unread(run)
    if hidden:
        raise NotPromoted(
            f"{run}: the ledger '{hidden[0]}' cannot be read from here, so not all figures can be recomputed; promote where all ledgers can be read."
        )
    for _ in verify_all(run):  # raises where a figure does not follow from the entries
        pass
    audited = _audited(run, files, without_audit) + _signed(run, keys)
    state = State.load(run)
    if state is None or not state.register_as or "version" not in state.model:
        raise NotPromoted(
            f"{run}: has no version of a registered model in MLflow; set tracking.register_as, and send it with `fedray sync {run}`."
        )
    name, version = state.register_as, state.model["version"]
    epsilon = f"epsilon {rounded_up(private['epsilon'])} at delta {as_given(private.get('delta'))}"
    verified = f"statement and ledger verified ({epsilon}), {audited}"

    def set_alias(client: Any) -> None:
        found = client.get_model_version(name, version)
        if found.tags.get("model_sha256") != summary["model_sha256"]:
            raise NotPromoted(
                f"{run}: version {version} of '{name}' in MLflow has other weights than this run; send it again with `fedray sync {run}`."
            )
        client.set_model_version_tag(name, version, TAG, verified)
        client.set_registered_model_alias(name, alias, version)

    connect(unmasked(state.tracking_uri), set_alias)
    return f"'{name}' version {version} is @{alias} now: {verified}."


def _signed(run: Path, keys: Path | None) -> str:
    """What the verification of a signed run has found, as the rest of a sentence; empty for others."""
    if not is_signed(run):
        return ""
    if keys is None:
        raise NotPromoted(
            f"{run}: is signed; give the public keys of clients and driver with --keys, so that the signatures can be verified."
        )
    faults = verify_run(run, keys, remade=True).faults
    if faults:
        more = "" if len(faults) == 1 else f", and {len(faults) - 1} more; see fedray verify"
        raise NotPromoted(f"{run}: is not as it was signed ({faults[0]}{more}); do not use this model.")
    return ", receipts and files as they were signed"


def _check_ended(run: Path, summary: Mapping[str, Any], private: Mapping[str, Any]) -> None:
    status = summary.get("status")
    if status not in ("completed", "budget_reached"):
        was = "has no summary.json, so it has not ended" if status is None else f"ended as '{str(status).replace('_', ' ')}'"
        raise NotPromoted(f"{run}: {was}; only a run that was completed, or stopped by its budget, can be promoted.")
    if private.get("epsilon") is None:
        raise NotPromoted(f"{run}: claims no privacy, so there is nothing to verify; set the alias in MLflow itself.")
    if private.get("claim") != "valid":
        reasons = "; ".join(private.get("claim_reasons") or ["no reason is given"])
        raise NotPromoted(f"{run}: its privacy claim is void ({reasons}); train without that, and promote that run.")


def _audited(run: Path, files: RunFiles, without: bool) -> str:
    """What the run's audit has found, as a clause."""
    path = run / "audit" / "audit.json"
    found = read_json(path)
    if found is None:
        if without:
            return "not audited"
        raise NotPromoted(f"{run}: was not audited; run `fedray audit {run}`, or promote it with --without-audit.")
    if found.get("faults"):
        raise NotPromoted(f"{run}: its audit contradicts the claim ({'; '.join(map(str, found['faults']))}); do not use this model.")
    checks, attacks = found.get("checks") or [], found.get("attacks") or []
    if not checks and not attacks:
        raise NotPromoted(f"{run}: its audit has tried nothing; run `fedray audit {run}` for all that the run allows.")
    if path.stat().st_mtime < files.summary.stat().st_mtime:
        raise NotPromoted(f"{run}: was audited before it ended; run `fedray audit {run}` again.")
    return f"audit passed with {len(checks)} checks and {len(attacks)} attacks"
