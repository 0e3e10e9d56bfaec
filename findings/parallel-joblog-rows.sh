#!/usr/bin/env bash
# GNU Parallel 20221122: a job log is a table with tabs between its columns; of the command in its
# last column, a line break becomes a NUL byte, and a tab stays.
#
# Most people expect nine columns in each row, as the header has them, with tabs and line breaks
# escaped, or the command as it is, in two rows if it has a line break. Seen: the row of an argument with a tab has ten columns, and that of one with a
# line break (-0) a NUL byte, for which grep calls the log a binary file. Read the first eight columns
# only, and let no program that stops at NUL bytes near the ninth.
#
# Exits 1 if that changes. Needs apt-get download of Debian 12 and network; leaves nothing behind.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -qq parallel=20221122+ds-2 2>/dev/null
dpkg-deb -x parallel_*.deb .
export HOME=$dir PARALLEL_HOME=$dir LC_ALL=C
"$dir/usr/bin/parallel" --version 2>/dev/null | head -n 1
printf 'a\tb\0c\nd\0' | "$dir/usr/bin/parallel" -0 -k --joblog log echo {} >/dev/null 2>&1
columns=$(awk -F '\t' '{printf "%s%d", sep, NF; sep = " "}' log)
nuls=$(tr -dc '\0' <log | wc -c)
found=$(grep echo log 2>&1 | tail -n 1)
echo "columns of the header and of the rows after it: $columns; NUL bytes: $nuls; grep: $found"
[ "$columns" = "9 10 9" ] && [ "$nuls" = 1 ] && [[ $found = *"binary file matches"* ]]
