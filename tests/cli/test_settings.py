"""Settings in a file: what wins, what is refused, and that what is printed can be read again."""

from __future__ import annotations

import tomllib

import pytest


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return str(path)

    return write


def printed(run, *arguments, **variables):
    result = run("serve", "--print-config", *arguments, env=variables)
    assert result.exit_code == 0, result.stderr
    return tomllib.loads(result.stdout), result.stdout


def test_flags_win_over_variables_and_these_over_the_file(run, write):
    path = write(
        'port = 1\ngrace = 2.5\nhost = "::1"\nwait-max = 7\nstrict = true\nhttp-cors-origin = ["https://a.b"]\n'
    )
    settings, text = printed(run, "--config", path, "--port", "3", LIGHTNING_STORE_PORT="2", LIGHTNING_STORE_GRACE="4")
    assert (settings["port"], settings["grace"], settings["host"], settings["wait-max"]) == (3, 4.0, "::1", 7.0)
    assert (settings["strict"], settings["http-cors-origin"]) == (True, ["https://a.b"])
    for line in ("port = 3  # flag", "grace = 4.0  # variable", 'host = "::1"  # file', "calls-max = 10000  # default"):
        assert line in text
    assert "# http-port is not set" in text


def test_the_file_may_be_named_by_a_variable(run, write):
    assert printed(run, LIGHTNING_STORE_CONFIG=write("port = 77"))[0]["port"] == 77


@pytest.mark.parametrize(
    "settings",
    [
        'database = "sqlite:a b.db"\ndisk-limit = "3GiB"\ndurability = "normal"\nretain-finished = "12h"',
        'retain-finished = 500\neviction-memory-threshold = 0.5\nmemory-limit = "8MiB"\nretain-workers = "0"',
        'max-message-bytes = 1000000\nqueued-bytes-max = "2GiB"\nlog-format = "json"\naccess_log = true',
        'otlp-http-port = 4318\ndrop-spans = "a b,c"\nretain-for = "trainer,b"',
    ],
)
def test_what_is_printed_means_the_same(run, write, settings):
    first, text = printed(run, "--config", write(settings))
    second, _ = printed(run, "--config", write(text))
    assert first == second
    assert second != printed(run)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "prot is no setting; is port meant?"),
        ("http_prot = 1", "http_prot is no setting; is http-port meant?"),
        ("zzz = 1", "zzz is no setting; `serve --help` lists the flags"),
        ("config = 'x'", "config is no setting"),
        ("[serve]\nport = 1", "serve is no setting"),
        ("port = 70000", "port: 70000 is not in the range 0<=x<=65535"),
        ("port = 1.5", "port: '1.5' is not a valid whole number"),
        ("port = true", "port is True; give a text or a number"),
        ("port = [1]", "port is [1]; give a text or a number"),
        ("strict = 1", "strict is 1; give true or false"),
        ("http-cors-origin = 'https://a.b'", "give a list of texts"),
        ("memory-limit = 8", "memory-limit: '8' has no unit"),
        ("http-port = 1\notlp-http-port = 2", "otlp-http-port is there twice"),
        ("port = ", "is not valid TOML"),
    ],
)
def test_what_is_not_legal_is_refused_with_its_place(run, write, text, message):
    path = write(text)
    result = run("serve", "--config", path, "--check")
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert path in said
    assert message in said


def test_a_file_that_is_not_there_is_refused(run, tmp_path):
    result = run("serve", "--config", str(tmp_path / "none.toml"))
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_settings_can_be_checked_without_serving(run, write):
    result = run("serve", "--check", "--config", write("port = 4747\nhttp-port = 4318"))
    assert (result.exit_code, result.stdout) == (0, "the settings are legal\n")
    result = run("serve", "--check", "--config", write("port = 4747\nhttp-port = 4747"))
    assert result.exit_code == 78
    assert "port and http_port are both 4747" in result.stderr
    result = run("serve", "--check", "--config", write('database = "sqlite:x.db"\nmemory-limit = 0.5'))
    assert result.exit_code == 78
    result = run("serve", "--check", "--config", write("eviction-memory-threshold = 0.5\nsafe-memory-threshold = 0.9"))
    assert result.exit_code == 78


OF_POSTGRES = ("--namespace=n", "--database-connections=5", "--database-timeout=9", "--statement-cache-size=0")
OF_SQLITE = ("--durability=full", "--disk-limit=1GiB", "--disk-reserve=1GiB")
OF_MEMORY = ("--eviction-memory-threshold=0.5", "--safe-memory-threshold=0.4", "--memory-limit=0.9")
KEPT_IN = {
    "a store in memory": ("memory:", OF_MEMORY),
    "a SQLite database": ("sqlite:x.db", OF_SQLITE),
    "a PostgreSQL database": ("postgresql://h/d", OF_POSTGRES),
}


def test_settings_of_another_kind_of_store_are_refused(run, write):
    for kept_in, (database, own) in KEPT_IN.items():
        assert run("serve", "--check", "--database", database, *own).exit_code == 0
        for what, (_, foreign) in KEPT_IN.items():
            if what != kept_in:
                result = run("serve", "--check", "--database", database, *foreign)
                assert result.exit_code == 78
                for flag in foreign:
                    assert f"{flag.partition('=')[0]} is for {what}" in result.stderr
                assert f"and --database names {kept_in}" in result.stderr
    result = run("serve", "--check", "--config", write('namespace = "n"'))
    assert (result.exit_code, "--namespace is for" in result.stderr) == (78, True)
    result = run("serve", "--check", env={"LIGHTNING_STORE_DURABILITY": "normal"})
    assert (result.exit_code, "--durability is for" in result.stderr) == (78, True)
    _, text = printed(run)
    assert "# namespace is for a PostgreSQL database\n" in text
    assert run("serve", "--check", "--config", write(text)).exit_code == 0
