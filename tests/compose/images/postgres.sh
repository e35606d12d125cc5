#!/bin/sh
# The official image's first start, as far as the stand needs it: a cluster with one user, its password from a file, and
# one database.
set -eu

if [ ! -e "$PGDATA/PG_VERSION" ]; then
    initdb --auth=scram-sha-256 --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --encoding=UTF8 >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -j postgres >/dev/null
fi
exec postgres -c listen_addresses='*'
