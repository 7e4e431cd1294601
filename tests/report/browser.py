"""Headless Chromium, spoken to over a pipe: enough to click, type, hover and look.

The DevTools protocol takes JSON messages that end in a zero byte; with
``--remote-debugging-pipe`` Chromium reads them from file descriptor 3 and writes to 4,
so that no package and no port is needed.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip

# Moves the pipes to their numbers and becomes the browser. Python's preexec_fn would do
# it, but forks, which JAX's threads do not take.
_PLACE = """
import os, sys
read, write = (os.dup(int(x)) for x in sys.argv[1:3])
read, write = os.dup2(read, 100), os.dup2(write, 101)
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find() -> str | None:
    """Returns the path of a Chromium, or None."""
    return next((p for n in NAMES if (p := shutil.which(n))), None)


class Browser:
    """One page in a browser of its own."""

    def __init__(self, path: Path, width: int = 1200, height: int = 1400) -> None:
        executable = find()
        assert executable is not None
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        size = f"--window-size={width},{height}"
        home = f"--user-data-dir={self._home.name}"
        pipes = (str(to_read), str(to_write))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PLACE, *pipes, executable, *_FLAGS, size, home],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(to_read, to_write),
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._count, self._rest, self._session = 0, b"", ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete' && !!document.body")

    def send(self, method: str, **params: Any) -> Any:
        """Sends a command and returns its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method}
        message["params"] = params
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("id") == self._count:
                assert "error" not in got, got
                return got["result"]
            if got.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(got["params"]["exceptionDetails"]))
            if got.get("method") == "Network.requestWillBeSent":
                self.requests.append(got["params"]["request"]["url"])

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 20)
            assert more, "the browser ended"
            self._rest += more
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        got = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def until(self, expression: str, tries: int = 200) -> None:
        """Waits until a JavaScript expression is true."""
        for _ in range(tries):
            if self.evaluate(expression):
                return
            self.evaluate("new Promise(done => setTimeout(done, 50))")
        raise AssertionError(f"never true: {expression}")

    def _middle(self, selector: str, across: float = 0.5) -> tuple[float, float]:
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x, b.y, b.width, b.height]; })()"
        )
        return box[0] + across * box[2], box[1] + box[3] / 2

    def hover(self, selector: str, across: float = 0.5) -> None:
        """Moves the mouse over an element, at a share of its width."""
        x, y = self._middle(selector, across)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Clicks the middle of an element."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                clickCount=1,
            )  # fmt: skip

    def type(self, selector: str, text: str) -> None:
        """Clicks into a field and types."""
        self.click(selector)
        self.send("Input.insertText", text=text)

    def press(self, *keys: str) -> None:
        """Presses keys, by name, in whatever has the focus."""
        for key in keys:
            text = {"text": "\r"} if key == "Enter" else {}
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, path: Path) -> None:
        """Writes what is seen, as PNG."""
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)
        self._home.cleanup()
