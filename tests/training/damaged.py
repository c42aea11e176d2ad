"""Damaged and malicious files."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch


def flip(content: bytes, at: float) -> bytes:
    place = int(at * (len(content) - 1))
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


class Code:
    """An object that is pickled to a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def malicious(path: Path) -> bytes:
    """Write a file that contains code and has the right checksum."""
    buffer = io.BytesIO()
    torch.save({"kind": "checkpoint", "description": Code(path), "state": {}}, buffer)
    payload = buffer.getvalue()
    return b"pyrovae archive 1 %s\n%s" % (hashlib.sha256(payload).hexdigest().encode(), payload)
