#!/bin/sh
# A Prefect worker: takes runs from a work pool, one at a time, and runs them on the project in the current folder.
#
# PREFECT_API_URL, MLFLOW_TRACKING_URI: the servers.
# DIPTYCH_POOL: the work pool, which is made where it is missing; diptych.
# DIPTYCH_AUTHENTICATION, DIPTYCH_PASSWORD: see authentication.sh.
# PREFECT_WORKER_WEBSERVER_HOST, PREFECT_WORKER_WEBSERVER_PORT: where /health says whether it is alive; 127.0.0.1, 8080.
set -eu
. "$(dirname "$0")/authentication.sh"
: "${PREFECT_API_URL:?is empty. Set it to the address of the Prefect server, which ends in /api}"

export PREFECT_WORKER_WEBSERVER_HOST="${PREFECT_WORKER_WEBSERVER_HOST:-127.0.0.1}"
export DO_NOT_TRACK=1
if [ -n "$DIPTYCH_PASSWORD" ]; then
    export PREFECT_API_AUTH_STRING="admin:$DIPTYCH_PASSWORD"
    export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD="$DIPTYCH_PASSWORD"
fi
# A workspace is for one run at a time; a second one would only wait in it.
exec prefect worker start --type process --pool "${DIPTYCH_POOL:-diptych}" --limit 1 --with-healthcheck "$@"
