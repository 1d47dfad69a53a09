"""Makes the databases and buckets of the stack that are missing; what is there stays as it is.

Where PostgreSQL and S3 are stands in the environment, by the names that their own clients read.
"""

from __future__ import annotations

import boto3
import psycopg2
from psycopg2 import sql

DATABASES = ("mlflow", "mlflow_auth", "prefect")
BUCKETS = ("mlflow", "dvc")


def create_databases() -> None:
    """Empty: the servers make their tables."""
    connection = psycopg2.connect(dbname="postgres")
    # PostgreSQL makes no database within a transaction.
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        present = {name for (name,) in cursor.fetchall()}
        for name in DATABASES:
            if name not in present:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    connection.close()


def create_buckets() -> None:
    """Private: S3's default."""
    client = boto3.client("s3")
    present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in present:
            client.create_bucket(Bucket=name)


if __name__ == "__main__":
    create_databases()
    create_buckets()
