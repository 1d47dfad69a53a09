#!/bin/sh
# The Prefect server: API, pages and scheduler, with all data in PostgreSQL except the leases of active runs.
#
# PGHOST, PGPORT, PGUSER, PGPASSWORD: PostgreSQL, as libpq knows it; the database is prefect.
# PREFECT_HOME: a folder that outlasts a restart, for the leases; by default ~/.prefect.
# PREFECT_SERVER_API_HOST, PREFECT_SERVER_API_PORT: the address that it listens at; by default 127.0.0.1 and 4200.
# DIPTYCH_AUTHENTICATION, DIPTYCH_PASSWORD: see authentication.sh.
set -eu
. "$(dirname "$0")/authentication.sh"

# The password is not in the address, so it is in no log: the driver takes it from PGPASSWORD.
export PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg:///prefect
export PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
# By default leases are in memory: after a restart a second run would start while the first one works.
export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem

if [ -n "$DIPTYCH_PASSWORD" ]; then
    # The server's own scheduler is a client of its API.
    export PREFECT_SERVER_API_AUTH_STRING="admin:$DIPTYCH_PASSWORD" PREFECT_API_AUTH_STRING="admin:$DIPTYCH_PASSWORD"
fi
exec prefect server start "$@"
