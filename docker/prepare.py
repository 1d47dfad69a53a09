"""Creation of the missing databases and buckets of the stack; those that exist stay as they are.

The environment gives the addresses of PostgreSQL and S3, by the variables that their own clients read.
"""

from __future__ import annotations

import boto3
import psycopg2
from psycopg2 import sql

DATABASES = ("mlflow", "mlflow_auth", "prefect")
BUCKETS = ("mlflow", "dvc")


def create_databases() -> None:
    """Create missing databases without tables: the servers create their own."""
    connection = psycopg2.connect(dbname="postgres")
    # PostgreSQL creates no database within a transaction.
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        present = {name for (name,) in cursor.fetchall()}
        for name in DATABASES:
            if name not in present:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    connection.close()


def create_buckets() -> None:
    """Create missing buckets, which are private by S3's default."""
    client = boto3.client("s3")
    present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in present:
            client.create_bucket(Bucket=name)


if __name__ == "__main__":
    create_databases()
    create_buckets()
