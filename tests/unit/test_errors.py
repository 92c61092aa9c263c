"""The errors themselves."""

from __future__ import annotations

from copy import copy

import pytest

from lightning_store.errors import RolloutNotFoundError, StoreError, StoreUnavailableError


class OfSomebody(StoreUnavailableError):
    """That is not made as it is kept, and one of the operating system's for Python."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port} is down", host=host)
        self.port = port


@pytest.mark.parametrize("error", [OfSomebody("store", 4747), RolloutNotFoundError.of("ro-no")], ids=str)
def test_a_copy_is_the_same_error_without_its_traceback(error: StoreError):
    try:
        raise error
    except StoreError:
        twin = copy(error)
    assert (type(twin), str(twin), twin.args, vars(twin)) == (type(error), str(error), error.args, vars(error))
    assert twin is not error
    assert twin.__traceback__ is None
