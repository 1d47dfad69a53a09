#!/bin/sh
# PostgreSQL as its official image starts it: a new database has the user and the password of the environment.
#
# POSTGRES_USER, POSTGRES_PASSWORD: the superuser of a new database.
# PGDATA: the folder of the database.
set -eu

as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    install --directory --owner=postgres --group=postgres --mode=0700 "$PGDATA"
    password=$(as_postgres mktemp)
    printf '%s' "$POSTGRES_PASSWORD" >"$password"
    as_postgres initdb --username="$POSTGRES_USER" --pwfile="$password" --encoding=UTF8 --locale=C.UTF-8 \
        --auth-local=trust --auth-host=scram-sha-256
    rm "$password"
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -c 'listen_addresses=*'
