#!/bin/sh
# The MLflow server: runs and versions in PostgreSQL, artifacts in S3, which clients reach only through this server.
#
# PGHOST, PGPORT, PGUSER, PGPASSWORD: PostgreSQL, as libpq knows it; the databases are mlflow and mlflow_auth.
# AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY: S3; the bucket is mlflow.
# MLFLOW_HOST, MLFLOW_PORT: the address that it listens at; by default 127.0.0.1 and 5000.
# MLFLOW_SERVER_ALLOWED_HOSTS: the host names for which it answers, each with its port; by default this machine's.
# DIPTYCH_AUTHENTICATION, DIPTYCH_PASSWORD: see authentication.sh.
# MLFLOW_FLASK_SERVER_SECRET_KEY: the key that signs its forms, where authentication is on.
set -eu
here=$(dirname "$0")
. "$here/authentication.sh"

# The password is not in the address, so it is in no log and no list of processes: libpq takes it from PGPASSWORD.
export MLFLOW_BACKEND_STORE_URI=postgresql:///mlflow
export MLFLOW_ARTIFACTS_DESTINATION=s3://mlflow
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
# MLflow's job runners are for the evaluation of language models; here these processes would be idle.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

if [ -n "$DIPTYCH_PASSWORD" ]; then
    : "${MLFLOW_FLASK_SERVER_SECRET_KEY:?is empty. Set it, or DIPTYCH_AUTHENTICATION=off}"
    export MLFLOW_AUTH_CONFIG_PATH="$here/mlflow-auth.ini"
    export MLFLOW_AUTH_ADMIN_USERNAME=admin MLFLOW_AUTH_ADMIN_PASSWORD="$DIPTYCH_PASSWORD"
    set -- --app-name basic-auth
fi
exec mlflow server "$@"
