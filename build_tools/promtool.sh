#!/usr/bin/env bash
# Puts promtool, which tests the alert rules, into the folder $1: taken out of Debian's package, so nothing is installed
# and no service starts. Where that is impossible, those tests are skipped.
set -euo pipefail
command -v promtool >/dev/null && exit 0
[ -x "$1/promtool" ] && exit 0
folder=$(realpath "$1") work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# Lists of packages of its own: the system's may be missing or old, and only root may renew them.
lists=(-o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o Debug::NoLocking=1)
mkdir -p lists/partial cache/archives/partial
if command -v apt-get dpkg-deb >/dev/null && apt-get -qq "${lists[@]}" update && apt-get -qq "${lists[@]}" download prometheus; then
    dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --directory "$folder" --strip-components=3 ./usr/bin/promtool
else
    echo "no promtool: the alert rules are not tested"
fi
