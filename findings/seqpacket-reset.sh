#!/usr/bin/env bash
# Linux (6.x), AF_UNIX: whoever closes a socket with something unread makes its peer's next read fail with ECONNRESET. On SOCK_STREAM that comes after the
# bytes that are still queued; on SOCK_SEQPACKET it comes before them, once, and the packets can be read afterwards.
#
# Most people expect what TCP and stream sockets do, or that a reset means that nothing more will come: a reader that gives up at the error loses packets
# that were sent and received before the close.
#
# Exits 1 if that changes. Needs python3; leaves nothing behind.
set -euo pipefail
python3 - <<'PYTHON'
import platform, socket, sys

def reads(kind):
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    theirs.send(b"said before the end")
    ours.send(b"never read")
    theirs.close()
    got = []
    for _ in range(3):
        try:
            got.append(ours.recv(100).decode() or "end")
        except ConnectionResetError:
            got.append("ECONNRESET")
    return got

print("Linux", platform.release())
stream, packets = reads(socket.SOCK_STREAM), reads(socket.SOCK_SEQPACKET)
print("SOCK_STREAM:   ", stream)
print("SOCK_SEQPACKET:", packets)
wanted = (["said before the end", "ECONNRESET", "end"], ["ECONNRESET", "said before the end", "end"])
sys.exit(0 if (stream, packets) == wanted else 1)
PYTHON
