#!/bin/sh
# Makes Debian packages of what was built (cargo build --release): mezcal-agent, and mezcal-coordinator with it.
#   deb.sh [--programs DIR] [OUTDIR]
# Needs dpkg-deb. DEBFULLNAME and DEBEMAIL say who answers for them, as for Debian's own tools. Removing a package stops its services; purging it removes keys, state and configuration.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/staged.sh"
arch=$(dpkg --print-architecture)
libc=$(ldd --version | head -n 1 | grep -o '[0-9.]*$')

maintainer="${DEBFULLNAME:-Mezcal} <${DEBEMAIL:-mezcal@$(hostname -f)}>"
# The same content makes the same package.
when=$(date -u -R -d "@${SOURCE_DATE_EPOCH:-$(stat -c %Y "$here/../CHANGELOG.md")}")

pack() { # pack PART DEPENDS DESCRIPTION UNIT ACCOUNT LONG
    root=$tmp/$1 doc=$tmp/$1/usr/share/doc/mezcal-$1
    mkdir -p "$root/DEBIAN" "$doc"
    cp "$here/../LICENSE-MIT" "$doc/copyright"
    gzip -9nc > "$doc/changelog.gz" <<X
mezcal-$1 ($version) unstable; urgency=medium

  * CHANGELOG.md of the source says what is new.

 -- $maintainer  $when
X
    find "$root/usr/share/man" -type f -name '*.[15]' -exec gzip -9n {} +
    size=$(du -sk "$root" | cut -f1)
    cat > "$root/DEBIAN/control" <<X
Package: mezcal-$1
Version: $version
Architecture: $arch
Maintainer: $maintainer
Section: admin
Priority: optional
Installed-Size: $size
Depends: $2
Description: $3
$6
X
    (cd "$root" && find etc -type f 2>/dev/null | sed 's,^,/,') > "$root/DEBIAN/conffiles"
    cat > "$root/DEBIAN/postinst" <<X
#!/bin/sh
set -e
[ "\$1" = configure ] || exit 0
systemd-sysusers mezcal.conf
systemd-tmpfiles --create mezcal.conf || true
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    # A new version takes over; what runs goes on.
    systemctl try-restart $4 || true
fi
X
    cat > "$root/DEBIAN/prerm" <<X
#!/bin/sh
set -e
if [ "\$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now $4 || true
    if [ $1 = agent ]; then
        systemctl list-units --plain --no-legend 'mezcal-engines@*' | cut -d' ' -f1 | xargs -r systemctl disable --now || true
    fi
fi
X
    cat > "$root/DEBIAN/postrm" <<X
#!/bin/sh
set -e
if [ "\$1" = purge ]; then
    # Keys first of all.
    rm -rf /var/lib/$5 /etc/mezcal/$1.toml
    rmdir /etc/mezcal 2>/dev/null || true
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
X
    chmod 0755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"
    dpkg-deb --root-owner-group -b "$root" "$out/mezcal-$1_${version}_$arch.deb" > /dev/null
    echo "$out/mezcal-$1_${version}_$arch.deb"
}
pack agent "libc6 (>= $libc), libgcc-s1, systemd" "persistent worker of a Mezcal cluster" mezcal-agent.service mezcal-agent \
    " Mezcal runs independent shell commands on the hosts of a cluster. The agent
 of a host pulls jobs from the coordinator, and has the engines of their users
 run them."
pack coordinator "libc6 (>= $libc), libgcc-s1, systemd, mezcal-agent (= $version)" "coordinator and commands of a Mezcal cluster" \
    mezcal-coordinator.service mezcal-coordinator \
    " Mezcal runs independent shell commands on the hosts of a cluster. The
 coordinator knows where every job is. With it come the commands for users and
 administrators, and those that make certificates."
