#!/usr/bin/env bash
# bincode 2.0.1 (crates.io): with_limit does not bound the same thing on both sides.
#
# Most people expect: what encode_to_vec writes under a limit of N bytes, and what is far shorter than N, decode_from_slice reads under the same limit.
# What it does: reading claims the memory that a value takes (24 bytes for each String of a Vec on 64-bit hosts, beside its letters), writing counts
# the bytes written. So 50,000 words of two letters, 150,003 bytes, are written under a limit of 1 MiB and refused by it when they are read.
# Whoever checks a message by the length of its encoding has checked something else than its reader does.
#
# Exits 1 if that changes. Needs cargo and crates.io; leaves nothing behind.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat > "$dir/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
bincode = { version = "=2.0.1", default-features = false, features = ["std"] }
[workspace]
TOML
cat > "$dir/src/main.rs" <<'RUST'
fn main() {
    let config = bincode::config::standard().with_limit::<{ 1 << 20 }>();
    for count in [20_000usize, 50_000] {
        let words = vec!["ab".to_string(); count];
        let bytes = bincode::encode_to_vec(&words, config).expect("written");
        let read = bincode::decode_from_slice::<Vec<String>, _>(&bytes, config);
        println!("{count} words, {} bytes: {}", bytes.len(), read.map_or_else(|e| format!("{e:?}"), |_| "read".into()));
    }
}
RUST
said=$(cd "$dir" && CARGO_TARGET_DIR="$dir/target" cargo run --quiet 2>/dev/null)
echo "$said"
[ "$said" = "20000 words, 60003 bytes: read
50000 words, 150003 bytes: LimitExceeded" ]
