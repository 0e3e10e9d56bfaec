# For deb.sh and rpm.sh, which read it: their options, and below $tmp the files of each package, in `agent` and `coordinator`.
# Sets programs, out, tmp and version.
script=$(basename "$0")
programs=$here/../target/release out=.
while [ $# -gt 0 ]; do
    case $1 in
    --programs) programs=${2:?--programs wants a directory}; shift 2 ;;
    -*) echo "$script: what is $1? (--programs DIR)" >&2; exit 2 ;;
    *) out=$1; shift ;;
    esac
done
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
archive=$("$here/pack.sh" --programs "$programs" "$tmp")
tar -xzf "$archive" -C "$tmp"
unpacked=$(find "$tmp" -maxdepth 1 -name 'mezcal-*' -type d)
version=$("$unpacked/mezcal" --version | cut -d' ' -f2)
mkdir -p "$out"

"$unpacked/install.sh" --destdir "$tmp/agent"
"$unpacked/install.sh" --destdir "$tmp/coordinator" --coordinator
# What the agent's package has comes with that.
(cd "$tmp/agent" && find . ! -type d) | while read -r file; do rm -f "$tmp/coordinator/$file"; done
find "$tmp/coordinator" -type d -empty -delete
