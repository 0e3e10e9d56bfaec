#!/bin/sh
# Installs what lies beside it, or what was built: the program with links to it, units, accounts, settings. Run again it brings them up to date.
#   install.sh [--programs DIR] [--destdir DIR] [--coordinator]
# Without --coordinator only the agent's half is installed. Certificates and configuration come from `mezcal-agent join`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
programs=$here destdir= coordinator=
while [ $# -gt 0 ]; do
    case $1 in
    --programs) programs=${2:?--programs wants a directory}; shift 2 ;;
    --destdir) destdir=${2:?--destdir wants a directory}; shift 2 ;;
    --coordinator) coordinator=yes; shift ;;
    *) echo "install.sh: what is $1? (--programs DIR, --destdir DIR, --coordinator)" >&2; exit 2 ;;
    esac
done
if [ -z "$destdir" ] && [ "$(id -u)" != 0 ]; then
    echo "install.sh: only root can install for all users; --destdir DIR installs elsewhere" >&2
    exit 2
fi
# Before what works is replaced.
if [ ! -e "$programs/mezcal" ]; then
    echo "install.sh: there is no program mezcal in $programs (--programs DIR); cargo build --release makes it" >&2
    exit 1
fi
if [ -z "$destdir" ] && ! why=$("$programs/mezcal" --version 2>&1); then
    echo "install.sh: $programs/mezcal does not run on this host ($(uname -m)), which needs programs built for its like (--programs DIR): $why" >&2
    exit 1
fi

put() { # put MODE FILE TARGET: by a rename, so that what runs is not written to
    install -D -m "$1" "$2" "$destdir$3.new"
    mv -f "$destdir$3.new" "$destdir$3"
}
name() { # name NAME: the program is called so, too. Until version 0.1 each was a file of its own
    ln -sf mezcal "$destdir/usr/bin/$1.new"
    mv -f "$destdir/usr/bin/$1.new" "$destdir/usr/bin/$1"
}
keep() { # keep FILE TARGET: what an administrator may have changed stays
    [ -e "$destdir$2" ] || put 0644 "$1" "$2"
}

units=/usr/lib/systemd/system
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
program=$programs/mezcal
# That of an archive is stripped: what is installed is what was packed.
if [ "$programs" != "$here" ] && strip -o "$made/mezcal" "$program" 2>/dev/null; then program=$made/mezcal; fi
put 0755 "$program" /usr/bin/mezcal
name mezcal-agent
for unit in mezcal-agent.service mezcal-engines@.service mezcal-jobs.slice; do put 0644 "$here/$unit" "$units/$unit"; done
keep "$here/default/mezcal-agent" /etc/default/mezcal-agent
if [ -n "$coordinator" ]; then
    name coordinator
    name mezcal-certs
    put 0644 "$here/mezcal-coordinator.service" "$units/mezcal-coordinator.service"
    keep "$here/default/mezcal-coordinator" /etc/default/mezcal-coordinator
fi
# An archive has them; what was only built makes them.
manual=$here
if [ ! -d "$manual/man" ]; then
    manual=$made
    # A program for another processor cannot.
    "$here/manual.sh" "$programs" "$manual" || { echo "install.sh: no manual pages: $programs/mezcal does not run here" >&2; manual=; }
fi
if [ -n "$manual" ]; then
    pages() { # pages FILE…: into their sections
        for page in "$@"; do put 0644 "$page" "/usr/share/man/man${page##*.}/$(basename "$page")"; done
    }
    completions() { # completions NAME
        put 0644 "$manual/completions/$1.bash" "/usr/share/bash-completion/completions/$1"
        put 0644 "$manual/completions/$1.zsh" "/usr/share/zsh/vendor-completions/_$1"
        put 0644 "$manual/completions/$1.fish" "/usr/share/fish/vendor_completions.d/$1.fish"
    }
    # All of section 1 but what only links have that are installed with the coordinator.
    for page in "$manual"/man/mezcal*.1; do
        case $page in */mezcal-certs*) ;; *) pages "$page" ;; esac
    done
    pages "$manual/man/mezcal-agent.toml.5" "$manual/man/mezcal-engines.toml.5"
    completions mezcal
    if [ -n "$coordinator" ]; then
        pages "$manual"/man/coordinator*.1 "$manual"/man/mezcal-certs*.1 "$manual/man/mezcal-coordinator.toml.5"
        completions coordinator
    fi
fi
for sample in agent.toml engines.toml; do put 0644 "$here/samples/$sample" "/usr/share/doc/mezcal-agent/examples/$sample"; done
if [ -n "$coordinator" ]; then
    put 0644 "$here/samples/coordinator.toml" /usr/share/doc/mezcal-coordinator/examples/coordinator.toml
fi
put 0644 "$here/sysusers.d/mezcal.conf" /usr/lib/sysusers.d/mezcal.conf
put 0644 "$here/tmpfiles.d/mezcal.conf" /usr/lib/tmpfiles.d/mezcal.conf
put 0644 "$here/sysctl.d/60-mezcal.conf" /usr/lib/sysctl.d/60-mezcal.conf

[ -z "$destdir" ] || exit 0
systemd-sysusers /usr/lib/sysusers.d/mezcal.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/mezcal.conf
# In a container the kernel's settings are the host's.
sysctl -q -p /usr/lib/sysctl.d/60-mezcal.conf 2>/dev/null || true
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    # A new version takes over; what runs goes on.
    systemctl try-restart mezcal-agent.service
    if [ -n "$coordinator" ]; then systemctl try-restart mezcal-coordinator.service; fi
fi
