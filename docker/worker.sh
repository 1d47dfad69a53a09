#!/bin/sh
# A Prefect worker: takes runs from a work pool, and runs them on the project in the current folder.
#
# DIPTYCH_POOL: the work pool, which is made where it is missing; diptych.
# PREFECT_WORKER_WEBSERVER_HOST, PREFECT_WORKER_WEBSERVER_PORT: where /health says whether it is alive; 127.0.0.1, 8080.
# And what as-client.sh needs.
set -eu

export PREFECT_WORKER_WEBSERVER_HOST="${PREFECT_WORKER_WEBSERVER_HOST:-127.0.0.1}"
# One run works in a project at a time; a second one is taken to be told so.
exec "$(dirname "$0")/as-client.sh" \
    prefect worker start --type process --pool "${DIPTYCH_POOL:-diptych}" --limit 2 --with-healthcheck "$@"
