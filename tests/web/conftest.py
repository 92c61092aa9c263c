"""A browser, and servers with data of the demos."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from playwright.sync_api import sync_playwright

from lightning_store.wire.methods import Role
from lightning_store_server.tokens import add_token
from tools.browser import FLAGS, chromium
from tools.web_demo import serving, svamp, training, wait_for


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/web/" in str(item.path):
            item.add_marker(pytest.mark.web)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def browser():
    path = chromium()
    if path is None:
        pytest.fail("there is no chromium: `make test-web` installs it, or says how")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture(params=["light", "dark", "phone"])
def look(request):
    """How a context is made."""
    size = {"width": 390, "height": 844} if request.param == "phone" else {"width": 1280, "height": 900}
    return {"viewport": size, "color_scheme": "dark" if request.param == "dark" else "light"}


@pytest.fixture
def problems():
    """What browsers complained of; a test that leaves some fails."""
    found = []
    yield found
    assert found == []


@pytest.fixture
def open_page(browser, problems):
    """Opens pages in contexts of their own, whose consoles are watched."""
    contexts = []

    def open_one(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda told: problems.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        return page

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """A server on which the GRPO demo trains."""
    folder = tmp_path_factory.mktemp("grpo")
    with serving(f"sqlite:{folder / 'served.db'}", folder / "server.log") as server, training(server, folder):
        wait_for(server.url, "since policy version")
        yield server


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """A server with a run of the SVAMP demo, which has ended."""
    folder = tmp_path_factory.mktemp("svamp")
    with serving(f"sqlite:{folder / 'served.db'}", folder / "server.log") as server:
        svamp(server, folder)
        yield server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory):
    """A server that asks for tokens, and those, by role."""
    folder = tmp_path_factory.mktemp("guarded")
    path = str(folder / "tokens.json")
    tokens = {role.value: add_token(path, role.value, role, datetime.now(UTC)) for role in Role}
    with serving(f"sqlite:{folder / 'served.db'}", folder / "server.log", ["--auth-tokens", path]) as server:
        yield server, tokens
