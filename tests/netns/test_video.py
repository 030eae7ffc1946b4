"""The website with video in a real Chromium, which runs in a client and plays through the VIP."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from realhosts import WEB_PORT, RunningBalancer, running_balancer, running_testbed

from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_MS = 60_000
POSITION_S = "document.getElementById('video').currentTime"
SERVERS_SEEN = "[...document.querySelectorAll('#chunks [data-server]')].map(row => row.dataset.server)"
BITRATES_SEEN = "[...document.querySelectorAll('#chunks [data-server]')].map(row => Number(row.cells[2].textContent))"


def _require_player(testbed: Testbed) -> str:
    """Return the browser's path; skip, with the reason, where the video cannot be made or played."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    if "stand-ins" in testbed.facts["video"]:
        pytest.skip(f"video: {testbed.facts['video']}")
    return program


@contextmanager
def _running_browser(testbed: Testbed) -> Iterator[Browser]:
    """Run Chromium in client1: it has the client's network and no other."""
    program = _require_player(testbed)
    with testbed.inside("client1"):
        playwright = sync_playwright().start()
    try:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
    finally:
        playwright.stop()


@pytest.fixture(scope="module")
def own_testbed(unique: str) -> Iterator[Testbed]:
    """Give a testbed with a balancer for what is about the page, not about packets."""
    with running_testbed(f"{unique}v-") as testbed, running_balancer(testbed, "rust"):
        yield testbed


def _open_page(browser: Browser, complaints: list[str]) -> Page:
    """Open the website; what the page complains about is added to `complaints`."""
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://{VIP}:{WEB_PORT}/")
    return page


@pytest.mark.slow
def test_page_plays_ten_seconds_from_several_servers(hosts: Testbed, balancer: RunningBalancer) -> None:
    """Ten seconds of video are played without complaint, and chunks came from at least two servers."""
    complaints: list[str] = []
    with _running_browser(hosts) as browser:
        page = _open_page(browser, complaints)
        page.wait_for_function(f"{POSITION_S} >= 10", timeout=DEADLINE_MS)
        seen = set(page.evaluate(SERVERS_SEEN))
        assert len(seen) >= 2
        assert complaints == []
        assert set(page.locator("#shares strong").all_inner_texts()) == seen


@pytest.mark.slow
def test_page_on_a_kept_connection_stays_with_its_server(own_testbed: Testbed) -> None:
    """Without new connections chunks soon come from one server only: flows are balanced, not requests."""
    with _running_browser(own_testbed) as browser:
        page = _open_page(browser, [])
        page.locator("#fresh").uncheck()
        latest_agree = f"((seen) => seen.length >= 6 && new Set(seen.slice(0, 3)).size === 1)({SERVERS_SEEN})"
        page.wait_for_function(latest_agree, timeout=DEADLINE_MS)


@pytest.mark.slow
def test_page_behind_a_narrow_link_lowers_the_bitrate(own_testbed: Testbed) -> None:
    """When the way to the client gives 700 kbit/s, the player goes down from 1000 kbit/s, and the video plays on."""
    with _running_browser(own_testbed) as browser:
        page = _open_page(browser, [])
        page.wait_for_function(f"{BITRATES_SEEN}.includes(1000)", timeout=DEADLINE_MS)
        with _limited(own_testbed, "router", "700kbit"):
            page.wait_for_function(f"{BITRATES_SEEN}[0] < 1000", timeout=DEADLINE_MS)
            position = page.evaluate(POSITION_S)
            page.wait_for_function(f"{POSITION_S} >= {position + 5}", timeout=DEADLINE_MS)


@contextmanager
def _limited(testbed: Testbed, host: str, rate: str) -> Iterator[None]:
    """Let a host send no faster than a rate for the block."""
    with testbed.inside(host):
        limit = f"tc qdisc replace dev eth0 root tbf rate {rate} burst 16kb latency 400ms"
        subprocess.run(limit.split(), check=True, capture_output=True)
    try:
        yield
    finally:
        with testbed.inside(host):
            subprocess.run(["tc", "qdisc", "del", "dev", "eth0", "root"], check=True, capture_output=True)
