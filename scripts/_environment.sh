# shellcheck shell=bash
# Sourced by the other scripts: goes to the repository root and offers ensure_environment.
# PYTHON names the interpreter that makes .venv (python3 if unset); an existing .venv is kept.

script=$0
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null || exit

say() { printf '==> %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$1" >&2
    shift
    [[ $# == 0 ]] || printf '       %s\n' "$@" >&2
    exit 1
}

# Make .venv and install the pinned requirements, unless that has been done.
ensure_environment() {
    # The stamp is written last and says what is installed and where, so that an interrupted run, a
    # changed pin and a moved folder are all seen.
    local stamp=.venv/installed wanted
    wanted=$(pwd && cat requirements.txt pyproject.toml)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && usable .venv/bin/python; then
        return
    fi
    rm -f "$stamp"
    usable .venv/bin/python || make_venv
    say "installing the pinned requirements into .venv (about 1.2 GB, a minute or more)"
    pip_install -r requirements.txt
    pip_install --no-build-isolation --no-deps -e .
    printf '%s\n' "$wanted" >"$stamp"
}

usable() { "$1" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

make_venv() {
    local python=${PYTHON:-python3} version
    local choose="Install Python 3.11 or newer, or name one: PYTHON=python3.12 $script"
    command -v "$python" >/dev/null || die "$python was not found. $choose"
    version=$("$python" -c 'import platform; print(platform.python_version())') ||
        die "$python does not run. $choose"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is Python $version, but fedjax-sim needs 3.11 or newer. $choose"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python (Python $version) cannot make virtual environments." \
            "On Debian and Ubuntu install python3-venv, then run $script again."
    say "making .venv with Python $version"
    "$python" -m venv --clear .venv || die "$python -m venv failed; its message stands above."
}

# Run pip quietly; when it fails, show the end of its log and what can be done.
pip_install() {
    local log=.venv/pip.log offline
    .venv/bin/python -m pip install --no-input --disable-pip-version-check "$@" \
        </dev/null >"$log" 2>&1 && return
    tail -n 12 "$log" >&2
    offline='connection (broken|refused|error|timed out)|connection to .* timed out|new connection'
    offline+='|name resolution|getaddrinfo|unreachable|proxy ?error|ssl ?error|certificate'
    offline+='|(connect|read) ?timeout|max retries|from versions: none'
    if grep -Eiq "$offline" "$log"; then
        die "pip could not reach a package registry; its last lines stand above." \
            "Check the network, the proxy and pip's index settings, then run $script again." \
            "Or fill .venv by hand, for example from a folder of wheels:" \
            "  .venv/bin/pip install --no-index --find-links WHEELS -r requirements.txt"
    fi
    die "pip failed; its last lines stand above, all of them in $log."
}
