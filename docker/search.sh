#!/bin/sh
# The search page and its API, for the project in the current folder.
#
# DIPTYCH_COLLECTION: the collection to search; by default the dataset.
# DIPTYCH_SEARCH_HOST: the address to listen on; by default 127.0.0.1. The port is 8080.
# Where authentication is on, DIPTYCH_PASSWORD is the token too. The variables of as-client.sh are needed.
set -eu
. "$(dirname "$0")/authentication.sh"

[ -z "$DIPTYCH_PASSWORD" ] || export DIPTYCH_SEARCH_TOKEN="$DIPTYCH_PASSWORD"
exec "$(dirname "$0")/as-client.sh" diptych serve --wait --collection "${DIPTYCH_COLLECTION:-dataset}" --port 8080 \
    ${DIPTYCH_SEARCH_HOST:+--host "$DIPTYCH_SEARCH_HOST"} "$@"
