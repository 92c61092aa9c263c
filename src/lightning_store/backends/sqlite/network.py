"""Which file system a database is on: SQLite's log needs memory that processes share, which those on a network lack."""

from __future__ import annotations

import os
from typing import Final

NETWORK_TYPES: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.juicefs", "fuse.s3fs", "fuse.sshfs", "gfs2"),
        *("glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs", "virtiofs"),
    }
)
MOUNTS: Final = "/proc/self/mountinfo"


def network_type(path: str, mounts: str = MOUNTS) -> str | None:
    """The type of the file system that ``path`` is on, if it is one on a network; None too where that is not known."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return None
    place = os.path.realpath(path)
    found = ("", "")
    for line in lines:
        mounted, _, of = line.partition(" - ")
        point = mounted.split()[4].encode(errors="surrogateescape").decode("unicode_escape", "replace")
        # A later mount hides an earlier one on the same place.
        if len(point) >= len(found[0]) and (place == point or place.startswith(point.rstrip("/") + "/")):
            found = (point, of.split()[0])
    return found[1] if found[1] in NETWORK_TYPES else None
