#!/bin/sh
# Has programs that were built write their manual pages and completions, for pack.sh and install.sh.
#   manual.sh PROGRAMS OUTDIR [all]
# Without a third word only the agent's pages.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
programs=$(cd "$1" && pwd) out=$2
page() { # page PACKAGE FILE TITLE: of a configuration, from its sample
    awk -v package="mezcal-$1" -v name="mezcal-$2" -v title="$3" -f "$here/page.awk" "$here/samples/$2" > "$out/man/mezcal-$2.5"
}
mkdir -p "$out/man"
"$programs/agent" manual "$out/man"
page agent agent.toml "configuration of a host\(aqs agent"
page agent engines.toml "configuration of the engines of a host\(aqs users"
[ -n "${3:-}" ] || exit 0
for program in coordinator certs; do "$programs/$program" manual "$out/man"; done
page coordinator coordinator.toml "configuration of a cluster\(aqs coordinator"
mkdir -p "$out/completions"
# Called by its name alone, as it will be there.
for shell in bash zsh fish; do
    (export PATH="$programs:$PATH" && cd / && MEZCAL_COMPLETE=$shell coordinator) > "$out/completions/$shell"
done
