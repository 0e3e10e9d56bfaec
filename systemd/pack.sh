#!/bin/sh
# Packs what was built (cargo build --release) into mezcal-VERSION-ARCH.tar.gz, which `coordinator provision` copies to hosts and install.sh,
# within it, installs.
#   pack.sh [--programs DIR] [OUTDIR]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
programs=$here/../target/release out=.
while [ $# -gt 0 ]; do
    case $1 in
    --programs) programs=$(cd "${2:?--programs wants a directory}" && pwd); shift 2 ;;
    -*) echo "pack.sh: what is $1? (--programs DIR)" >&2; exit 2 ;;
    *) out=$1; shift ;;
    esac
done
[ -x "$programs/mezcal" ] || { echo "pack.sh: there is no program mezcal in $programs; cargo build --release makes it" >&2; exit 1; }
version=$("$programs/mezcal" --version | cut -d' ' -f2)
# A static program (musl) runs wherever the kernel does, and knows no accounts but those in /etc/passwd.
case $(ldd "$programs/mezcal" 2>&1) in
*"statically linked"* | *"not a dynamic"*) kind=-static ;;
*) kind= ;;
esac
name=mezcal-$version-$(uname -m)$kind
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/$name" "$out"
cp -r "$here"/*.service "$here"/*.slice "$here"/*.d "$here/default" "$here/samples" "$here/install.sh" "$tmp/$name/"
# Without what only a debugger reads it is a tenth of the size.
strip -o "$tmp/$name/mezcal" "$programs/mezcal" 2>/dev/null || cp "$programs/mezcal" "$tmp/$name/mezcal"
"$here/manual.sh" "$programs" "$tmp/$name"
# The same content makes the same archive.
tar -C "$tmp" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - "$name" | gzip -n > "$out/$name.tar.gz"
echo "$out/$name.tar.gz"
