"""Certificates for tests, which differ in nothing but their names from those of an authority."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import trustme


class Pair(NamedTuple):
    """A certificate and its key."""

    cert: str
    key: str


class Authority:
    """Issues certificates, and writes them to files.

    Args:
        folder: Where the files go.
        name: Of the authority, and of the file with its own certificate.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._authority = trustme.CA(organization_name=name)
        self.path = str(folder / f"{name}.pem")
        self._authority.cert_pem.write_to_path(self.path)

    def issue(self, name: str = "server", *, expires: datetime | None = None) -> Pair:
        """A certificate for this machine, in files that have ``name``; those that are there are replaced."""
        not_after = {} if expires is None else {"not_after": expires, "not_before": datetime(2000, 1, 1, tzinfo=UTC)}
        issued = self._authority.issue_cert("localhost", "127.0.0.1", **not_after)
        pair = Pair(*(str(self._folder / f"{name}-{part}.pem") for part in ("cert", "key")))
        issued.cert_chain_pems[0].write_to_path(pair.cert)
        issued.private_key_pem.write_to_path(pair.key)
        return pair
