"""Make a bucket in the S3 store, with versions kept: ``python -m cluster.bucket NAME``; no effect where it is."""

from __future__ import annotations

import click

from cluster import commands
from fedray.errors import FedrayError


@click.command()
@click.argument("name")
def bucket(name: str) -> None:
    """Make the bucket NAME; endpoint, region and keys come from the environment (AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION, ...)."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    store = boto3.client("s3")
    try:
        if name not in [found["Name"] for found in store.list_buckets()["Buckets"]]:
            store.create_bucket(Bucket=name)
        store.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    except (BotoCoreError, ClientError) as error:
        raise FedrayError(f"bucket {name}: the store refuses or does not answer ({error}).") from None


if __name__ == "__main__":
    commands.run(bucket)
