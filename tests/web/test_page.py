"""The status page in a real Chromium, over the real routes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from overlay.web.page import HEADERS, page
from tests.web.app import document, patch, serving, write
from tests.web.chromium import CHROMIUM, Chromium

browser = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")

HOSTILE = "<img src=https://elsewhere.example/x onerror=alert(1)><script>document.title='owned'</script>"


class Elements(HTMLParser):
    """What a page would load or run by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            (tag, name, value) for name, value in attrs if name in ("src", "href", "style") or name[:2] == "on"
        ]


def test_the_page_names_no_other_place_and_no_code_outside_its_script() -> None:
    assert Elements(page()).found == [("link", "href", "data:,"), ("a", "href", "overlay/status")]
    assert "://" not in page()


def test_the_policy_allows_nothing_by_default_and_no_inline_code_but_ours() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert all(re.fullmatch(r"'sha256-[\w+/]{43}='", policy[name]) for name in ("script-src", "style-src"))
    assert policy["connect-src"] == "'self'"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(tmp_path / "profile") as started:
        yield started


@pytest.fixture
def schedulers(run: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that are schedulers by their status files."""
    counters = {"calls": 12345, "fallbacks": 2, "failures": 0, "shadowed": 7}
    processes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    for rank, process in enumerate(processes):
        patches = (
            patch("gemma-rmsnorm", counters=counters, worst_error=0.0078125),
            patch("off", "disabled", "not asked"),
        )
        write(run, document("scheduler", *patches, pid=process.pid, ranks={"tp": rank}))
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@browser
def test_the_page_follows_the_server(run: Path, chromium: Chromium, schedulers: list[subprocess.Popen[bytes]]) -> None:
    own = document("http-server", patch("q", "planned", "not imported"))
    with serving(run, own) as url:
        chromium.go(f"{url}/overlay")
        text = chromium.until(lambda text: "scheduler tp1" in text)
        lines = text.splitlines()
        assert lines[1] == "healthy"
        assert [line for line in lines if line.startswith(("scheduler", "http-server"))] == [
            "scheduler tp0", "scheduler tp1", "http-server",
        ]  # fmt: skip
        assert text.count("gemma-rmsnorm\tapplied\t12,345\t2\t0\t7\t0.00781\tback-port") == 2
        assert "not asked" not in text and "1 disabled" in text  # folded, and counted
        chromium.evaluate("document.querySelector('summary').click()")
        chromium.until(lambda text: "not asked" in text)

        schedulers[0].kill()
        schedulers[0].wait()
        ended = chromium.until(lambda text: "was applied" in text).splitlines()
        assert ended[1] == "not healthy" and f"scheduler tp0 (pid {schedulers[0].pid}) has ended" in ended
        assert "not asked" in "\n".join(ended), "what a reader unfolded stays so"

        broken = patch("gemma-rmsnorm", "failed", HOSTILE)
        write(run, document("scheduler", broken, pid=schedulers[1].pid, ranks={"tp": 1}))
        chromium.until(lambda text: f"failed\t{HOSTILE}" in text)
        assert chromium.evaluate("document.querySelectorAll('img, script').length") == 1
        assert chromium.evaluate("document.title").startswith("! amd-sglang on ")
        assert {request.partition("/overlay")[0] for request in chromium.requests} == {url}
        assert chromium.complaints == []
    chromium.until(lambda text: "no answer" in text)


@browser
def test_the_page_works_below_a_path_of_a_proxy(run: Path, chromium: Chromium) -> None:
    with serving(run, document("http-server"), below="/below/this") as url:
        chromium.go(f"{url}/below/this/overlay")
        chromium.until(lambda text: "healthy" in text)
        assert chromium.requests[-1] == f"{url}/below/this/overlay/status"


@browser
def test_the_browser_itself_refuses_what_the_page_does_not_bring(run: Path, chromium: Chromium) -> None:
    """A guard of the test above: it would be empty if nothing reported a breach of the policy."""
    with serving(run, document("http-server")) as url:
        chromium.go(f"{url}/overlay")
        chromium.until(lambda text: "healthy" in text)
        assert chromium.complaints == []
        chromium.evaluate(
            "document.head.append(Object.assign(document.createElement('script'), {textContent: 'x = 1'}))"
        )
        assert chromium.evaluate("fetch('https://elsewhere.example/').then(() => 'sent', () => 'refused')") == "refused"
        assert chromium.evaluate("typeof x") == "undefined"
    for directive in ("script-src", "connect-src"):
        assert any("Content Security Policy" in one and directive in one for one in chromium.complaints)
