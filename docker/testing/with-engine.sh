#!/bin/sh
# Run a command with a Docker engine: the one that answers, or one that starts and ends with the command.
#
#   with-engine.sh docker/testing/base-images.sh
#
# DIPTYCH_DOCKER_ROOT: the folder in which the engine keeps its images between calls; by default /var/lib/diptych-docker.
set -eu

# Debian's docker first: it builds images without the plugin buildx, which a newer one elsewhere may lack.
export PATH="/usr/bin:/usr/sbin:$PATH" DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1
if docker info >/dev/null 2>&1; then
    exec "$@"
fi
for program in docker dockerd docker-compose iptables debootstrap; do
    if ! command -v "$program" >/dev/null; then
        echo "error: $program is missing. On Debian: apt-get install docker.io docker-compose iptables debootstrap" >&2
        exit 1
    fi
done
if [ "$(id -u)" != 0 ]; then
    echo "error: no Docker engine answers, and only root can start one. Start Docker, or run this as root." >&2
    exit 1
fi

root=${DIPTYCH_DOCKER_ROOT:-/var/lib/diptych-docker}
state=$(mktemp -d)
export DOCKER_HOST="unix://$state/docker.sock"
mkdir -p "$root"
# Containers reach each other and this machine, and nothing beyond it. No rule of the machine's firewall is changed.
# It ends with this script, even with one that is killed; an interrupt of the terminal is for the command alone.
setsid setpriv --pdeathsig=TERM dockerd --host "$DOCKER_HOST" --pidfile "$state/pid" \
    --data-root "$root" --exec-root "$state/exec" --bridge none --iptables=false --ip6tables=false >"$state/log" 2>&1 &
engine=$!

end() {
    trap - EXIT
    # It stops its containers first.
    kill "$engine" 2>/dev/null || true
    wait "$engine" 2>/dev/null || true
    rm -rf "$state"
}
trap end EXIT
trap 'exit 130' INT TERM

tries=0
until docker info >/dev/null 2>&1; do
    tries=$((tries + 1))
    if ! kill -0 "$engine" 2>/dev/null || [ "$tries" -gt 60 ]; then
        tail -n 20 "$state/log" >&2
        echo "error: the Docker engine did not start; its last messages are above." >&2
        exit 1
    fi
    sleep 0.5
done
"$@"
