"""TLS in front of the stack: what another machine sees of it, with a certificate of each kind.

One stack goes through them all, so the order counts.
"""

import json
import secrets
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from requests.adapters import HTTPAdapter
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.browser import chromium
from tests.reach import address, outside, reached
from tests.stack import DAILY, Stack, docker, eventually, free_port, left_behind, settings_of

HOST = "prefect.test"  # which no machine knows, so every client here is told
ROOT = "/data/pki/authorities/local/root.crt"  # where Caddy's own CA has its certificate
DIRECTORY = "https://acme.test:8443/acme/local/directory"
SECONDS = 400

pytestmark = pytest.mark.timeout(SECONDS + chromium.BUILD_SECONDS)


class ByName(HTTPAdapter):
    """Asks for HOST, and for a certificate of its, whatever address it connects to."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Adds the name to every connection."""
        super().init_poolmanager(*args, server_hostname=HOST, **kwargs)


class TlsStack(Stack):
    """A stack with TLS, seen as from another machine."""

    def __init__(self, folder: Path, project: str) -> None:
        """Copies the project; nothing runs yet."""
        super().__init__(folder, project)
        self.tls_port = free_port()
        self.settings |= {"TLS_HOST": HOST, "TLS_PORT": str(self.tls_port)}
        self.ca = folder / "ca.crt"  # whom a client trusts

    @property
    def url(self) -> str:
        """Where people find the UI."""
        return f"https://{HOST}:{self.tls_port}"

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """A request to the server, verified; `options` are those of requests."""
        with requests.Session() as session:
            session.mount("https://", ByName())
            session.headers["Host"] = f"{HOST}:{self.tls_port}"
            url = f"https://127.0.0.1:{self.tls_port}{path}"
            return session.request(
                method, url, **{"verify": str(self.ca), "timeout": 30, **options}
            )

    def websocket(self, path: str, *protocols: Any) -> ClientConnection:
        """Opens a websocket, verified."""
        sock = socket.create_connection(("127.0.0.1", self.tls_port))
        context = ssl.create_default_context(cafile=self.ca)
        url = f"wss://{HOST}:{self.tls_port}/api{path}"
        return connect(url, sock=sock, ssl=context, subprotocols=protocols)

    @contextmanager
    def connected(
        self, context: ssl.SSLContext | None = None, name: str = HOST
    ) -> Iterator[ssl.SSLSocket]:
        """A TLS connection, verified."""
        context = context or ssl.create_default_context(cafile=self.ca)
        with (
            socket.create_connection(("127.0.0.1", self.tls_port)) as sock,
            context.wrap_socket(sock, server_hostname=name) as connection,
        ):
            yield connection

    def issuer(self) -> str:
        """Who has issued the certificate that is shown."""
        with self.connected() as connection:
            der = connection.getpeercert(binary_form=True)
        assert der
        return x509.load_der_x509_certificate(der).issuer.rfc4514_string()

    def own_ca(self) -> str:
        """The certificate of the stack's own CA, as docs/operations.md has it."""
        done = self.run("docker", "compose", "exec", "--no-TTY", "proxy", "cat", ROOT)
        assert done.stdout.startswith("-----BEGIN CERTIFICATE-----"), done.stdout
        return done.stdout

    def set(self, **settings: str) -> None:
        """Edits .env."""
        path = self.folder / ".env"
        lines = path.read_text().splitlines()
        for key, value in settings.items():
            [at] = [number for number, line in enumerate(lines) if line.startswith(f"{key}=")]
            lines[at] = f"{key}={value}"
        path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def stack(_our_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsStack]:
    stack = TlsStack(tmp_path_factory.mktemp("tls"), f"test-{secrets.token_hex(3)}")
    try:
        output = stack.make("up", env=stack.settings)
        assert f"UI         {stack.url}\n" in output
        stack.ca.write_text(stack.own_ca())
        yield stack
        stack.make("destroy", env={"YES": "1"})
        assert left_behind(stack.project) == []
    finally:
        stack.remove()


def plain_port_is_closed(stack: Stack) -> bool:
    try:
        socket.create_connection(("127.0.0.1", stack.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


# ── The stack's own CA ──


def test_https_is_all_there_is(stack: TlsStack) -> None:
    user, password = stack.login.split(":", 1)
    answers = [
        stack.ask("GET", "/"),
        stack.ask("GET", "/api/admin/version"),
        stack.ask("GET", "/api/admin/version", auth=(user, password)),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 200]
    for answer in answers:
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert "Server" not in answer.headers
    assert "<html" in answers[0].text.lower()
    assert plain_port_is_closed(stack)
    plain = requests.get(f"http://127.0.0.1:{stack.tls_port}/", timeout=10)
    assert plain.status_code == 400

    # The server doesn't know of TLS, but where it leads to has to be there.
    moved = stack.ask("GET", "/api/flows", auth=(user, password), allow_redirects=False)
    assert moved.status_code == 307
    assert moved.headers["Location"] == f"{stack.url}/api/flows/"


def test_who_asks_wrongly_gets_nothing(stack: TlsStack) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        stack.ask("GET", "/", verify=True)
    with (
        pytest.raises(ssl.SSLError, match="alert internal error"),
        stack.connected(name="elsewhere.test"),
    ):
        pass
    with pytest.raises(requests.ConnectionError):
        stack.ask("GET", "/", headers={"Host": "elsewhere.test"})

    def version(only: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=stack.ca)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = only
        with stack.connected(context) as connection:
            return connection.version()

    assert version(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert version(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises(ssl.SSLError, match="protocol version"):
        version(ssl.TLSVersion.TLSv1_1)


@pytest.mark.parametrize("path", ["/logs/out", "/events/out"])
def test_websockets(stack: TlsStack, path: str) -> None:
    for token in ("", "admin:wrong"):
        with stack.websocket(path, "prefect") as refused:
            refused.send(json.dumps({"type": "auth", "token": token}))
            with pytest.raises(ConnectionClosed, match="1008"):
                refused.recv(timeout=10)
    with stack.websocket(path, "prefect") as follower:
        follower.send(json.dumps({"type": "auth", "token": stack.login}))
        assert json.loads(follower.recv(timeout=10)) == {"type": "auth_success"}
        # Events up to now would be the default.
        now = datetime.now(UTC)
        occurred = {"since": f"{now}", "until": f"{now + timedelta(hours=1)}"}
        wanted = {"occurred": occurred} if path == "/events/out" else {}
        follower.send(json.dumps({"type": "filter", "filter": wanted}))
        run = stack.start(DAILY)
        while run not in str(follower.recv(timeout=30)):
            pass
    stack.finished(run)


def test_verbs(stack: TlsStack) -> None:
    output = stack.make("run", f"FLOW={DAILY}")
    assert f"{stack.url}/runs/flow-run/" in output
    assert ": Completed" in output
    assert "everything is right" in stack.make("status")


def test_prefects_own_client_from_another_machine(stack: TlsStack) -> None:
    done = stack.run(
        *("docker", "run", "--rm", "--add-host", f"{HOST}:host-gateway"),
        *("--volume", f"{stack.ca}:/ca.crt:ro", "--env", "SSL_CERT_FILE=/ca.crt"),
        *("--env", f"PREFECT_API_URL={stack.url}/api"),
        *("--env", f"PREFECT_API_AUTH_STRING={stack.login}"),
        *(f"{stack.project}-flow:local", "prefect", "deployment", "run", DAILY, "--watch"),
    )
    assert done.returncode == 0, done.stdout
    assert "finished successfully" in done.stdout


def test_the_proxy_is_locked_down_and_no_flow_reaches_it(stack: TlsStack) -> None:
    container = stack.run("docker", "compose", "ps", "--quiet", "proxy").stdout.strip()
    facts = json.loads(docker("inspect", container))[0]
    host = facts["HostConfig"]
    assert facts["Config"]["User"] == "10001:10001"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["LogConfig"]["Config"]["max-size"]
    [(network, endpoint)] = facts["NetworkSettings"]["Networks"].items()
    assert network == f"{stack.project}_front"

    reach = "import socket, sys; socket.create_connection((sys.argv[1], 8443), 3)"
    image = f"{stack.project}-flow:local"
    for network, code in ((f"{stack.project}_front", 0), (stack.flows_network, 1)):
        command = ["docker", "run", "--rm", "--network", network, image, "python", "-c", reach]
        assert stack.run(*command, endpoint["IPAddress"]).returncode == code, network


def test_another_machine_gets_to_the_proxy_s_port_and_no_further(stack: TlsStack) -> None:
    inner = [(address(stack, "proxy", "front"), 8443), (address(stack, "server", "front"), 4200)]
    with outside(stack) as other:
        port = (other.here, stack.tls_port)
        assert reached(other.container, [port, (other.here, stack.port), *inner]) == [port]


def test_a_browser_that_trusts_the_ca(stack: TlsStack) -> None:
    image = chromium.build(stack)
    env = {"UI_URL": stack.url, "UI_LOGIN": stack.login}
    browser = chromium.container(image, env, extra_hosts={HOST: "host-gateway"})
    with browser.with_volume_mapping(str(stack.ca), "/ca.crt", "ro"):
        trust = (
            "mkdir -p ~/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -A -n ca -t C,, -i /ca.crt"
        )
        done = browser.exec(["sh", "-c", trust])
        assert done.exit_code == 0, done.output
        for test in ("test_login", chromium.TALKING):
            chromium.look(stack, browser, test)


def test_an_upgrade_goes_back_to_the_same_files(stack: TlsStack) -> None:
    """`make upgrade` may have to: and the plain port must not open then."""
    services = [
        stack.run("docker", "compose", *files, "config", "--hash", "*").stdout.splitlines()
        for files in ([], ["--file", ".running.yml"])
    ]
    assert sorted(services[0]) == sorted(services[1])
    assert any(line.startswith("proxy ") for line in services[0])


# ── Certificates of other kinds ──


def certificate(folder: Path, name: str = HOST, days: int = 1, ca: str = "a company's CA") -> Path:
    """Writes a certificate and its key, as one would get them, and its CA's (ca.crt).

    Args:
        folder: Where to; made if it isn't there.
        name: Whose certificate.
        days: For how long.
        ca: Who the CA says it is.
    """
    keys = {subject: ec.generate_private_key(ec.SECP256R1()) for subject in (ca, name)}

    def signed(subject: str) -> bytes:
        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        now, is_ca = datetime.now(UTC), subject == ca
        builder = (
            x509.CertificateBuilder(named(ca), named(subject), keys[subject].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=10))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        )
        made = builder.sign(keys[ca], hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)

    folder.mkdir(exist_ok=True)
    (folder / "ca.crt").write_bytes(signed(ca))
    (folder / "fullchain.pem").write_bytes(signed(name))
    key = folder / "privkey.pem"
    key.touch(0o600)
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    key.write_bytes(keys[name].private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    return folder


def test_a_certificate_of_ones_own(stack: TlsStack) -> None:
    folder = certificate(stack.folder / "mine")
    stack.set(TLS_CERTIFICATE="mine")
    stack.make("up")
    stack.ca = folder / "ca.crt"
    assert stack.issuer() == "CN=a company's CA"
    assert stack.ask("GET", "/api/ready").status_code == 200
    assert plain_port_is_closed(stack)

    # Renewed: the next `make up` takes it.
    certificate(folder, ca="the CA's successor")
    stack.make("up")
    assert stack.issuer() == "CN=the CA's successor"


# What reaches HOST:443 reaches the proxy, as on a machine that is on the internet.
FORWARD = """
import asyncio

async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

async def forward(reader, writer):
    there, back = await asyncio.open_connection("proxy", 8443)
    await asyncio.gather(pump(reader, back), pump(there, writer))

async def main():
    async with await asyncio.start_server(forward, port=443) as server:
        await server.serve_forever()

asyncio.run(main())
"""
ACME = """{
	auto_https disable_redirects
	skip_install_trust
	storage file_system /data
}
https://acme.test:8443 {
	tls internal
	acme_server
}
"""


@contextmanager
def beside(
    stack: Stack, name: str, image: str, *command: str, user: str = "10001"
) -> Iterator[str]:
    """A container on the proxy's network, under a name there; its id."""
    where = ("--network", f"{stack.project}_front", "--network-alias", name)
    env = ("--env", "HOME=/tmp", "--env", "TLS_CERTIFICATE=")
    image = f"{stack.project}-{image}:local"
    container = docker("run", "--detach", *where, *env, "--user", user, image, *command).strip()
    try:
        yield container
    finally:
        docker("rm", "--force", container)


def written(container: str, path: str) -> str | None:
    """A file in a container, as soon as it is there."""
    done = subprocess.run(
        ["docker", "exec", container, "cat", path], capture_output=True, text=True
    )
    return done.stdout if done.returncode == 0 else None


def test_an_automatic_certificate(stack: TlsStack) -> None:
    write = 'echo "$0" >/tmp/Caddyfile && exec caddy run --config /tmp/Caddyfile'
    with (
        beside(stack, "acme.test", "proxy", "sh", "-c", write, ACME) as acme,
        beside(stack, HOST, "server", "python", "-c", FORWARD, user="0"),
    ):
        root = eventually(
            "the ACME server's CA",
            30,
            lambda: written(acme, ROOT),
        )
        # A company's ACME server, whose CA this machine trusts.
        stack.ca = stack.folder / "acme.crt"
        stack.ca.write_text(root)
        bundle = stack.folder / "bundle.crt"
        bundle.write_text(Path(settings_of(stack.folder / ".env")["CA_BUNDLE"]).read_text() + root)
        stack.set(TLS_CERTIFICATE=DIRECTORY, CA_BUNDLE=str(bundle))
        stack.make("up")
        assert "Caddy Local Authority" in stack.issuer()
        assert stack.ask("GET", "/api/ready").status_code == 200
        assert plain_port_is_closed(stack)


def test_back_to_the_same_ca_and_off(stack: TlsStack) -> None:
    before = (stack.folder / "ca.crt").read_text()
    stack.set(TLS_CERTIFICATE="")
    stack.make("up")
    assert stack.own_ca() == before
    stack.ca = stack.folder / "ca.crt"
    assert stack.ask("GET", "/api/ready").status_code == 200

    stack.set(TLS_HOST="")
    output = stack.make("up")
    assert f"UI         http://127.0.0.1:{stack.port}\n" in output
    assert requests.get(f"http://127.0.0.1:{stack.port}/api/ready", timeout=10).status_code == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", stack.tls_port), timeout=5)
    assert "everything is right" in stack.make("status")


# ── What preflight refuses ──


def refused(project: Stack, **settings: str) -> str:
    """What `make up` says to these settings, having done nothing."""
    output = project.make("up", code=2, env=project.settings | settings)
    assert left_behind(project.project) == []
    assert not (project.folder / ".env").exists()
    return output


def test_a_host_name_that_is_none(project_copy: Stack) -> None:
    output = refused(project_copy, TLS_HOST="https://prefect.test:8443", TLS_PORT="many")
    assert "FAIL  TLS_HOST in the environment" in output
    assert "found:    https://prefect.test:8443" in output
    assert "FAIL  TLS_PORT" in output
    output = refused(project_copy, TLS_HOST="10.0.0.7", TLS_CERTIFICATE="acme")
    assert "expected: a public host name, for acme" in output
    output = refused(project_copy, TLS_HOST=HOST, TLS_CERTIFICATE="http://ca.test/directory")
    assert "expected: an ACME server's URL that begins with https://" in output


def test_a_tls_port_that_is_taken_and_a_plain_one_that_is_not_needed(project_copy: Stack) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.create_server(("127.0.0.1", project_copy.port)),
    ):
        port = str(taken.getsockname()[1])
        output = refused(project_copy, TLS_HOST=HOST, TLS_PORT=port)
    assert f"FAIL  port {port}" in output
    assert str(project_copy.port) not in output
    output = refused(project_copy, TLS_HOST=HOST, TLS_PORT=project_copy.settings["UPSTREAM_PORT"])
    assert "expected: another port than TLS_PORT" in output


def other_key(folder: Path) -> None:
    other = certificate(folder / "other")
    (other / "privkey.pem").rename(folder / "privkey.pem")


WRONG: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no certificate": (
        lambda folder: (folder / "fullchain.pem").unlink(),
        "a folder with fullchain.pem and privkey.pem",
        "mine/fullchain.pem can't be read",
    ),
    "no key": (
        lambda folder: (folder / "privkey.pem").unlink(),
        "a folder with fullchain.pem and privkey.pem",
        "mine/privkey.pem can't be read",
    ),
    "something else": (
        lambda folder: (folder / "fullchain.pem").write_text("x"),
        "a certificate in PEM form",
        "something else",
    ),
    "another key": (
        other_key,
        "the key of mine/fullchain.pem, not encrypted",
        "another one, or none",
    ),
    "ended": (
        lambda folder: certificate(folder, days=-1),
        "a certificate that is valid",
        "one that ended ",
    ),
    "another host": (
        lambda folder: certificate(folder, name="other.test"),
        f"a certificate for {HOST}, TLS_HOST",
        "one for DNS:other.test",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_certificate_that_does_not_fit(project_copy: Stack, kind: str) -> None:
    spoil, expected, found = WRONG[kind]
    spoil(certificate(project_copy.folder / "mine"))
    output = refused(project_copy, TLS_HOST=HOST, TLS_PORT=str(free_port()), TLS_CERTIFICATE="mine")
    assert "1 of the above to mend, then: make up" in output
    assert f"expected: {expected}" in output
    assert f"found:    {found}" in output
    assert "fix: " in output


def test_an_env_of_before_and_an_override_of_ones_own(project_copy: Stack) -> None:
    """`.env` is never overwritten: an older one has no COMPOSE_FILE."""
    env = project_copy.folder / ".env"
    settings = project_copy.settings | {"TLS_HOST": HOST, "TLS_PORT": str(free_port())}
    project_copy.run("setup/env.sh", env=settings)
    text = env.read_text()
    [line] = [line for line in text.splitlines() if line.startswith("COMPOSE_FILE=")]
    env.write_text(text.replace(f"{line}\n", ""))
    output = project_copy.make("up", code=2)
    assert "FAIL  COMPOSE_FILE in .env" in output
    assert line in output

    env.write_text(text)
    (project_copy.folder / "docker-compose.override.yml").write_text("services: {}\n")
    output = project_copy.make("up", code=2)
    assert "FAIL  docker-compose.override.yml" in output
    assert f"{line}:docker-compose.override.yml" in output
    assert left_behind(project_copy.project) == []
