"""One hash over many things, which tells none of them: a Merkle tree as in RFC 6962, section 2.1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


def tree_hash(entries: Sequence[bytes]) -> bytes:
    """sha256 of the tree over `entries` in their order; of none it is that of nothing.

    A leaf is hashed behind the byte 0 and a node behind the byte 1, so that neither passes for the other.
    """
    if not entries:
        return hashlib.sha256().digest()
    level = [hashlib.sha256(b"\0" + one).digest() for one in entries]
    while len(level) > 1:  # a last one without a partner goes up as it is, which gives the RFC's trees
        pairs = [level[place : place + 2] for place in range(0, len(level), 2)]
        level = [hashlib.sha256(b"\1" + b"".join(one)).digest() if len(one) == 2 else one[0] for one in pairs]
    return level[0]


def root_of(what: str, entries: Iterable[Sequence[str]]) -> str:
    """The hash, in hex, of a set of entries, each of them some sha256 in hex; whatever their order.

    An entry is `what` and a zero byte, so that trees of different things differ, then the 32 bytes of each.
    """
    leaves = [what.encode() + b"\0" + b"".join(map(bytes.fromhex, one)) for one in entries]
    return tree_hash(sorted(leaves)).hex()
