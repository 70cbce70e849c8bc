"""Drives headless Chromium for tests through its DevTools protocol, over a pipe. This needs no further package.

Chromium reads JSON messages from file descriptor 3 and writes JSON messages to file descriptor 4, each with a zero byte
at its end (`--remote-debugging-pipe`). Source: the Chrome DevTools Protocol, domains Page, Runtime, Input, Emulation.
"""

import base64
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernels.program import die_with_parent

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded")  # events about errors in a page


def program() -> str:
    """Return the path of a Chromium program. Skips the test if there is none."""
    path = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if path is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    return path


class Browser:
    """A headless browser with one page.

    complaints: the errors of the page. requests: the addresses that the page has loaded.
    """

    def __init__(self, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        arguments = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")
        self._process = subprocess.Popen(
            [program(), *arguments, f"--user-data-dir={profile}", "--disable-background-networking", "about:blank"],
            preexec_fn=functools.partial(connect, to_browser, from_browser, os.getpid()),
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._received = 0, b""
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        (page, *_) = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result. Events that arrive before the answer are recorded."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        """Return the next message. If it is an event about an error or a request, it is also recorded."""
        while b"\0" not in self._received:
            block = os.read(self._read, 1 << 20)
            assert block, "the browser has ended"
            self._received += block
        text, _, self._received = self._received.partition(b"\0")
        message = json.loads(text)
        method, parameters = message.get("method"), message.get("params", {})
        if method in COMPLAINTS or (
            method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning")
        ):
            self.complaints.append(json.dumps(parameters)[:500])
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        return message

    def open(self, path: Path, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of the given size, and wait until the file is loaded."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Page.navigate", url=path.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page. If the value is a promise, wait for its result."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str, number: int = 0) -> None:
        """Click on the middle of element `number` among the elements that match the selector."""
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, *self.middle(selector, number), button="left", clickCount=1)

    def middle(self, selector: str, number: int = 0) -> tuple[float, float]:
        """Return the middle of an element, in coordinates of the window, after scrolling the element into view."""
        element = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        box = self.run(f"{element}.getBoundingClientRect().toJSON()")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def type(self, selector: str, text: str) -> None:
        """Replace the text of a field with `text`, as if a user had typed it."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page if requested."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)


def connect(to_browser: int, from_browser: int, parent: int) -> None:
    """Prepare the browser's process before it runs Chromium: the pipes become file descriptors 3 and 4."""
    die_with_parent(parent)
    ends = os.dup(to_browser), os.dup(from_browser)  # copies, because the pipes may already use 3 or 4
    for end, number in zip(ends, (3, 4), strict=True):
        os.dup2(end, number)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A context that provides a browser. The browser keeps its files in the folder `profile`."""
    opened = Browser(profile)
    try:
        yield opened
    finally:
        opened.close()
