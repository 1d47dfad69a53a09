#!/bin/sh
# Install the packages of requirements.lock that the image needs, with the versions and hashes of the lock.
#
# VIRTUAL_ENV: the environment to install into.
# TORCH_BACKEND: the device that torch is built for, as uv knows it; empty: the builds of the lock.
set -eu

constraints=requirements.lock
if [ -n "${TORCH_BACKEND:-}" ]; then
    # A build for another device has the same version, and a hash that the lock does not know.
    constraints=$(mktemp)
    awk '/^[a-z]/ { built = /^torch(vision)?==/; if (built) print $1 } !built' requirements.lock >"$constraints"
    export UV_TORCH_BACKEND="$TORCH_BACKEND"
fi
# setuptools, which builds the project itself, is from the lock too.
exec uv pip install --compile-bytecode --requirements pyproject.toml --extra stack --extra cluster setuptools \
    --constraint "$constraints"
