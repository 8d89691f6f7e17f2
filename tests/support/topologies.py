"""The brokers that UpNext runs on, as real processes: one server in several guises, a master watched by sentinels, a small cluster."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.processes import dies_with_us
from tests.support.servers import NoServerError, Server, binary, free_port
from tests.support.waiting import given, wait_until
from upnext.core.keys import Keys

GUIDE = Path(__file__).parents[2] / "docs" / "redis.md"


class Topology:
    """`url` is what a service is given; `admin()` an administrator's client of the node that holds a namespace."""

    url: str

    def start(self) -> Self:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def nodes(self) -> list[Server]:
        """All servers that run and may hold data."""
        raise NotImplementedError

    def holder(self, namespace: str) -> Server:
        """The server that has the namespace now."""
        return self.nodes()[0]

    def kill_clients(self) -> None:
        """CLIENT KILL of every connection, everywhere."""
        for node in self.nodes():
            for kind in ("normal", "pubsub"):
                node.cli("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def forget_scripts(self) -> None:
        for node in self.nodes():
            node.cli("SCRIPT", "FLUSH")


class Single(Topology):
    """One server; `address` picks which of its addresses is used."""

    def __init__(self, server: Server, address: Callable[[Server], str]) -> None:
        self.server, self._address = server, address

    def start(self) -> Self:
        self.server.start()
        self.url = self._address(self.server)
        return self

    def close(self) -> None:
        self.server.close()

    def nodes(self) -> list[Server]:
        return [self.server]


class Tls(Single):
    """A server whose certificate is signed by a CA made for this run."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="upnext-tls-"))
        self.port = free_port()
        make_certificates(self.folder)
        options = {
            "tls-port": str(self.port),
            "tls-cert-file": str(self.folder / "server.crt"),
            "tls-key-file": str(self.folder / "server.key"),
            "tls-ca-cert-file": str(self.folder / "ca.crt"),
            "tls-auth-clients": "no",
        }
        url = f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={self.folder / 'ca.crt'}"
        super().__init__(Server("redis", **options), lambda _: url)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Acl(Single):
    """A server on which a service may do no more than docs/redis.md says."""

    def __init__(self) -> None:
        super().__init__(
            Server(any_kind(), requirepass="admin"), lambda server: f"redis://upnext:s3cret@127.0.0.1:{server.port}/0"
        )

    def start(self) -> Self:
        super().start()
        self.server.cli(*minimal_acl("upnext", "s3cret", "t*"))
        return self


class Sentinels(Topology):
    """A master, a replica, and three sentinels that agree within a few seconds that the master is gone."""

    NAME = "mymaster"

    def __init__(self) -> None:
        self.kind = any_kind()
        options = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
        self.servers = [Server(self.kind, **options), Server(self.kind, **options)]
        self.sentinels = [_Sentinel(self.kind) for _ in range(3)]
        self.url = "redis+sentinel://" + ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels) + f"/{self.NAME}"

    def start(self) -> Self:
        master, replica = self.servers
        master.start()
        replica.start()
        replica.cli("REPLICAOF", "127.0.0.1", master.port)
        wait_until(lambda: replica.cli("ROLE")[3] == b"connected", 15, "the replica to be in sync")
        for one in self.sentinels:
            one.start(self.NAME, master.port)
        wait_until(lambda: all(one.sees(self.NAME) for one in self.sentinels), 20, "the sentinels to know each other")
        return self

    def close(self) -> None:
        for one in self.sentinels:
            one.close()
        for server in self.servers:
            server.close()

    def nodes(self) -> list[Server]:
        return [server for server in self.servers if server.running]

    def holder(self, namespace: str) -> Server:
        return next(server for server in self.nodes() if server.cli("ROLE")[0] == b"master")

    def fail_over(self) -> None:
        """SIGKILL to the master; returns when the replica was made the master."""
        master = self.holder("")
        master.kill()
        try:
            wait_until(
                lambda: any(_leads(server) for server in self.nodes()),
                60,
                "the sentinels to fail over",
            )
        except AssertionError as error:
            error.add_note("\n".join(one.log() for one in self.sentinels))
            raise

    def plan_a_failover(self) -> tuple[Server, Server]:
        """As an administrator asks for it -> the old master, which is still one, and the new one. Both nodes run."""
        for server in self.servers:
            if not server.running:
                server.start()
        self.end_of_failover()
        old = self.holder("")
        new = next(server for server in self.servers if server is not old)

        def agreed() -> bool:
            self._ask_for_another(new.port)
            return all(one.master(self.NAME) == new.port for one in self.sentinels)

        wait_until(agreed, 30, "the sentinels to agree on the other node")
        return old, new

    def end_of_failover(self) -> None:
        """Returns when one node is the master and the other its replica, in sync."""

        def in_sync() -> bool:
            with contextlib.suppress(redis.ConnectionError):  # a master that becomes a replica cuts its clients off
                roles = [one.cli("ROLE") for one in self.servers]
                return any(role[0] == b"slave" and role[3] == b"connected" for role in roles)
            return False

        wait_until(in_sync, 60, "a replica in sync")

    def _ask_for_another(self, wanted_port: int) -> None:
        """A sentinel refuses while it knows of no good replica, or one failover is under way, and may give one up."""
        if self.sentinels[0].master(self.NAME) == wanted_port:
            return
        with (
            contextlib.suppress(redis.ResponseError),
            contextlib.closing(redis.Redis(port=self.sentinels[0].port, socket_timeout=given(5))) as client,
        ):
            client.execute_command("SENTINEL FAILOVER", self.NAME)


class Cluster(Topology):
    """Three masters."""

    def __init__(self) -> None:
        self.servers = [
            Server(
                any_kind(),
                **{"cluster-enabled": "yes", "cluster-node-timeout": "15000", "cluster-port": str(free_port())},
            )
            for _ in range(3)
        ]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> Self:
        bounds = (0, 5461, 10923, 16384)
        for number, server in enumerate(self.servers):
            server.start()
            server.cli("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            server.cli("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            bus = server.options["cluster-port"]
            self.servers[0].cli("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        wait_until(
            lambda: all(b"cluster_state:ok" in server.cli("CLUSTER", "INFO") for server in self.servers),
            30,
            "the cluster to stand",
        )
        wait_until(
            lambda: all(len(self._ids(server)) == 3 for server in self.servers), 30, "the nodes to know each other"
        )
        return self

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def nodes(self) -> list[Server]:
        return self.servers

    def slot(self, namespace: str) -> int:
        return int(self.servers[0].cli("CLUSTER", "KEYSLOT", Keys(namespace).epoch))

    def holder(self, namespace: str) -> Server:
        port = self._owner_port(self.servers[0], self.slot(namespace))
        return next(server for server in self.servers if server.port == port)

    def move(self, namespace: str) -> Server:
        """Migrates the namespace's slot, keys and all, to another node -> that node."""
        with self.moving(namespace) as target:
            return target

    @contextlib.contextmanager
    def moving(self, namespace: str, *, share: float = 0.5) -> Generator[Server]:
        """The slot is on its way to the yielded node: so large a share of its keys is there. At the end it has moved."""
        slot, source = self.slot(namespace), self.holder(namespace)
        target = next(server for server in self.servers if server is not source)
        target_id, source_id = target.cli("CLUSTER", "MYID").decode(), source.cli("CLUSTER", "MYID").decode()
        target.cli("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.cli("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        keys = source.cli("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        if moved := keys[: int(len(keys) * share)]:
            source.cli("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *moved)
        yield target
        while keys := source.cli("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.cli("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for server in (target, source, *self.servers):
            server.cli("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    @staticmethod
    def _ids(server: Server) -> set[bytes]:
        lines = server.cli("CLUSTER", "NODES")
        return (
            set(lines)
            if isinstance(lines, dict)
            else {line.split()[0] for line in lines.splitlines() if b"handshake" not in line}
        )

    @staticmethod
    def _owner_port(server: Server, slot: int) -> int:
        client = redis.Redis(unix_socket_path=str(server.socket_path))
        with contextlib.closing(client):
            client.response_callbacks.clear()
            slots: Any = client.execute_command("CLUSTER SLOTS")
            for first, last, master, *_ in slots:
                if first <= slot <= last:
                    return int(master[1])
        raise AssertionError(f"nobody has slot {slot}")


_DOWN_AFTER_MS = 5000
"""A sentinel that stood still for 2 s does nothing for 30 s, and a replica that was cut off for 10 times this is promoted never again."""


class _Sentinel:
    def __init__(self, kind: str) -> None:
        self.port = free_port()
        self._kind = kind
        self._folder = Path(tempfile.mkdtemp(prefix="upnext-sentinel-"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, name: str, master_port: int) -> None:
        config = self._folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor {name} 127.0.0.1 {master_port} 2\n"
            f"sentinel down-after-milliseconds {name} {_DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {name} 5000\n"
        )
        with (self._folder / "log").open("ab") as log:
            command = dies_with_us([binary(self._kind), str(config), "--sentinel"])
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def sees(self, name: str) -> bool:
        """The other two sentinels and the replica."""
        with (
            contextlib.suppress(redis.RedisError),
            contextlib.closing(redis.Redis(port=self.port, socket_timeout=given(5))) as client,
        ):
            reply: Any = client.execute_command("SENTINEL MASTER", name)
            return reply["num-other-sentinels"] == 2 and reply["num-slaves"] == 1
        return False

    def master(self, name: str) -> int:
        """Its port, as this sentinel knows it."""
        with contextlib.closing(redis.Redis(port=self.port, socket_timeout=given(5))) as client:
            reply: Any = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", name)
            return int(reply[1])

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-4_000:]

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(given(10))
        shutil.rmtree(self._folder, ignore_errors=True)


def _leads(server: Server) -> bool:
    """Whether it is a master; False also for one that is being made one, and lets its clients go."""
    try:
        return server.cli("ROLE")[0] == b"master"
    except redis.ConnectionError:
        return False


def any_kind() -> str:
    """redis-server where it is installed, else Valkey. Raises NoServerError."""
    try:
        binary("redis")
    except NoServerError:
        binary("valkey")
        return "valkey"
    return "redis"


def minimal_acl(user: str, password: str, namespace: str) -> list[str]:
    """The ACL SETUSER that docs/redis.md gives, for this user and namespace (may be a pattern)."""
    found = re.search(r"^ACL SETUSER .*?(?=^```)", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{GUIDE} gives no ACL SETUSER"
    words = found[0].replace("\\\n", " ").replace("{default}", f"{{{namespace}}}").split()
    words[2] = user
    return [f">{password}" if word.startswith(">") else word for word in words]


def make_certificates(folder: Path) -> None:
    """`ca.crt`, and `server.crt` with `server.key` for 127.0.0.1 and localhost, good for two days. Raises NoServerError without openssl."""
    if shutil.which("openssl") is None:
        raise NoServerError("no openssl here to make a certificate (apt-get install openssl)")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"]

    def openssl(*args: Any) -> None:
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=given(30))

    openssl(
        "req", "-x509", *key, "-days", 2, "-subj", "/CN=UpNext test CA", "-keyout", folder / "ca.key", "-out", folder / "ca.crt",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    openssl("req", *key, "-subj", "/CN=localhost", "-keyout", folder / "server.key", "-out", folder / "server.csr")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(
        "x509", "-req", "-in", folder / "server.csr", "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial",
        "-days", 2, "-sha256", "-extfile", folder / "ext", "-out", folder / "server.crt",
    )  # fmt: skip


def _unix() -> Topology:
    return Single(Server(any_kind()), lambda server: server.url)


TOPOLOGIES: dict[str, Callable[[], Topology]] = {
    "redis7": lambda: Single(Server("redis"), lambda server: server.tcp_url),
    "valkey": lambda: Single(Server("valkey"), lambda server: server.tcp_url),
    "unix": _unix,
    "tls": Tls,
    "acl": Acl,
    "sentinel": Sentinels,
    "cluster": Cluster,
}


def why_not(kind: str) -> str | None:
    """Why this machine can't have it; None when it can."""
    try:
        if kind in ("redis7", "tls"):
            binary("redis")
            if kind == "tls" and shutil.which("openssl") is None:
                return "no openssl here to make a certificate (apt-get install openssl)"
        elif kind == "valkey":
            binary("valkey")
        else:
            any_kind()
    except NoServerError as missing:
        return str(missing)
    return None
