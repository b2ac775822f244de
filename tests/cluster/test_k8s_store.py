"""The pods' environment leads runs and ledgers to the store, whose bucket the manifests' own job makes."""

from __future__ import annotations

import os
import subprocess
import sys

import boto3
import pytest
from manifests import Document, documents, title
from objectstore import object_store

from fedray.stores.object_path import ObjectPath
from fedray.stores.s3 import Bucket

pytestmark = pytest.mark.slow


def of(docs: list[Document], name: str) -> Document:
    return next(doc for doc in docs if title(doc) == name)


def test_the_environment_leads_to_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = documents("overlays/cpu")
    job = of(docs, "Job/bucket")["spec"]["template"]["spec"]["containers"][0]
    environment = of(docs, "ConfigMap/fedray-environment")["data"]
    with object_store() as (_, wire):
        here = f"http://127.0.0.1:{wire.port}"
        for variables in ({v["name"]: v["value"] for v in job["env"]}, environment):
            for name, value in variables.items():
                if name.startswith("AWS_"):
                    monkeypatch.setenv(name, value.replace("http://store:9000", here))
        for _ in range(2):
            subprocess.run([sys.executable, "-c", *job["args"]], env=os.environ, check=True, timeout=600)
        store = boto3.client("s3")
        assert store.get_bucket_versioning(Bucket="fedray")["Status"] == "Enabled"

        run = f"{environment['FEDRAY_OUTPUT']}/digits"
        bucket = Bucket(ObjectPath.parse(run))
        bucket.put("summary.json", b"{}")
        bucket.create("ledger/records.jsonl", b"{}")
        kept = [found["Key"] for found in store.list_objects_v2(Bucket="fedray")["Contents"]]
        assert kept == ["runs/digits/ledger/records.jsonl", "runs/digits/summary.json"]
