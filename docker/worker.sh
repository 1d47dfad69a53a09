#!/bin/sh
# A Prefect worker: takes runs from a work pool, and runs them on the project in the current folder.
#
# DIPTYCH_POOL: the work pool, which is created if it is missing; by default diptych.
# PREFECT_WORKER_WEBSERVER_HOST, PREFECT_WORKER_WEBSERVER_PORT: the address of /health; by default 127.0.0.1 and 8080.
# RAY_ADDRESS: HOST:PORT of a Ray cluster that runs use; this machine becomes a node of it that works on no shards.
# The variables of as-client.sh are needed too.
set -eu

[ -z "${RAY_ADDRESS:-}" ] || ray start --address="$RAY_ADDRESS" --num-cpus=0 --disable-usage-stats >&2

export PREFECT_WORKER_WEBSERVER_HOST="${PREFECT_WORKER_WEBSERVER_HOST:-127.0.0.1}"
# One run works in a project at a time. The worker takes a second one, which learns that it has to wait or end.
exec "$(dirname "$0")/as-client.sh" \
    prefect worker start --type process --pool "${DIPTYCH_POOL:-diptych}" --limit 2 --with-healthcheck "$@"
