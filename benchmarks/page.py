"""A client of the page without a browser: it says where its camera is, and takes the pictures that come."""

from __future__ import annotations

import io
import time
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import viser
import zstandard
from PIL import Image
from websockets.sync.client import connect
from websockets.typing import Subprotocol


class Page:
    """Connected to a page that a port of this machine serves. `arrived` has (moment, picture) of what has come,
    unless it is not to be decoded."""

    def __init__(self, port: int, headers: dict[str, str] | None = None, decode: bool = True) -> None:
        protocol = Subprotocol(f"viser-v{viser.__version__}")
        self._socket = connect(
            f"ws://127.0.0.1:{port}",
            subprotocols=[protocol],
            max_size=None,
            compression=None,
            additional_headers=headers,
        )
        self._decode = decode
        self.arrived: list[tuple[float, np.ndarray]] = []
        self.messages: list[dict[str, Any]] = []

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def say(self, kind: str, **content: Any) -> None:
        """Send one message."""
        self._socket.send(msgspec.msgpack.encode({"type": kind} | content))

    def look(
        self, eye: np.ndarray, target: np.ndarray, up: np.ndarray, width: int, height: int, fov: float = 0.87
    ) -> None:
        """Say where the camera is."""
        forward = (target - eye) / np.linalg.norm(target - eye)
        right = np.cross(forward, up)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward], axis=1)
        wxyz = viser.transforms.SO3.from_matrix(rotation).wxyz
        self.say(
            "ViewerCameraMessage", wxyz=wxyz.tolist(), position=eye.tolist(), fov=fov, near=0.01, far=100.0,
            image_height=height, image_width=width, look_at=target.tolist(), up_direction=up.tolist(),
        )  # fmt: skip

    def listen(self, seconds: float, pictures: int | None = None) -> int:
        """Take what comes for so long, or until so many pictures more have come; how many they were."""
        end, before = time.perf_counter() + seconds, len(self.arrived)
        while (left := end - time.perf_counter()) > 0:
            try:
                raw = self._socket.recv(timeout=left)
            except TimeoutError:
                break
            now = time.perf_counter()
            if not self._decode:
                continue
            assert isinstance(raw, bytes)
            packed = int.from_bytes(raw[8:16], "little")
            payload = zstandard.ZstdDecompressor().decompress(raw[16 : 16 + packed])
            start = 16 + packed
            start += -start % 8
            content = msgspec.msgpack.decode(payload)
            buffers = []
            for length in content["binaryBufferLengths"]:
                buffers.append(raw[start : start + length])
                start += length + -length % 8
            for message in content["messages"]:
                self.messages.append(message)
                if message["type"] == "BackgroundImageMessage" and message["rgb_data"] is not None:
                    self.arrived.append((now, _picture(message["rgb_data"], buffers)))
            if pictures is not None and len(self.arrived) - before >= pictures:
                break
        return len(self.arrived) - before


def _picture(data: Any, buffers: list[bytes]) -> np.ndarray:
    if isinstance(data, dict):  # a reference to one of the buffers behind the message
        index = next(value for value in data.values() if isinstance(value, int))
        data = buffers[index]
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
