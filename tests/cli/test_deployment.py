"""The Dockerfile and the files in deploy/: their form, what they say to each other, and the commands in them."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, cli_runner

yaml = pytest.importorskip("yaml", reason="needs the dev extra")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the dev extra")
check_jsonschema = pytest.importorskip("check_jsonschema", reason="needs the dev extra")

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
COMPOSE = ("compose.yaml", "compose.sqlite.yaml")
KUBERNETES = ("postgresql.yaml", "sqlite.yaml")
KUBERNETES_VERSIONS = ("1.30", "1.37")
PROGRAM = Path(sys.executable).parent / "lightning-store-grpc"
SECONDS_MAX = 120


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, each with its arguments."""
    text = re.sub(r"^#.*\n", "", (PROJECT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line)]


def last_of(name: str) -> str:
    return [rest for found, rest in instructions() if found == name][-1]


def image() -> str:
    """Its name, with the version of the project."""
    return f"lightning-store-grpc:{tomllib.loads((PROJECT / 'pyproject.toml').read_text())['project']['version']}"


def health_command() -> list[str]:
    return list(yaml.safe_load(last_of("HEALTHCHECK").partition(" CMD ")[2]))


def compose(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / name).read_text()))


def servers_of(name: str) -> dict[str, dict[str, Any]]:
    return {key: one for key, one in compose(name)["services"].items() if key.startswith("store")}


def manifests(name: str) -> dict[str, dict[str, Any]]:
    """By kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())}


def pod_of(name: str) -> dict[str, Any]:
    found = manifests(name)
    return dict((found.get("Deployment") or found["StatefulSet"])["spec"]["template"]["spec"])


def unit() -> dict[str, list[str]]:
    """The settings of the unit, each with all its values."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    text = (DEPLOY / "systemd/lightning-store.service").read_text()
    parser.read_string(text)
    assert parser.sections() == ["Unit", "Service", "Install"]
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"(\w+)=(.*)$", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def flags_of(command: list[str]) -> dict[str, str]:
    assert command[0] == "serve"
    return dict(part.removeprefix("--").split("=", 1) for part in command[1:])


def seconds_of(text: str) -> float:
    return float(text.removesuffix("s"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which deploy/compose-setup.sh has made what the servers read."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("deploy")
    shutil.copy(DEPLOY / "compose-setup.sh", folder)
    path = f"{PROGRAM.parent}:/usr/bin:/bin"
    for _ in range(2):  # the second time it finds everything
        command = [folder / "compose-setup.sh", "store.example.org", "192.0.2.7", "2001:db8::7"]
        ran = subprocess.run(
            command, env={"PATH": path}, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
        assert ran.returncode == 0, ran.stderr
    return folder


def here(text: str, prepared: Path) -> str:
    """What a file of deployment says, with paths of ``prepared`` for those of a container or machine."""
    store = prepared / "private/store"
    for path, found in {
        "/etc/lightning-store/tokens/tokens.json": store / "tokens.json",
        "/etc/lightning-store/tls/tls.crt": store / "server.pem",
        "/etc/lightning-store/tls/tls.key": store / "server.key",
        "/etc/lightning-store": store,
        "/var/lib/lightning-store": prepared / "private/data",
    }.items():
        text = text.replace(path, str(found))
    return text


# --- Form ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_are_as_their_schema_wants_them(name: str) -> None:
    checked = cli_runner().invoke(
        check_jsonschema.main, ["--builtin-schema", "vendor.compose-spec", str(DEPLOY / name)], catch_exceptions=False
    )
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize("name", [*KUBERNETES, "secrets.example.yaml"])
def test_manifests_are_as_their_schema_wants_them(name: str) -> None:
    for resource in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()):
        for version in KUBERNETES_VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_as_systemd_wants_it(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd/lightning-store.service").read_text()
    copy = tmp_path / "lightning-store.service"
    copy.write_text(text.replace("/opt/lightning-store/bin/lightning-store-grpc", str(PROGRAM)))
    for command in (["verify", "--man=no"], ["security", "--offline=yes", "--threshold=20", "--no-pager"]):
        ran = subprocess.run(
            ["systemd-analyze", *command, copy], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert ran.stderr == ""


# --- What they say to each other -------------------------------------------------------------------------------------


def test_the_image_has_all_that_the_wheel_is_built_from() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    copied = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    sources = [source for *parts, _ in copied for source in parts]
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    for source in sources:
        assert (PROJECT / source).exists()
        assert f"!/{source}" in ignored
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert any(package.startswith(f"{source}/") for source in sources), package
    assert {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"} <= set(sources)
    assert dict(instructions())["ARG"].removeprefix("PYTHON=") in {"3.11", "3.12", "3.13"}
    assert [rest.partition(" ")[0] for name, rest in instructions() if name == "FROM"] == ["python:${PYTHON}-slim"] * 2
    [extras] = re.findall(r"\.whl\)\[([a-z,]+)\]", str(instructions()))
    assert set(extras.split(",")) - {"postgres"} <= project["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize("name", COMPOSE)
def test_containers_have_the_image_s_user_ports_and_folders(name: str) -> None:
    document = compose(name)
    for server in servers_of(name).values():
        flags = flags_of(server["command"])
        published = [port.removeprefix("${STORE_BIND:-127.0.0.1}:").partition(":")[2] for port in server["ports"]]
        assert published == [flags["port"], flags["http-port"]] == last_of("EXPOSE").split()
        assert server["user"].startswith("${STORE_USER:?")
        assert (server["read_only"], server["cap_drop"]) == (True, ["ALL"])
        assert seconds_of(server["stop_grace_period"]) > float(flags.get("drain-delay", 0)) + float(flags["grace"])
        assert set(server.get("secrets", [])) <= document.get("secrets", {}).keys()
        mounted = [volume.split(":")[1] for volume in server["volumes"]]
        written = [
            flags["auth-tokens"],
            flags["tls-cert"],
            flags["tls-key"],
            server["environment"]["LIGHTNING_STORE_TLS_CA"],
        ]
        if flags["database"].startswith("sqlite:"):
            written.append(flags["database"].removeprefix("sqlite:"))
            assert last_of("WORKDIR") in mounted
        assert {str(Path(path).parent) for path in written} == set(mounted)
    all_ports = [port for server in servers_of(name).values() for port in server["ports"]]
    assert len(set(all_ports)) == len(all_ports)
    assert "ports" not in document["services"].get("postgres", {})


@pytest.mark.parametrize("name", KUBERNETES)
def test_pods_have_the_image_s_user_ports_and_folders(name: str) -> None:
    found, pod = manifests(name), pod_of(name)
    [container] = pod["containers"]
    flags = flags_of(container["args"])
    ports = {one["name"]: str(one["containerPort"]) for one in container["ports"]}
    assert ports == {"grpc": flags["port"], "http": flags["http-port"]}
    assert list(ports.values()) == last_of("EXPOSE").split()
    assert {(one["name"], str(one["port"]), one["targetPort"]) for one in found["Service"]["spec"]["ports"]} == {
        (port, number, port) for port, number in ports.items()
    }
    user, context = last_of("USER"), pod["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert (context["runAsNonRoot"], container["securityContext"]["readOnlyRootFilesystem"]) == (True, True)
    assert pod["terminationGracePeriodSeconds"] > float(flags["drain-delay"]) + float(flags["grace"])
    # A service of this name would set LIGHTNING_STORE_PORT, which is a setting of the server.
    assert pod["enableServiceLinks"] is False
    volumes = {one["name"] for one in pod["volumes"]}
    volumes |= {
        one["metadata"]["name"] for one in found.get("StatefulSet", {}).get("spec", {}).get("volumeClaimTemplates", [])
    }
    assert {one["name"] for one in container["volumeMounts"]} == volumes
    labels = {"app.kubernetes.io/name": "lightning-store"}
    for kind in found.keys() & {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
        assert found[kind]["spec"]["selector"]["matchLabels"] == labels
    secrets = {
        one["metadata"]["name"]: one["stringData"].keys()
        for one in yaml.safe_load_all((DEPLOY / "kubernetes/secrets.example.yaml").read_text())
    }
    for volume in pod["volumes"]:
        if "secret" in volume:
            mounted = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == volume["name"]]
            files = {path for path in flags.values() if Path(path).parent == Path(mounted[0])}
            assert {Path(path).name for path in files} == secrets[volume["secret"]["secretName"]]
    for variable in container.get("env", []):
        reference = variable["valueFrom"]["secretKeyRef"]
        assert reference["key"] in secrets[reference["name"]]
    images = {container["image"]} | {server["image"] for file in COMPOSE for server in servers_of(file).values()}
    assert images == {image()}


def test_the_unit_has_the_settings_folders_and_exit_codes_of_the_server() -> None:
    settings = unit()
    user = (DEPLOY / "systemd/lightning-store.sysusers.conf").read_text().splitlines()[-1].split()[1]
    assert settings["User"] == settings["Group"] == settings["StateDirectory"] == [user]
    storage = (PROJECT / "docs/storage.md").read_text()
    [codes] = settings["RestartPreventExitStatus"]
    assert f"`Restart=on-failure` and `RestartPreventExitStatus={codes}`" in storage
    for name in ("server.toml", "server.postgresql.toml"):
        written = tomllib.loads((DEPLOY / "systemd" / name).read_text())
        assert [str(written["port"]), str(written["http-port"])] == last_of("EXPOSE").split()
        [seconds] = settings["TimeoutStopSec"]
        assert float(seconds) > written.get("drain-delay", 0) + written["grace"]
    database = tomllib.loads((DEPLOY / "systemd/server.toml").read_text())["database"]
    assert database.startswith(f"sqlite:{settings['WorkingDirectory'][0]}/")
    prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    [target] = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.partition(":")[2] == last_of("EXPOSE").split()[1]


# --- Commands --------------------------------------------------------------------------------------------------------


def test_compose_setup_makes_what_the_files_read(prepared: Path) -> None:
    for name in COMPOSE:
        document = compose(name)
        files = [one["file"] for one in document.get("secrets", {}).values()]
        folders = [one.split(":")[0] for server in servers_of(name).values() for one in server["volumes"]]
        assert all((prepared / path).exists() for path in [*files, *folders])
    user = re.search(r"^STORE_USER=(\d+):(\d+)$", (prepared / ".env").read_text(), re.MULTILINE)
    assert user is not None
    passwords = prepared / "private/database"
    status = (passwords / "pgpass").stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o600, int(user[1]), int(user[2]))
    assert int(user[1]) != 0
    host, port, database, who, password = (passwords / "pgpass").read_text().strip().split(":")
    assert flags_of(servers_of("compose.yaml")["store-a"]["command"])["database"] == (
        f"postgresql://{who}@{host}:{port}/{database}"
    )
    assert (passwords / "postgres_password").read_text() == password
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", prepared / "private/store/server.pem"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("DNS:localhost", "DNS:store-a", "DNS:store.example.org", "IP Address:192.0.2.7", "2001:DB8:"):
        assert name in shown.stdout


@pytest.mark.parametrize("what", [*COMPOSE, *KUBERNETES, "server.toml", "server.postgresql.toml"])
def test_each_server_has_legal_settings(what: str, prepared: Path, run: Run, tmp_path: Path) -> None:
    has_postgresql = run("serve", "--check", "--database", "postgresql://localhost/store").exit_code == 0

    def mapped(text: str) -> str:
        text = here(text, prepared)
        return text if has_postgresql else re.sub(r"postgresql://[^\s\"]+", "sqlite:store.db", text)

    if what in COMPOSE:
        commands = [server["command"] for server in servers_of(what).values()]
    elif what in KUBERNETES:
        commands = [pod_of(what)["containers"][0]["args"]]
    else:
        [started] = unit()["ExecStart"]
        _, *command = shlex.split(started)
        assert command == ["serve", "--config", "/etc/lightning-store/server.toml"]
        (tmp_path / "server.toml").write_text(mapped((DEPLOY / "systemd" / what).read_text()))
        commands = [["serve", "--config", str(tmp_path / "server.toml")]]
    for command in commands:
        checked = run(*map(mapped, command), "--check")
        assert (checked.exit_code, checked.stdout) == (0, "the settings are legal\n"), checked.stderr


@pytest.mark.slow
def test_a_server_as_deployed_passes_its_probes_and_ends_in_time(prepared: Path, run: Run) -> None:
    [server] = servers_of("compose.sqlite.yaml").values()
    command = [here(part, prepared) for part in server["command"]]
    at = ["--host=127.0.0.1", "--port=0", "--http-port=0"]
    clients = prepared / "private/clients"
    authority = here(server["environment"]["LIGHTNING_STORE_TLS_CA"], prepared)
    with subprocess.Popen(
        [PROGRAM, *command, *at], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = re.search(r"serving on (\S+) \(SQLite store, HTTP on (\S+),", process.stdout.readline())
            assert ready is not None
            variables = {"LIGHTNING_STORE_SERVER": ready[1], "LIGHTNING_STORE_TLS_CA": authority}
            program, *health = health_command()
            assert program == PROGRAM.name
            assert run(*health, env=variables).exit_code == 0
            trusted = ssl.create_default_context(cafile=authority)
            [container] = pod_of("sqlite.yaml")["containers"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = container[probe]["httpGet"]["path"]
                with urllib.request.urlopen(
                    f"https://{ready[2]}{path}", timeout=SECONDS_MAX, context=trusted
                ) as answer:
                    assert answer.status == 200
            assert run("stats", env=variables).exit_code == 1
            for role in ("algorithm", "runner", "reader", "admin"):
                shown = {**variables, "LIGHTNING_STORE_TOKEN_FILE": str(clients / f"{role}.token")}
                assert run("stats", env=shown).exit_code == 0
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert run(*health, env=variables).exit_code == 1
    assert (prepared / "private/data/store.db").exists()


def test_what_the_document_names_is_there() -> None:
    text = (PROJECT / "docs/deployment.md").read_text()
    for path in set(re.findall(r"\bdeploy/[\w./-]+\w", text)) | set(re.findall(r"\]\((?:\.\./)?([\w./-]+\.\w+)", text)):
        made = path == "deploy/.env" or path.startswith("deploy/private")
        assert made or (PROJECT / path).exists() or (PROJECT / "docs" / path).exists(), path
    assert f"docker build -t {image()} ." in text
