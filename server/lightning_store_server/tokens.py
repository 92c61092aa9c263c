"""The file of tokens: who may call a server, as what, and how much. It holds hashes: who reads it has no token.

A token is 256 random bits, so that a plain SHA-256 of it can neither be reversed nor searched for.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lightning_store.errors import InvalidArgumentError
from lightning_store.wire.methods import Role

PREFIX: Final = "lst_"
"""What every token begins with, so that scanners for secrets find one that got where it does not belong."""
TOKEN_BYTES: Final = 32

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Entry):
    """What a token may take of a server each second; None: as much as the server has."""

    calls_per_second: PerSecond | None = None
    spans_per_second: PerSecond | None = None
    bytes_per_second: PerSecond | None = None


NO_LIMITS: Final = Limits()


class Token(_Entry):
    """One token, without the token."""

    name: Name
    role: Role
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the token's text."""
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    workers: tuple[str, ...] = ()
    """Patterns of worker ids, such as ``gpu-7-*``, which a runner with this token may be; empty for any."""
    limits: Limits = NO_LIMITS

    def counts_at(self, now: float) -> bool:
        """Whether it is neither revoked nor expired, at so many seconds since the epoch."""
        return self.revoked is None and (self.expires is None or now < self.expires.timestamp())


class TokenFile(_Entry):
    """What the file holds."""

    version: Literal[1] = 1
    tokens: tuple[Token, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> TokenFile:
        names = [token.name for token in self.tokens]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"there is more than one token called {min(twice)}")
        return self


def digest_of(token: str) -> str:
    """What the file has of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def read_tokens(path: str) -> TokenFile:
    """What the file at ``path`` holds. InvalidArgumentError if it cannot be read."""
    try:
        return TokenFile.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        message = (
            f"the tokens cannot be read: {path}: {error.strerror}; make one with `lightning-store-grpc token create`"
        )
        raise InvalidArgumentError(message, field="auth_tokens") from None
    except ValidationError as error:
        raise InvalidArgumentError(f"{path} is no file of tokens: {_told(error)}", field="auth_tokens") from None


def _told(error: ValidationError) -> str:
    """Where it is wrong. (What is there may be a token that was put into the wrong place.)"""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def add_token(
    path: str,
    name: str,
    role: Role,
    now: datetime,
    *,
    expires: datetime | None = None,
    workers: tuple[str, ...] = (),
    limits: Limits = NO_LIMITS,
) -> str:
    """Add a token to the file, which is made if need be.

    Returns:
        The token. It is written nowhere else.

    Raises:
        InvalidArgumentError: The file cannot be read, the name is not legal, or a token that counts has it.
    """
    text = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    try:
        token = Token(
            name=name,
            role=role,
            sha256=digest_of(text),
            created=now,
            expires=expires,
            workers=workers,
            limits=limits,
        )
    except ValidationError as error:
        raise InvalidArgumentError(_told(error), field="name") from None

    def add(file: TokenFile) -> TokenFile:
        same = [one for one in file.tokens if one.name == name]
        if any(one.counts_at(now.timestamp()) for one in same):
            raise InvalidArgumentError(
                f"{path} has a token called {name}; revoke it, or take another name", field="name"
            )
        return TokenFile(tokens=(*(one for one in file.tokens if one not in same), token))

    _change(path, add, create=True)
    return text


def revoke_token(path: str, name: str, now: datetime) -> Token:
    """Have the token of this name count no longer. InvalidArgumentError if there is none."""
    revoked: list[Token] = []

    def revoke(file: TokenFile) -> TokenFile:
        [*found] = [one for one in file.tokens if one.name == name]
        if not found:
            known = ", ".join(one.name for one in file.tokens) or "none"
            raise InvalidArgumentError(f"{path} has no token called {name}; it has {known}", field="name")
        revoked.append(found[0] if found[0].revoked else found[0].model_copy(update={"revoked": now}))
        return TokenFile(tokens=tuple(revoked[0] if one.name == name else one for one in file.tokens))

    _change(path, revoke, create=False)
    return revoked[0]


def _change(path: str, change: Callable[[TokenFile], TokenFile], *, create: bool) -> None:
    """Replace the file at once, so that no server reads half of it."""
    target = Path(os.path.realpath(path))
    with _locked(target.parent):
        present = TokenFile() if create and not target.exists() else read_tokens(path)
        content = change(present).model_dump_json(indent=2, exclude_none=True) + "\n"
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # for its owner alone
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(handle)
            if target.exists():
                _keep_access(target, temporary)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise


def _keep_access(present: Path, made: str) -> None:
    """Give a new file the owner, the group and the mode of that which it replaces: the server that reads it may run as
    somebody else, and would go on with tokens that are revoked. InvalidArgumentError if that is not allowed."""
    found = present.stat()
    try:
        os.chown(made, found.st_uid, found.st_gid)
    except PermissionError:
        message = (
            f"{present} belongs to the user {found.st_uid} and the group {found.st_gid}, and a new file would not; "
            "nothing was changed: do it as that user, or as root"
        )
        raise InvalidArgumentError(message, field="auth_tokens") from None
    shutil.copymode(present, made)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let no other command change a file there. InvalidArgumentError if there is no such folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InvalidArgumentError(f"{folder}: {error.strerror}", field="auth_tokens") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
