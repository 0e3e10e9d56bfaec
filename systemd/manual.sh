#!/bin/sh
# Has programs that were built write their manual pages and completions, for pack.sh and install.sh.
#   manual.sh PROGRAMS OUTDIR [all]
# Without a third word only the agent's pages.
set -eu
programs=$(cd "$1" && pwd) out=$2
mkdir -p "$out/man"
"$programs/agent" manual "$out/man"
[ -n "${3:-}" ] || exit 0
for program in coordinator certs; do "$programs/$program" manual "$out/man"; done
mkdir -p "$out/completions"
# Called by its name alone, as it will be there.
for shell in bash zsh fish; do
    (export PATH="$programs:$PATH" && cd / && MEZCAL_COMPLETE=$shell coordinator) > "$out/completions/$shell"
done
