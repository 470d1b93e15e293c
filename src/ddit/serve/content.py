"""Images that clients send: data URLs, uploads, masks and, if switched on, public addresses."""

import asyncio
import base64
import io
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request

from ddit.images import FORMATS, image_size, read_image, read_mask, read_transparency
from ddit.serve.errors import ApiError
from ddit.serve.fetching import fetch
from ddit.serve.files import FileStore, StoredFile
from ddit.serve.options import ServeConfig
from ddit.serve.schemas import LISTS

BARE_BASE64 = re.compile(r"[\w+/\s-]{64,}[=\s]*", re.ASCII)
URL_SAFE = str.maketrans("-_", "+/")
OWN_FILE = re.compile(r"(?:https?://[^/?#]+)?/v1/files/(file-[0-9a-f]{32})/content")


class ImageReader:
    """Reads clients' images, one at a time in its own thread, so that their memory is bounded."""

    def __init__(self, config: ServeConfig, store: FileStore) -> None:
        self.config, self.store = config, store
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ddit-images")

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def from_url(self, url: str, param: str) -> Image.Image:
        """The image of a data URL, of one of this server's files, or of a public address.

        Raises ApiError if there is none, or if this server does not fetch.
        """
        url = url.strip()
        if url[:5].lower() == "data:":
            return await self.from_bytes(_data_of(url, param), param)
        if BARE_BASE64.fullmatch(url):
            return await self.from_bytes(_decode_base64(url, param), param)
        own = OWN_FILE.fullmatch(url)
        if own:
            return await self.from_file(own[1], param)
        if not re.match(r"https?://", url, re.IGNORECASE):
            raise ApiError(
                f"'{url[:60]}' is neither a data URL (data:image/png;base64,...) nor a URL", param=param,
                code="invalid_image_url",
            )  # fmt: skip
        if not self.config.fetch_urls:
            raise ApiError(
                "this server does not fetch images: send a data URL or upload to /v1/files", param=param,
                code="invalid_image_url",
            )  # fmt: skip
        data = await asyncio.to_thread(fetch, url, max_bytes=self.config.max_body_bytes)
        return await self.from_bytes(data, param)

    async def from_file(self, file_id: str, param: str) -> Image.Image:
        """The image of an upload."""
        data = await asyncio.to_thread(self.store.read, file_id)
        if data is None:
            raise ApiError(
                f"no such file: '{file_id[:60]}' (it may have been removed for newer ones)", param=param,
                code="file_not_found",
            )  # fmt: skip
        return await self.from_bytes(data, param)

    async def from_bytes(self, data: bytes, param: str) -> Image.Image:
        """The image in a file's bytes."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._decode, data, param)

    async def mask_from_bytes(self, data: bytes, param: str) -> Image.Image:
        """A mask: white where the image is to be generated, which is where the file is transparent or, if it is opaque
        all over, white. Below half of its alpha a pixel counts as transparent."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._decode_mask, data, param)

    async def transparency_of(self, data: bytes) -> Image.Image | None:
        """A mask of where an image, which has been read before, is transparent; None if that is nowhere."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, _transparency, data)

    async def keep(self, data: bytes, param: str) -> StoredFile:
        """Puts an upload into the store if it is an image."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._keep, data, param)

    async def store_file(self, data: bytes, kind: str) -> StoredFile:
        """Puts a generated image into the store. Raises ApiError if it is larger than the whole of it."""
        return await asyncio.to_thread(self._put, data, kind)

    def _decode(self, data: bytes, param: str) -> Image.Image:
        self._check_size(data, param)
        try:
            return read_image(data)
        except ValueError as error:
            raise ApiError(str(error), param=param, code="invalid_image") from None

    def _check_size(self, data: bytes, param: str) -> None:
        size = image_size(data)
        if size is not None and size[0] * size[1] > self.config.max_image_pixels:
            raise ApiError(
                f"the image ({size[0]}x{size[1]}) has more than {self.config.max_image_pixels:,} pixels",
                param=param, code="image_too_large",
            )  # fmt: skip

    def _decode_mask(self, data: bytes, param: str) -> Image.Image:
        self._decode(data, param)  # with all checks
        found = _transparency(data)
        return read_mask(data) if found is None else found

    def _keep(self, data: bytes, param: str) -> StoredFile:
        self._decode(data, param)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = (image.format or "").lower()
        return self._put(data, kind)

    def _put(self, data: bytes, kind: str) -> StoredFile:
        try:
            return self.store.put(data, kind)
        except ValueError as error:
            raise ApiError(str(error), status=413, code="file_too_large") from None


def _transparency(data: bytes) -> Image.Image | None:
    mask = read_transparency(data)
    return None if mask.getbbox() is None else mask


def _data_of(url: str, param: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma:
        raise ApiError("a data URL begins with data:TYPE;base64,", param=param, code="invalid_image_url")
    if head.rpartition(";")[2].strip().lower() != "base64":
        raise ApiError("a data URL must be in base64", param=param, code="invalid_image_url")
    return _decode_base64(unquote(data), param)


def _decode_base64(text: str, param: str) -> bytes:
    """Also with line breaks, in the alphabet for URLs, or without padding, as other libraries write it."""
    letters = "".join(text.split()).translate(URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except ValueError as error:
        raise ApiError(f"the image's base64 is broken: {error}", param=param, code="invalid_base64") from None


async def check_form(request: Request) -> None:
    """Raises ApiError if a request's body is not a form, or one of its fields is given twice."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError("the body must be a form, with content-type multipart/form-data")
    form = await request.form()
    counts = Counter(name.removesuffix("[]") for name, _ in form.multi_items())
    for name, count in counts.items():
        if count > 1 and name not in LISTS:
            shown = name[:60]
            raise ApiError(
                f"'{shown}' is given {count} times: one is used here", param=shown, code="invalid_value"
            )


async def upload_bytes(upload: UploadFile, param: str) -> bytes:
    """The bytes of an uploaded file. Its name is not used, but one with a path in it is refused."""
    name = upload.filename or ""
    if re.search(r"[/\\\x00-\x1f]", name) or name in (".", "..") or len(name) > 255:
        raise ApiError(f"the file name '{name[:60]}' holds a path", param=param, code="invalid_file_name")
    data = await upload.read()
    if not data:
        raise ApiError("the file is empty", param=param, code="invalid_image")
    return data
