#!/usr/bin/env bash
# Miller 6.6.0: of a JSON null, stats1 counts it in `count` and leaves it out of `mean`, and null is
# greater than every number.
#
# Most people expect that a null exit code (a job that was killed or never started) is either left out
# of all statistics, as an absent key is, or an error; and that `filter '$code > 0'` passes numbers
# only. Seen: for null, 0 and 3 the count is 3, the sum is 3, and the mean is 1.5, which is not their
# quotient; `$code > 0` passes null as well as 3. With the key absent, the count is 2 and the filter
# passes 3 alone. So take nulls out first, with is_not_null: is_not_empty is true of a null.
#
# Exits 1 if that changes. Needs apt-get download of Debian 12 and network; leaves nothing behind.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -qq miller=6.6.0-2+b3 2>/dev/null
dpkg-deb -x miller_*.deb .
mlr() { "$dir/usr/bin/mlr" "$@"; }
mlr --version
null='{"job":1,"code":null}
{"job":2,"code":0}
{"job":3,"code":3}'
absent=${null/,\"code\":null/}
stats() { mlr --ijsonl --ojsonl stats1 -a count,sum,mean -f code; }
above() { mlr --ijsonl --ojsonl filter '$code > 0' then cut -f job | tr '\n' ' '; }
echo "null:   $(stats <<<"$null")  > 0: $(above <<<"$null")"
echo "absent: $(stats <<<"$absent")  > 0: $(above <<<"$absent")"
[ "$(stats <<<"$null")" = '{"code_count": 3, "code_sum": 3, "code_mean": 1.5}' ] &&
    [ "$(above <<<"$null")" = '{"job": 1} {"job": 3} ' ] &&
    [ "$(stats <<<"$absent")" = '{"code_count": 2, "code_sum": 3, "code_mean": 1.5}' ] &&
    [ "$(above <<<"$absent")" = '{"job": 3} ' ] &&
    [ "$(mlr --ijsonl --ojsonl filter 'is_not_null($code) && $code > 0' then cut -f job <<<"$null")" = '{"job": 3}' ]
