# Shared by tools/quickstart and tools/test: a Python, a virtual environment, an install that runs only when it has to.
# Sourced by bash with `set -euo pipefail`; ROOT is the repository.

VENV="${KR_VENV:-$ROOT/.venv}"

say() { printf '\n== %s\n' "$*"; }

fail() { printf '\n%s: %s\n' "$(basename "$0")" "$1" >&2; shift; for line in "$@"; do printf '    %s\n' "$line" >&2; done; exit 1; }

python_fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

# The first Python of 3.11 to 3.13; 3.11 first, because the versions in constraints.txt are tested on it.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
    if python_fits "$candidate"; then printf '%s\n' "$candidate"; return; fi
  done
  fail "no Python 3.11, 3.12 or 3.13 found." \
    "Found: $(python3 --version 2>&1 || true)" \
    "Install one (on Debian or Ubuntu: apt-get install python3.11 python3.11-venv), or name it: PYTHON=/path/to/python3.11 $0"
}

make_venv() {
  if [ -e "$VENV" ]; then
    python_fits "$VENV/bin/python" || fail "$VENV is not a working virtual environment of Python 3.11 to 3.13." "Remove it and run again: rm -r '$VENV'"
    return
  fi
  local python
  python="$(find_python)"
  "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
    fail "$python has no venv module." "On Debian and Ubuntu it is a package of its own: apt-get install python3-venv"
  say "creating $VENV with $("$python" --version 2>&1)"
  "$python" -m venv "$VENV" || fail "could not create $VENV."
}

# install EXTRA: the package in editable mode with one extra, at the tested versions. A stamp makes a second run free.
install() {
  local extra="$1" stamp log key known
  make_venv
  key="$("$VENV/bin/python" - "$ROOT" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
text = "".join((root / name).read_text() for name in ("setup.cfg", "setup.py", "constraints.txt"))
print(hashlib.sha256(f"{root}{sys.version}{text}".encode()).hexdigest())
PY
)"
  for known in "$extra" dev; do  # dev holds all other extras
    if [ "$(cat "$VENV/.keras-ranking-$known" 2>/dev/null || true)" = "$key" ]; then
      say "[$extra] is installed in $VENV"
      return
    fi
  done
  stamp="$VENV/.keras-ranking-$extra"
  log="$VENV/install-$extra.log"
  say "installing keras-ranking[$extra] in $VENV (a few minutes the first time; log: $log)"
  if ! "$VENV/bin/python" -m pip install --use-pep517 --disable-pip-version-check -c "$ROOT/constraints.txt" -e "$ROOT[$extra]" 2>&1 |
    tee "$log" | { grep --line-buffered -E '^ *(Collecting|Downloading|Building|Installing|Successfully|ERROR)' || true; }; then
    if grep -qE 'NewConnectionError|name resolution|Network is unreachable|ProxyError|ConnectTimeout|Connection refused|ReadTimeout|SSLError' "$log"; then
      fail "the package index cannot be reached: is this machine on a network?" \
        "Behind a proxy set HTTPS_PROXY; for a mirror or a folder of wheels set PIP_INDEX_URL or PIP_FIND_LINKS (with PIP_NO_INDEX=1)." "Log: $log"
    fi
    fail "pip could not install keras-ranking[$extra]." "$(grep -E '^ *ERROR' "$log" | tail -n 3 || true)" "Log: $log"
  fi
  printf '%s\n' "$key" >"$stamp"
}
