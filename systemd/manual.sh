#!/bin/sh
# Has the program that was built write its manual pages and completions, under each of its names, for pack.sh and install.sh.
#   manual.sh PROGRAMS OUTDIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
programs=$(cd "$1" && pwd) out=$2
page() { # page PACKAGE FILE TITLE: of a configuration, from its sample
    awk -v package="mezcal-$1" -v name="mezcal-$2" -v title="$3" -f "$here/page.awk" "$here/samples/$2" > "$out/man/mezcal-$2.5"
}
mkdir -p "$out/man" "$out/completions"
# Called by its names, as it will be there.
names=$(mktemp -d)
trap 'rm -rf "$names"' EXIT
# In this order: `mezcal agent` and `mezcal certs` have the pages of the links.
for name in mezcal coordinator mezcal-agent mezcal-certs; do
    ln -s "$programs/mezcal" "$names/$name"
    "$names/$name" manual "$out/man"
done
page agent agent.toml "configuration of a host\(aqs agent"
page agent engines.toml "configuration of the engines of a host\(aqs users"
page coordinator coordinator.toml "configuration of a cluster\(aqs coordinator"
for name in mezcal coordinator; do
    for shell in bash zsh fish; do
        (export PATH="$names:$PATH" && cd / && MEZCAL_COMPLETE=$shell $name) > "$out/completions/$name.$shell"
    done
done
