#!/usr/bin/env bash
# Installs what pip cannot: support for virtual environments and the shared libpython that Triton's Python stub loads.
# Without root or apt-get it prints the command that installs them.
set -euo pipefail
python=$1
minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("python$minor-venv")
"$python" - <<'PY' || missing+=("libpython$minor")
import ctypes, os, sys, sysconfig
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
for candidate in (name, os.path.join(sysconfig.get_config_var("LIBDIR") or "", name)):
    try:
        ctypes.CDLL(candidate)
        sys.exit(0)
    except OSError:
        pass
sys.exit(1)
PY
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${missing[*]} with apt-get"
    apt-get update -q
    apt-get install -y -q "${missing[@]}"
else
    echo "missing: ${missing[*]}. Run: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi
