"""A headless Chromium, driven through its debugging protocol, for tests that must see what a user sees."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
    "--mute-audio", "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip


class Browser:
    """One page of a given size. Use it in a `with` block."""

    def __init__(self, folder: Path, width: int = 1000, height: int = 640) -> None:
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip("there is no Chromium on this machine")
        self.folder = folder
        profile = folder / "profile"
        command = [program, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port, path = self._endpoint(profile)
            self._socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None)
            target = next(t for t in self._ask("Target.getTargets", None)["targetInfos"] if t["type"] == "page")
            attached = self._ask("Target.attachToTarget", None, targetId=target["targetId"], flatten=True)
            self._session = attached["sessionId"]
            self.requests: list[str] = []
            for domain in ("Page", "Runtime", "Network"):
                self.send(f"{domain}.enable")
            self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _endpoint(self, profile: Path) -> tuple[str, str]:
        file = profile / "DevToolsActivePort"
        for _ in range(300):
            if file.is_file() and len(lines := file.read_text().split("\n")) >= 2:
                return lines[0], lines[1]
            time.sleep(0.1)
        pytest.skip("Chromium does not start on this machine")

    _number = 0
    _session: str | None = None

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command to the page, and its answer."""
        return self._ask(method, self._session, **parameters)

    def _ask(self, method: str, session: str | None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer.get("result", {})

    def open(self, address: str) -> None:
        """Go to an address."""
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        return self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )

    def wait(self, script: str, seconds: float = 30.0) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.1)

    def picture(self) -> np.ndarray:
        """What is to be seen, [H, W, 3] uint8."""
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))

    def drag(self, x: float, y: float, dx: float, dy: float, steps: int = 8) -> None:
        """Press the mouse, move it, let it go."""
        self.send("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        for i in range(1, steps + 1):
            at = {"x": x + dx * i / steps, "y": y + dy * i / steps}
            self.send("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, **at)
            time.sleep(0.03)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=x + dx, y=y + dy, button="left", clickCount=1)

    def click(self, text: str) -> None:
        """Press the button, tab or link that says `text`."""
        found = f"all.find(e => e.matches('button, [role=tab], a, label') && says(e, {json.dumps(text)}))"
        self._press(found, text)

    def toggle(self, label: str) -> None:
        """Press the checkbox beside a label."""
        box = "e.querySelector('input[type=checkbox]')"
        nearest = f"let e = all.find(e => says(e, {json.dumps(label)})); while (e && !{box}) e = e.parentElement;"
        self._press(f"(() => {{ {nearest} return e && {box} }})()", label)

    def _press(self, element: str, text: str) -> None:
        # Tabs listen to the pointer and not to the click alone, so a real one is made at the middle of the element.
        where = self.run(
            f"""(() => {{
              const all = [...document.querySelectorAll('*')].filter(e => e.getClientRects().length);
              const says = (e, t) => e.innerText && e.innerText.trim() === t;
              const found = {element};
              if (!found) return null;
              found.scrollIntoView({{block: 'center'}});
              const box = found.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        assert where is not None, f"nothing on the page says {text!r}"
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)
