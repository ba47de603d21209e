"""A headless chromium that looks at pages, through the DevTools protocol over its pipe."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = ("--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe")
PATIENCE_S = 120.0
PHONE, DESKTOP = 390, 1280


class Browser:
    """One process. Messages are JSON with a zero byte after each: ours on its descriptor 3, its own on 4."""

    def __init__(self, program: str, profile: Path) -> None:
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()

        def join() -> None:
            # Away from 3 and 4 first: a pipe's own number may be one of them.
            incoming, outgoing = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(incoming, 3)
            os.dup2(outgoing, 4)

        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        self._process = subprocess.Popen(
            [program, *OPTIONS, *sandbox, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=join,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Call a method of the protocol, and return its result. Events that come meanwhile go to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        """Until such an event has come."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        killer = threading.Timer(PATIENCE_S, self._process.kill)
        killer.start()
        try:
            while b"\0" not in self._buffer:
                part = os.read(self._in, 1 << 16)
                assert part, "the browser ended, or did not answer"
                self._buffer += part
        finally:
            killer.cancel()
        message, _, self._buffer = self._buffer.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    @contextlib.contextmanager
    def open(self, file: Path, width: int = DESKTOP, dark: bool = False) -> Iterator[Page]:
        """The page, loaded, at so many CSS pixels; PHONE's width means a phone: its viewport, and touch."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        phone = width == PHONE
        page.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", features=[scheme])
        page.send("Page.navigate", url=file.resolve().as_uri())
        self.wait_for("Page.loadEventFired")
        # The charts are drawn by then, and what observes their size has been called.
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        try:
            yield page
        finally:
            self.send("Target.closeTarget", targetId=target)


WIDTHS = "Math.min(...[...document.querySelectorAll('.plot svg')].map(svg => svg.clientWidth))"
SIZES = "Math.min(...[...document.querySelectorAll('.plot text')].map(t => parseFloat(getComputedStyle(t).fontSize)))"


class Page:
    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def send(self, method: str, **params: Any) -> Any:
        return self._browser.send(method, self._session, **params)

    def evaluate(self, script: str) -> Any:
        """The value of an expression there, awaited if it is a promise."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def count(self, selector: str) -> int:
        """Elements that a CSS selector finds."""
        found: int = self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")
        return found

    def mouse_to(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    @property
    def complaints(self) -> list[str]:
        """What a console would show in yellow or red, dialogs, and what went to the network."""
        found = []
        for event in self._browser.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(str(params["args"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif method == "Page.javascriptDialogOpening":
                found.append(f"dialog: {params['message']}")
            elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
                found.append(f"request: {params['request']['url']}")
        return found


def check_page(browser: Browser, file: Path) -> None:
    """What holds for every page at any width and theme: nothing to complain of, no sideways scrolling, charts drawn."""
    for width in (PHONE, DESKTOP):
        for dark in (False, True):
            with browser.open(file, width, dark) as page:
                assert not page.complaints, f"it complains: {page.complaints}"
                assert page.evaluate("document.documentElement.scrollWidth") <= width, f"scrolls sideways at {width} px"
                assert (luminance(page, "background-color") < 0.05) == dark, "the ground is of the other theme"
                assert (luminance(page, "color") > 0.5) == dark, "the text is of the other theme"
                assert page.count("figure.chart:not(:has(svg path.curve))") == 0, "a chart was not drawn"
                assert page.evaluate(WIDTHS) >= 250, "a chart is too narrow to read"
                assert page.evaluate(SIZES) >= 11, "a chart's text is too small to read"


def luminance(page: Page, name: str) -> float:
    """Of a colour of the page's body: 0 black, 1 white (WCAG's relative luminance)."""
    colour = page.evaluate(f"getComputedStyle(document.body).getPropertyValue({name!r})")
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no chromium here: `apt-get install chromium` brings it")
    with Browser(program, tmp_path_factory.mktemp("browser")) as one:
        yield one
