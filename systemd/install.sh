#!/bin/sh
# Installs what lies beside it, or what was built: programs, units, accounts, settings. Run again it brings them up to date.
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
if [ -z "$destdir" ] && ! why=$("$programs/agent" --version 2>&1); then
    echo "install.sh: $programs/agent does not run on this host ($(uname -m)), which needs programs built for its like (--programs DIR): $why" >&2
    exit 1
fi

put() { # put MODE FILE TARGET: by a rename, so that what runs is not written to
    install -D -m "$1" "$2" "$destdir$3.new"
    mv -f "$destdir$3.new" "$destdir$3"
}
keep() { # keep FILE TARGET: what an administrator may have changed stays
    [ -e "$destdir$2" ] || put 0644 "$1" "$2"
}

units=/usr/lib/systemd/system
put 0755 "$programs/agent" /usr/bin/mezcal-agent
for unit in mezcal-agent.service mezcal-engines@.service mezcal-jobs.slice; do put 0644 "$here/$unit" "$units/$unit"; done
keep "$here/default/mezcal-agent" /etc/default/mezcal-agent
if [ -n "$coordinator" ]; then
    put 0755 "$programs/coordinator" /usr/bin/coordinator
    put 0755 "$programs/certs" /usr/bin/mezcal-certs
    put 0644 "$here/mezcal-coordinator.service" "$units/mezcal-coordinator.service"
    keep "$here/default/mezcal-coordinator" /etc/default/mezcal-coordinator
fi
# An archive has them; what was only built makes them.
manual=$here
if [ ! -d "$manual/man" ]; then
    made=$(mktemp -d) && manual=$made
    trap 'rm -rf "$made"' EXIT
    # Programs for another processor cannot.
    "$here/manual.sh" "$programs" "$manual" $coordinator || { echo "install.sh: no manual pages: $programs does not run here" >&2; manual=; }
fi
if [ -n "$manual" ]; then
    pages() { # pages FILE…: into their sections
        for page in "$@"; do put 0644 "$page" "/usr/share/man/man${page##*.}/$(basename "$page")"; done
    }
    pages "$manual"/man/mezcal-agent*.[15] "$manual/man/mezcal-engines.toml.5"
    if [ -n "$coordinator" ]; then
        pages "$manual"/man/coordinator*.1 "$manual"/man/mezcal-certs*.1 "$manual/man/mezcal-coordinator.toml.5"
        put 0644 "$manual/completions/bash" /usr/share/bash-completion/completions/coordinator
        put 0644 "$manual/completions/zsh" /usr/share/zsh/vendor-completions/_coordinator
        put 0644 "$manual/completions/fish" /usr/share/fish/vendor_completions.d/coordinator.fish
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
