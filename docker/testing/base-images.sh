#!/bin/sh
# Make the images that take the place of a registry's, from Debian's packages and PyPI's. That of Debian is made once.
#
# diptych-testing/debian:12: Debian 12 with Python 3.11, for python:3.11-slim and debian:stable-slim
# diptych-testing/postgres:15: Debian's PostgreSQL, for postgres:17-alpine
# diptych-testing/s3:5: moto's server, for versity/versitygw
set -eu

here=$(dirname "$0")
certificates=/etc/ssl/certs/ca-certificates.crt
python=python3,python3-pip,python3-venv,python-is-python3

if ! docker image inspect diptych-testing/debian:12 >/dev/null 2>&1; then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include="ca-certificates,iptables,$python" bookworm "$root" >&2
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    # Downloads may need an authority that this machine trusts beyond Debian's. uv reads no list but the one it is given.
    cp "$certificates" "$root$certificates"
    tar -C "$root" -c . | docker import --change "ENV SSL_CERT_FILE=$certificates" - diptych-testing/debian:12
fi
# What has not changed is in the engine's cache.
for image in postgres:15 s3:5; do
    docker build --network host --tag "diptych-testing/$image" --file "$here/${image%:*}.Dockerfile" "$here/../.."
done
