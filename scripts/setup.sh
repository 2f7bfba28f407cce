# Sourced by scripts/run and scripts/test: makes .venv with what this machine needs, once, and again when
# pyproject.toml or the GPU changes. Needs nothing but Python 3.11 or later. Usage: setup_venv [EXTRA...]

root="$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "llamagpu needs Python 3.11 or later; none was found (PYTHON=/path/to/python names one)" >&2
    return 1
}

setup_venv() {
    local base extras stamp wanted
    # The way to a venv that is up to date starts no Python: the second run should be quick.
    extras="$*"
    wanted="$root $extras $({ cat "$root/pyproject.toml" /proc/driver/nvidia/version 2>/dev/null || true; } | cksum)"
    stamp="$venv/.llamagpu-setup${extras:+-${extras// /-}}"
    if [ -x "$python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    base="$(find_python)" || return 1
    echo "Setting up $venv (once) ..." >&2
    if ! "$python" -m pip --version >/dev/null 2>&1 && ! "$base" -m venv --clear "$venv" >&2; then
        rm -rf "$venv"
        echo "Python's venv module does not work here (on Debian and Ubuntu: apt install python3-venv)" >&2
        return 1
    fi
    local gpu_extra
    gpu_extra="$("$python" "$root/scripts/which_extra.py")" || gpu_extra=""
    if [ -n "$gpu_extra" ]; then
        echo "An NVIDIA GPU was found: installing the extra $gpu_extra too" >&2
        extras="$extras $gpu_extra"
    fi
    extras="$(echo $extras | tr ' ' ',')"
    if ! "$python" -m pip install --quiet --disable-pip-version-check -e "$root${extras:+[$extras]}" >&2; then
        echo "The packages could not be installed: see above (is there a network?)" >&2
        return 1
    fi
    echo "$wanted" >"$stamp"
}
