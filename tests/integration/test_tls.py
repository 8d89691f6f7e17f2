"""The asyncio and the blocking client agree on what a TLS URL means: both are let in, or both refuse."""

import shutil
import uuid
from collections.abc import Iterator

import pytest

from tests.support.topologies import Tls
from upnext.core.submission import Submission
from upnext.engine.client import waiting
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.errors import BrokerUnavailableError, UpNextError

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None or shutil.which("redis-server") is None, reason="needs openssl and redis-server"
)


@pytest.fixture(scope="module")
def tls() -> Iterator[Tls]:
    server = Tls().start()
    yield server
    server.close()


JOB = Submission(task="f", payload=b"[]")


def blocking(url: str, namespace: str) -> str | UpNextError:
    try:
        client = SyncQueueClient(url, namespace)
        try:
            return client.submit(JOB)
        finally:
            client.close()
    except UpNextError as error:
        return error


async def asynchronous(url: str, namespace: str) -> str | UpNextError:
    try:
        client = QueueClient(url, namespace)
        try:
            return await client.submit(JOB)
        finally:
            await client.aclose()
    except UpNextError as error:
        return error


@pytest.mark.parametrize(
    ("options", "let_in"),
    [
        ("ssl_cert_reqs=none", True),
        ("ssl_cert_reqs=CERT_NONE", True),
        ("ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={ca}", True),
        ("ssl_cert_reqs=none&ssl_min_version=TLSv1_2", True),
        ("ssl_cert_reqs=required", False),
        ("ssl_ca_certs=/no/such/file", False),
        ("ssl_cert_reqs=none&ssl_certfile=/no/such/file", False),
        ("ssl_cert_reqs=none&ssl_ciphers=nonsense", False),
    ],
)
async def test_both_clients_read_the_options_alike(
    tls: Tls, options: str, let_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not let_in:
        monkeypatch.setattr(waiting, "SUBMIT_PATIENCE_S", 0.3)
    namespace = f"tls-{uuid.uuid4().hex[:8]}"
    url = f"rediss://127.0.0.1:{tls.port}/0?{options.format(ca=tls.folder / 'ca.crt')}"
    for seen in (blocking(url, namespace), await asynchronous(url, namespace)):
        assert isinstance(seen, str) if let_in else isinstance(seen, BrokerUnavailableError), seen
