"""Make the pictures of README and docs: the dashboard in a real browser, `ctl status` and `ctl top` as text drawn to SVG.

    scripts/pictures [--out docs/pictures] [--every]    --every: each page, both themes, three widths (to look at, not to keep)

Needs chromium, and playwright from the package index (an extra of development).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo import BIN, ROOT, Shop, StepError, say, wait_for
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.text import Text

import upnext

SERVICE = '''"""A shop's background work."""

import asyncio
import random

import upnext

worker = upnext.Worker("shop", concurrency=8)
mail = upnext.Worker("mail", concurrency=4)
order_placed = worker.event("order.placed")


class CardDeclined(Exception):
    pass


@worker.task(retries=2, retry_delay=0.2, max_concurrency=6)
async def charge_card(order_id: str, cents: int) -> str:
    await asyncio.sleep(random.uniform(0.01, 0.2))
    if cents % 7 == 0:
        raise CardDeclined(f"card of {order_id} was declined")
    return f"charged {cents / 100:.2f} for {order_id}"


@worker.task(timeout=600)
async def import_rows(path: str, rows: int) -> int:
    upnext.get_current_context().set_progress(0.4, f"19200 of {rows} rows of {path}")
    await asyncio.sleep(600)
    return rows


@mail.task(rate_limit="50/s")
async def send_mail(to: str, subject: str = "Your order") -> None:
    await asyncio.sleep(0.01)


@mail.task
async def newsletter(number: int) -> None:
    await asyncio.sleep(0.01)


@order_placed.on
async def confirm(order_id: str) -> None:
    await send_mail.submit(f"{order_id}@example.org")


@order_placed.on
async def reserve_stock(order_id: str) -> None:
    await asyncio.sleep(0.02)


@worker.cron("*/5 * * * *")
async def reconcile() -> None: ...


@worker.cron("0 9 * * mon")
async def weekly_report() -> None: ...
'''
PAGES = (
    "/",
    "/hosts",
    "/workers",
    "/tasks",
    "/tasks/charge_card",
    "/jobs",
    "/crons",
    "/events",
    "/dead",
    "/limits",
    "/activity",
)
WIDTHS = (360, 1280, 2560)


def fill(code: Any) -> str:
    """Give the service something of everything; return the id of a job that runs for long."""
    for number in range(60):
        code.charge_card.submit_sync(f"A{number}", 100 + number)
        code.order_placed.send_sync(order_id=f"A{number}")
    held = code.import_rows.submit_sync("products.csv", 48_000)
    for number in range(40):
        code.newsletter.options(delay=3600).submit_sync(number)
    return held.job_id


@contextlib.contextmanager
def dashboard(shop: Shop) -> Iterator[tuple[str, str]]:
    """Yield (base URL, one-time link) of a dashboard beside the shop's daemon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [str(BIN / "upnext"), "dashboard", "--listen", listen, "--state-dir", str(shop.directory / "dashboard")]
    environment = {**os.environ, "UPNEXT_REDIS_URL": shop.url, "UPNEXTD_SOCKET": str(shop.socket)}
    with (shop.directory / "dashboard.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def link() -> str:
        done = subprocess.run([*command, "url"], env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(listen.split(":"), 1):  # type: ignore[arg-type]
            return True
        return False

    try:
        wait_for(answers, 30, "the dashboard to listen")
        yield f"http://{listen}", wait_for(link, 30, "a link to log in")
    finally:
        process.terminate()
        process.wait(20)


def shoot(browser: Browser, base: str, link: str, pages: list[tuple[str, str]], out: Path, *, every: bool) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, device_scale_factor=1)
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(link)
    page.wait_for_url(f"{base}/")
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        for width in WIDTHS if every else (1280,):
            page.set_viewport_size({"width": width, "height": 800})
            for name, path in pages:
                page.goto(base + path)
                wide = page.evaluate("document.documentElement.scrollWidth")
                if wide > width:
                    errors.append(f"{path} is {wide} px wide on a screen of {width}")
                page.screenshot(
                    path=out / (f"{name}-{theme}-{width}.png" if every else f"{name}-{theme}.png"), full_page=every
                )
    if errors:
        raise StepError("\n".join(sorted(set(errors))))


def terminal(shop: Shop, out: Path) -> None:
    """Draw what `ctl status` prints at 110 columns."""
    done = subprocess.run(
        [str(BIN / "upnext"), "ctl", "--socket", str(shop.socket), "status"],
        env={**os.environ, "COLUMNS": "110", "FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True)
    console.print("[bold]$ upnext ctl status")
    console.print(Text.from_ansi(done.stdout.rstrip()))
    (out / "ctl-status.svg").write_text(console.export_svg(title="upnext ctl status"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the pictures of README and docs.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--every", action="store_true")
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        say("pictures: needs chromium")
        return 1
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        service = Path(folder) / "shop.py"
        service.write_text(SERVICE)
        sys.path.insert(0, folder)
        shop = Shop(service)
        try:
            shop.start()
            wait_for(shop.ready, 120, "upnextd ready")
            os.environ["UPNEXT_REDIS_URL"] = shop.url
            job_id = fill(importlib.import_module("shop"))
            time.sleep(6)
            pages = [(path.strip("/").replace("/", "-") or "overview", path) for path in PAGES]
            dead = upnext.jobs_sync(state="dead", task="charge_card")[0].job_id
            pages += [("job", f"/jobs/{urllib.parse.quote(job_id)}"), ("job-dead", f"/jobs/{urllib.parse.quote(dead)}")]
            with dashboard(shop) as (base, link), sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                keep = pages if given.every else [one for one in pages if one[0] in ("overview", "job")]
                shoot(browser, base, link, keep, out, every=given.every)
                browser.close()
            terminal(shop, out)
        finally:
            shop.close()
    say(f"pictures: in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
