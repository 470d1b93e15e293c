"""A bounded folder of images: uploads, and results that are answered as URLs.

There is no state but the folder, so that several servers may share it. An image is protected by its id, which cannot be
guessed.
"""

import io
import re
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL.Image import Image

from ddit.files import write_atomically

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif"}
ID = re.compile(r"file-[0-9a-f]{32}")


@dataclass(frozen=True)
class StoredFile:
    """An image in the store: its id, file, bytes and the time (Unix seconds) at which it was stored."""

    id: str
    path: Path
    num_bytes: int
    created: int

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES.get(self.path.suffix[1:], "application/octet-stream")


class FileStore:
    """At most so many files, of so many bytes together; the oldest are removed for new ones.

    Args:
        folder: created if missing; None: a temporary one, removed by `close`.

    Raises:
        ValueError: if the folder cannot be written to.
    """

    def __init__(self, folder: Path | None, *, max_files: int, max_bytes: int) -> None:
        self.max_files, self.max_bytes = max_files, max_bytes
        self._temporary = tempfile.TemporaryDirectory(prefix="ddit-files-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or "")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ValueError(f"cannot write to '{self.folder}': {error.strerror}") from None

    def close(self) -> None:
        """Removes the folder, if it is a temporary one."""
        if self._temporary:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, data: bytes, suffix: str) -> StoredFile:
        """Stores an image of that format. Raises ValueError if it alone is larger than the store."""
        if len(data) > self.max_bytes:
            raise ValueError(f"a file of {len(data):,} bytes is larger than the store ({self.max_bytes:,})")
        if suffix not in MEDIA_TYPES:
            suffix = "bin"
        path = self.folder / f"file-{secrets.token_hex(16)}.{suffix}"
        with write_atomically(path) as part:
            part.write_bytes(data)
        self._make_room(path)
        return self._describe(path)

    def find(self, file_id: str) -> StoredFile | None:
        """The file of that id, if it is still there."""
        if not ID.fullmatch(file_id):
            return None
        for suffix in (*MEDIA_TYPES, "bin"):
            try:
                return self._describe(self.folder / f"{file_id}.{suffix}")
            except FileNotFoundError:
                continue
        return None

    def read(self, file_id: str) -> bytes | None:
        """The bytes of that file, if it is still there."""
        found = self.find(file_id)
        try:
            return None if found is None else found.path.read_bytes()
        except FileNotFoundError:  # removed by another server
            return None

    def remove(self, file_id: str) -> bool:
        """Removes a file; False if there is none of that id."""
        found = self.find(file_id)
        if found is None:
            return False
        found.path.unlink(missing_ok=True)
        return True

    def _describe(self, path: Path) -> StoredFile:
        status = path.stat()
        return StoredFile(path.stem, path, status.st_size, int(status.st_mtime))

    def _make_room(self, newest: Path) -> None:
        files = []
        for path in self.folder.glob("file-*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        files.sort()
        count, size = len(files), sum(num_bytes for _, num_bytes, _ in files)
        for _, num_bytes, path in files:
            if count <= self.max_files and size <= self.max_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                count, size = count - 1, size - num_bytes


def encode_image_file(image: Image, output_format: str, quality: int | None = None) -> bytes:
    """An image as a PNG, JPEG or WebP file; quality (0 to 100) is of the latter two."""
    buffer = io.BytesIO()
    options: dict[str, int] = {} if output_format == "png" or quality is None else {"quality": quality}
    image.save(buffer, output_format.upper(), **options)
    return buffer.getvalue()
