"""The demo: a real daemon with a broker of its own runs examples/orders.py; a worker is killed, and its job runs again.

Every step checks what it says. The first that fails ends the demo with exit 1 and the reason; nothing is left running either way.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil

from upnext.control.client import ControlClient
from upnext.engine.client.per_loop import sync_broker
from upnext.engine.views import tasks
from upnext.errors import UpNextError

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "examples" / "orders.py"
BIN = Path(sys.executable).parent
ORDERS = 3
PAYMENTS = 8
WORKERS = 2


def free_port() -> int:
    """A TCP port that nothing has now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class StepError(Exception):
    """A step did not show what it should; the text says why."""


class Shop:
    """A daemon for `service`, in a directory of its own."""

    def __init__(self, service: Path = SERVICE, *, dashboard: bool = False) -> None:
        self.service = service
        self.dashboard = f"127.0.0.1:{free_port()}" if dashboard else None
        # The path of a Unix socket may have 107 bytes only.
        short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"
        self.directory = Path(tempfile.mkdtemp(prefix="upnext-demo-", dir=short))
        self.socket = self.directory / "orders.sock"
        self.state = self.directory / "state"
        self.log = self.directory / "upnextd.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(BIN / "upnextd"), "start", str(self.service), "--workers", str(WORKERS)]
        if self.dashboard is not None:
            command += ["--dashboard", self.dashboard]
        shown = self.service.relative_to(ROOT) if self.service.is_relative_to(ROOT) else self.service.name
        say(f"$ {shlex.join(['upnextd', 'start', str(shown), '--workers', str(WORKERS)])}")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--socket", str(self.socket), "--state-dir", str(self.state)],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the daemon
            )

    @property
    def url(self) -> str:
        return (self.state / "broker.url").read_text().strip()

    def control(self) -> ControlClient:
        return ControlClient(self.socket)

    def status(self) -> dict[str, Any]:
        with self.control() as client:
            return client.call("status")

    def ready(self) -> bool:
        assert self.process is not None
        if (code := self.process.poll()) is not None:
            raise StepError(f"upnextd ended with exit code {code}")
        with contextlib.suppress(UpNextError, OSError):
            status = self.status()
            return status["mode"] == "running" and status["ready_workers"] >= WORKERS
        return False

    def ctl(self, *words: str) -> None:
        """Runs `upnext ctl` as a person would and shows what it prints."""
        say(f"$ {shlex.join(['upnext', 'ctl', *words])}")
        done = subprocess.run(
            [str(BIN / "upnext"), "ctl", "--socket", str(self.socket), *words],
            env={**os.environ, "COLUMNS": os.environ.get("COLUMNS", str(shutil.get_terminal_size((140, 40)).columns))},
            check=False,
        )
        if done.returncode:
            raise StepError(f"upnext ctl {shlex.join(words)} ended with exit code {done.returncode}")

    @property
    def link_command(self) -> list[str]:
        """What prints a link that logs in to the dashboard."""
        assert self.dashboard is not None
        return ["upnext", "dashboard", "--listen", self.dashboard, "--state-dir", str(self.state), "url"]

    def link(self) -> str:
        """A link that is good for a minute, and once; "" where there is none."""
        _, *words = self.link_command
        done = subprocess.run([str(BIN / "upnext"), *words], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.strip()

    def done(self, task: str) -> int:
        """How many jobs of a task have ended well: what `upnext tasks` shows."""
        broker = sync_broker()
        known = tasks.tasks(broker, broker.keys, time.time_ns() // 1_000_000)
        return next((one.done for one in known if one.name == task), 0)

    def left(self) -> list[psutil.Process]:
        """Living processes of this daemon: they all work in its directory."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cwd", "status"]):
            cwd = process.info["cwd"] or ""
            if process.info["status"] != psutil.STATUS_ZOMBIE and (cwd + "/").startswith(f"{self.directory}/"):
                found.append(process)
        return found

    def close(self) -> None:
        """Ends whatever is left, at once."""
        for process in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


# ---- telling


def say(text: str = "") -> None:
    print(text, flush=True)


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str, pause_s: float = 0.05) -> Any:
    """What `condition` returned, once it is true. Raises StepError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise StepError(f"{what}: not within {timeout_s:g} s")
        time.sleep(pause_s)
    return value


# ---- the steps: each returns the line that says what it showed


def start(shop: Shop) -> str:
    begun = time.monotonic()
    shop.start()
    wait_for(shop.ready, 120, "upnextd ready", pause_s=0.01)
    after_ms = 1000 * (time.monotonic() - begun)
    os.environ["UPNEXT_REDIS_URL"] = shop.url
    return f"upnextd with {WORKERS} workers and a Valkey of its own was ready after {after_ms:.0f} ms"


def place_orders(shop: Shop, shop_code: Any) -> str:
    items = [shop_code.Item("tea", 2, Decimal("4.50")), shop_code.Item("cup", 1, Decimal("12.00"))]
    placed = [shop_code.place_order.submit_sync(f"o-{n}", items) for n in range(1, ORDERS + 1)]
    receipts = [future.value_sync(timeout=120) for future in placed]
    if any(receipt.total != Decimal("21.00") for receipt in receipts):
        raise StepError(f"wrong totals: {receipts}")
    say(f"  {receipts[0]}")
    payments = [shop_code.charge_card.submit_sync(f"p-{n}", Decimal("9.90")) for n in range(PAYMENTS)]
    attempts = sum(future.result_sync(timeout=120).attempts for future in payments)
    return f"{ORDERS} orders placed; {PAYMENTS} flaky payments went through in {attempts} attempts"


def handle_events(shop: Shop, shop_code: Any) -> str:
    handlers = ("order.placed.send_confirmation", "order.placed.reserve_stock")
    for handler in handlers:
        wait_for(lambda name=handler: shop.done(name) >= ORDERS, 60, f"{handler} for {ORDERS} orders")
    return f"the event order.placed reached both of its handlers, {ORDERS} times each"


def use_thread(shop: Shop, shop_code: Any) -> str:
    invoice = shop_code.render_invoice.wait_sync("o-1", [shop_code.Item("tea", 2, Decimal("4.50"))]).value
    if "o-1,tea,2,4.50,9.00" not in invoice:
        raise StepError(f"wrong invoice: {invoice!r}")
    return "a plain function ran in a thread of a worker"


def tick(shop: Shop) -> str:
    seen = shop.done("tick")
    wait_for(lambda: shop.done("tick") >= seen + 2, 60, "two ticks of the cron")
    return "a cron ticks every second"


def running(client: ControlClient, job_id: str) -> tuple[str, int, float] | None:
    """(slot, pid, when it started there by our monotonic clock) of a running job."""
    status = client.call("status")
    now = time.monotonic()
    for child in status["children"]:
        for job in child["in_flight"]:
            if job["job_id"] == job_id and child["state"] == "READY":
                return child["slot"], child["pid"], now - job["age_s"]
    return None


def kill_a_worker(shop: Shop, shop_code: Any) -> str:
    future = shop_code.pack_parcel.submit_sync("o-1", 2.0)
    with shop.control() as client:
        slot, pid, _ = wait_for(lambda: running(client, future.job_id), 60, "pack_parcel running", pause_s=0.002)
        time.sleep(0.5)  # into the middle of the job
        say(f"$ kill -9 {pid}    # {slot}, packing a parcel for half a second")
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)

        def elsewhere() -> tuple[str, int, float] | None:
            found = running(client, future.job_id)
            return found if found and found[1] != pid else None

        other, other_pid, started = wait_for(elsewhere, 60, "the killed worker's job running again", pause_s=0.002)
    after_ms = max(0.0, 1000 * (started - killed))
    say(f"  {future.job_id} started again on {other} (pid {other_pid})")
    wait_for(shop.ready, 60, "the killed worker replaced", pause_s=0.01)
    result = future.result_sync(timeout=120)
    say(f"  {result.value}")
    return f"{slot} was killed in the middle of a job: running again after {after_ms:.0f} ms"


def stop(shop: Shop) -> str:
    assert shop.process is not None
    shop.ctl("drain", "--wait")
    shop.ctl("stop")
    try:
        code = shop.process.wait(60)
    except subprocess.TimeoutExpired:
        raise StepError("upnextd did not end within 60 s") from None
    if code:
        raise StepError(f"upnextd ended with exit code {code}")
    wait_for(lambda: not shop.left(), 30, f"no process left of {[p.pid for p in shop.left()]}")
    return "drained, stopped, and nothing is left running"


def show_status(shop: Shop) -> str:
    shop.ctl("status")
    return "`upnext ctl status` shows every process and what it runs"


def play(shop: Shop, keep: bool) -> Iterator[str]:
    yield start(shop)
    sys.path.insert(0, str(SERVICE.parent))
    shop_code = importlib.import_module(SERVICE.stem)
    yield place_orders(shop, shop_code)
    yield handle_events(shop, shop_code)
    yield use_thread(shop, shop_code)
    yield tick(shop)
    yield show_status(shop)
    yield kill_a_worker(shop, shop_code)
    if not keep:
        yield stop(shop)


def stay(shop: Shop) -> None:
    """Leaves the daemon up until Ctrl-C, then stops it."""
    assert shop.process is not None
    programs = f"PATH={BIN}:$PATH"
    say("\nIt stays up. In another terminal:\n")
    say(f"  export {programs} UPNEXTD_SOCKET={shop.socket} UPNEXT_REDIS_URL={shlex.quote(shop.url)}")
    for command in (
        "upnext ctl status",
        """upnext call place_order --kwargs '{"order_id": "o-9", "items": [{"sku": "tea", "quantity": 1, "price": "4.50"}]}' --wait""",
        "upnext tasks",
        "upnext jobs --limit 5",
        "upnext cron list",
        "upnext ctl restart worker-1",
        f"tail -f {shop.log}",
    ):
        say(f"  {command}")
    if shop.dashboard is not None:
        say(f"\nThe dashboard, by a link that is good for a minute: {shop.link()}")
        say(f"  {shlex.join(shop.link_command)} prints another.")
    say("\nCtrl-C here stops it.")
    with contextlib.suppress(KeyboardInterrupt):
        shop.process.wait()
    if shop.process.poll() is None:
        say("\nstopping…")
        shop.process.terminate()
        shop.process.wait(40)


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description="Shows UpNext at work.")
    parser.add_argument(
        "--keep", action="store_true", help="keep the daemon up at the end, with a dashboard, and print commands to try"
    )
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("UPNEXT_", "UPNEXTD_"))]:
        del os.environ[name]  # they are about another daemon
    shop = Shop(dashboard=options.keep and importlib.util.find_spec("starlette") is not None)
    shown: list[str] = []
    # A closed terminal or a kill must not leave the daemon behind: both unwind to the cleanup below.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        for line in play(shop, options.keep):
            shown.append(line)
            say(f"✓ {line}\n")
        say("Shown:")
        for line in shown:
            say(f"  {line}")
        if options.keep:
            stay(shop)
    except KeyboardInterrupt:
        return 130
    except (StepError, UpNextError, OSError, TimeoutError, subprocess.SubprocessError) as error:
        say(f"✗ {type(error).__name__}: {error}" if not isinstance(error, StepError) else f"✗ {error}")
        if shop.log.exists():
            say("  the last lines of upnextd's log:")
            for line in shop.log.read_text(errors="replace").splitlines()[-15:]:
                say(f"    {line}")
        return 1
    finally:
        shop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
