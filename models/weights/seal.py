"""What a snapshot of Duet ends with (trainer/sealed.py writes it): magic, length and SHA-256 of all bytes before it."""

import hashlib
import os
import struct
from typing import BinaryIO

TRAILER = struct.Struct("<8sQ32s")  # magic, length of the archive, its digest
MAGIC = b"DUETSNAP"


def is_whole(file: BinaryIO) -> bool | None:
    """Whether a file has the bytes that its trailer tells; None where it has no trailer. Leaves it at its start."""
    length = max(file.seek(0, os.SEEK_END) - TRAILER.size, 0)
    file.seek(length)
    trailer = file.read()
    file.seek(0)
    if not trailer.startswith(MAGIC) or len(trailer) < TRAILER.size:
        return None
    _, stated, digest = TRAILER.unpack(trailer)
    whole = stated == length and digest_of(file, length) == digest
    file.seek(0)
    return whole


def digest_of(file: BinaryIO, length: int) -> bytes:
    """SHA-256 of the next `length` bytes."""
    digest = hashlib.sha256()
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.digest()
