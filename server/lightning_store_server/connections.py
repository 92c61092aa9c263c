"""Closing a connection of gRPC, for which its Python server has no call: even when a call has ended, its stream stays
as long as the peer takes nothing, and what was to be written stays in memory."""

from __future__ import annotations

import os
import socket

import psutil


def cut_connection(peer: str) -> bool:
    """Close a TCP connection of this process. gRPC takes it as lost, and ends what is on it.

    Args:
        peer: Its other end, as gRPC tells it: ``ipv4:127.0.0.1:5000`` or ``ipv6:[::1]:5000``.

    Returns:
        Whether there was one.
    """
    host, _, port = peer.partition(":")[2].rpartition(":")
    address = (host.strip("[]").partition("%")[0], int(port))
    for connection in psutil.Process().net_connections("tcp"):
        if connection.fd >= 0 and connection.raddr == address and _shut_down(connection.fd, address):
            return True
    return False


def _shut_down(descriptor: int, address: tuple[str, int]) -> bool:
    """The descriptor may have become another connection's meanwhile; a copy of it stays what it is."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.getpeername()[:2] != address:
                return False
            connection.shutdown(socket.SHUT_RDWR)
            return True
    except OSError:
        return False
