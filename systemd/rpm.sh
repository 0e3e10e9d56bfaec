#!/bin/sh
# Makes RPM packages of what was built (cargo build --release): mezcal-agent, and mezcal-coordinator with it.
#   rpm.sh [--programs DIR] [OUTDIR]
# Needs rpmbuild. Erasing a package stops its services; keys and state stay in /var/lib/mezcal-*, since RPM knows no purge.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/staged.sh"

files() { # files PART: what RPM has to know about each
    (cd "$tmp/$1" && find . ! -type d | sed 's,^\.,,' | sort) | sed 's,^/etc/,%config(noreplace) /etc/,; s,^\(.*/man[15]/.*\)$,%doc \1,'
}
scripts() { # scripts PACKAGE UNIT ALSO: $1 of the scriptlets is how many versions of it are there afterwards
    cat <<X
%post -n $1
systemd-sysusers mezcal.conf
systemd-tmpfiles --create mezcal.conf || :
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    # A new version takes over; what runs goes on.
    systemctl try-restart $2 || :
fi

%preun -n $1
if [ "\$1" = 0 ] && [ -d /run/systemd/system ]; then
    systemctl disable --now $2 || :
    $3
fi

%postun -n $1
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi

X
}
engines="systemctl list-units --plain --no-legend 'mezcal-engines@*' | cut -d' ' -f1 | xargs -r systemctl disable --now || :"
cat > "$tmp/mezcal.spec" <<X
Name: mezcal
Version: $version
Release: 1
Summary: A cluster for shell commands
License: MIT OR Apache-2.0

%description
Mezcal runs shell commands on the hosts of a cluster.

%package -n mezcal-agent
Summary: Persistent worker of a Mezcal cluster
Requires: systemd, bash
%description -n mezcal-agent
The agent of one host: it pulls jobs from the coordinator and runs them.

%package -n mezcal-coordinator
Summary: Coordinator and commands of a Mezcal cluster
Requires: systemd, mezcal-agent = %{version}-%{release}
%description -n mezcal-coordinator
The coordinator of a cluster, and the commands that talk to it.

%install
cp -a $tmp/agent/. $tmp/coordinator/. %{buildroot}/

$(scripts mezcal-agent mezcal-agent.service "$engines")
$(scripts mezcal-coordinator mezcal-coordinator.service :)

%files -n mezcal-agent
$(files agent)

%files -n mezcal-coordinator
$(files coordinator)
X
# The program is stripped and the pages compressed where they should be: nothing is left to do to them.
rpmbuild --quiet -bb --define "_topdir $tmp/build" --define "_rpmdir $tmp/rpms" --define "__os_install_post %{nil}" \
    --define "debug_package %{nil}" --define "_build_id_links none" "$tmp/mezcal.spec" >&2
for package in "$tmp"/rpms/*/*.rpm; do
    cp "$package" "$out/"
    echo "$out/$(basename "$package")"
done
