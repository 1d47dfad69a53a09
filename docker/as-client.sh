#!/bin/sh
# Run a command as a client of the servers: where authentication is on, with the password.
#
#   as-client.sh prefect deploy --all
#
# PREFECT_API_URL, MLFLOW_TRACKING_URI: the servers.
# DIPTYCH_AUTHENTICATION, DIPTYCH_PASSWORD: see authentication.sh.
set -eu
. "$(dirname "$0")/authentication.sh"
: "${PREFECT_API_URL:?is empty. Set it to the address of the Prefect server, which ends in /api}"

export DO_NOT_TRACK=1
if [ -n "$DIPTYCH_PASSWORD" ]; then
    export PREFECT_API_AUTH_STRING="admin:$DIPTYCH_PASSWORD"
    export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD="$DIPTYCH_PASSWORD"
fi
exec "$@"
