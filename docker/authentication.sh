# shellcheck shell=sh
# The other scripts read this file. DIPTYCH_AUTHENTICATION decides whether the servers ask for a password.
#
# on (the default): DIPTYCH_PASSWORD is the password of the user admin; without one nothing starts.
# off: everybody who reaches the servers may use them. DIPTYCH_PASSWORD is empty from here on.
case "${DIPTYCH_AUTHENTICATION:-on}" in
on) : "${DIPTYCH_PASSWORD:?is empty. Set it, or DIPTYCH_AUTHENTICATION=off}" ;;
off) DIPTYCH_PASSWORD= ;;
*)
    echo "DIPTYCH_AUTHENTICATION is '$DIPTYCH_AUTHENTICATION'; it may be on or off." >&2
    exit 2
    ;;
esac
