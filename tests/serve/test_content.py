"""Images come from data URLs, uploads, and public addresses where that is switched on; never from private ones."""

import base64
import io
import ipaddress
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image
from servers import ask, decoded, encoded, level_difference, noise_image, pipeline, post, with_client

from ddit.images import read_image
from ddit.serve import fetching
from ddit.serve.errors import ApiError
from ddit.serve.fetching import fetch, is_public
from ddit.serve.files import FileStore
from ddit.serve.options import ServeConfig

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1",
    "fd12::1", "ff02::1", "fec0::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:7f00:1::",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_connected_to(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class ImageHandler(BaseHTTPRequestHandler):
    """Serves an image, redirects, too much, or nothing."""

    def do_GET(self) -> None:
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
            self.end_headers()
        elif self.path == "/image":
            data = encoded(noise_image(1))
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65_536)
            except OSError:
                pass
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            try:
                while not self.server.closing.wait(0.05):  # type: ignore[attr-defined]
                    self.wfile.write(b"x")
            except OSError:
                pass
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageHandler)
    server.closing = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.closing.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def anywhere(_: fetching.Address) -> bool:
    return True


def test_an_image_is_fetched_through_redirects(elsewhere: str) -> None:
    url = f"{elsewhere}/to?{elsewhere}/to?/image"
    assert fetch(url, max_bytes=100_000, may_connect=anywhere) == encoded(noise_image(1))


def test_every_redirect_is_checked_again(elsewhere: str) -> None:
    seen: list[str] = []

    def only_first(address: fetching.Address) -> bool:
        seen.append(str(address))
        return len(seen) == 1

    with pytest.raises(ApiError, match="not a public address"):
        fetch(f"{elsewhere}/to?http://127.0.0.1:9/x", max_bytes=1000, may_connect=only_first)
    assert len(seen) == 2


def test_a_host_of_which_one_address_is_private_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*_: object, **__: object) -> list:
        entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*entry, ("8.8.8.8", 80)), (*entry, ("127.0.0.1", 80))]

    monkeypatch.setattr(fetching.socket, "getaddrinfo", both)
    monkeypatch.setattr(fetching.socket, "create_connection", lambda *_, **__: pytest.fail("it connected"))
    with pytest.raises(ApiError, match="not a public address"):
        fetch("http://a.example/x.png", max_bytes=1000)


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["8.8.8.8", "127.0.0.1"])  # a name server that changes its mind
    connected: list[str] = []

    def resolve(*_: object, **__: object) -> list:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), 80))]

    def connect(address: tuple[str, int], **_: object) -> socket.socket:
        connected.append(address[0])
        raise OSError

    monkeypatch.setattr(fetching.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetching.socket, "create_connection", connect)
    with pytest.raises(ApiError, match="cannot be fetched"):
        fetch("http://a.example/x.png", max_bytes=1000)
    assert connected == ["8.8.8.8"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nothing", "answers with status 404"),
        ("/endless", "larger than 1,000 bytes"),
        ("/slow", "cannot be fetched"),
        ("/to?/to?/to?/to?/to?/image", "redirects too often"),
        ("/to?file:///etc/passwd", "must begin with http"),
        ("/to?http://me:secret@127.0.0.1/", "may not hold a login"),
    ],
)
def test_what_cannot_be_fetched_is_reported(elsewhere: str, path: str, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        fetch(elsewhere + path, max_bytes=1000, timeout=0.5, may_connect=anywhere)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/", "http://localhost/", "http://[::1]/", "http://2130706433/", "http://0x7f.1/"],
)
def test_with_fetching_on_the_servers_own_network_is_still_out_of_reach(url: str) -> None:
    body = ask("is there a dog?")
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})
    answer = with_client(
        lambda client: client.post("/v1/chat/completions", json=body), ServeConfig(fetch_urls=True)
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_image_url"


def test_with_fetching_on_a_public_image_is_read(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fetching.fetch, "__kwdefaults__", {**fetching.fetch.__kwdefaults__, "may_connect": anywhere}
    )
    body = ask("is there a dog?", seed=5)
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": elsewhere + "/image"}})
    answer = with_client(
        lambda client: client.post("/v1/chat/completions", json=body), ServeConfig(fetch_urls=True)
    )
    own = pipeline().answer(noise_image(1), "is there a dog?", seed=5)[0]
    assert answer.json()["choices"][0]["message"]["content"] == own


# --- the store ---


def test_the_oldest_files_make_room_for_new_ones(tmp_path: Path) -> None:
    store = FileStore(tmp_path, max_files=3, max_bytes=1000)
    ids = [store.put(b"x" * 100, "png").id for _ in range(5)]
    assert [store.read(file_id) is not None for file_id in ids] == [False, False, True, True, True]
    large = store.put(b"x" * 900, "png").id
    assert [store.read(file_id) is not None for file_id in [*ids, large]] == [False] * 4 + [True, True]
    with pytest.raises(ValueError, match="larger than the store"):
        store.put(b"x" * 1001, "png")


def test_servers_that_share_a_folder_share_the_files(tmp_path: Path) -> None:
    one, other = (FileStore(tmp_path, max_files=10, max_bytes=1000) for _ in range(2))
    stored = one.put(b"image", "jpeg")
    found = other.find(stored.id)
    assert found is not None
    assert (found.media_type, other.read(stored.id)) == ("image/jpeg", b"image")
    assert other.remove(stored.id)
    assert one.read(stored.id) is None


@pytest.mark.parametrize(
    "file_id", ["", "..", "../secret", "file-", "file-" + "g" * 32, "file-" + "0" * 32 + "/x"]
)
def test_what_is_no_id_is_no_file(tmp_path: Path, file_id: str) -> None:
    (tmp_path / "secret").write_text("secret")
    store = FileStore(tmp_path / "files", max_files=10, max_bytes=1000)
    assert store.read(file_id) is None
    assert not store.remove(file_id)


def test_a_temporary_store_leaves_nothing_and_a_folder_stays(tmp_path: Path) -> None:
    with FileStore(None, max_files=10, max_bytes=1000) as store:
        store.put(b"x", "png")
        folder = store.folder
    assert not folder.exists()
    with FileStore(tmp_path, max_files=10, max_bytes=1000) as store:
        kept = store.put(b"x", "png")
    assert kept.path.exists()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        FileStore(tmp_path / "file", max_files=1, max_bytes=1)


# --- images as clients write them ---

LETTERS = base64.b64encode(encoded(noise_image(6))).decode()
assert {"+", "/"} < set(LETTERS)
WRITTEN = {
    "as it should be": f"data:image/png;base64,{LETTERS}",
    "line breaks": "data:image/png;base64," + base64.encodebytes(encoded(noise_image(6))).decode(),
    "line breaks of Windows": "data:image/png;base64," + "\r\n".join(re.findall(".{1,76}", LETTERS)),
    "the alphabet for URLs": "data:image/png;base64," + LETTERS.translate(str.maketrans("+/", "-_")),
    "no padding": "data:image/png;base64," + LETTERS.rstrip("="),
    "percent-encoded": "data:image/png;base64," + quote(LETTERS, safe=""),
    "upper case": f"DATA:IMAGE/PNG;BASE64,{LETTERS}",
    "parameters": f'data:image/png;name="a b.png";charset=utf-8;base64,{LETTERS}',
    "spaces": f"  data: image/png; base64, {LETTERS} ",
    "no type": f"data:;base64,{LETTERS}",
    "another type": f"data:image/jpg;base64,{LETTERS}",
    "base64 alone": LETTERS,
    "base64 alone with line breaks": base64.encodebytes(encoded(noise_image(6))).decode(),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("as_string", [False, True])
def test_base64_is_read_as_other_libraries_write_it(name: str, as_string: bool) -> None:
    body = ask("is there a dog?", seed=5)
    url = WRITTEN[name] if as_string else {"url": WRITTEN[name]}
    body["messages"][0]["content"].append({"type": "image_url", "image_url": url})
    answer = post("/v1/chat/completions", json=body)
    own = pipeline().answer(noise_image(6), "is there a dog?", seed=5)[0]
    assert answer.json()["choices"][0]["message"]["content"] == own


@pytest.mark.parametrize(
    "written", ["data:image/png;base64,A", "data:image/png;base64,AA=A", "A" * 65, "A" * 64 + "*"]
)
def test_what_is_no_base64_is_refused(written: str) -> None:
    body = ask("is there a dog?")
    body["messages"][0]["content"].append({"type": "file", "file": {"file_data": written}})
    answer = post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("invalid_base64", "invalid_image_url")


def test_an_upload_larger_than_the_whole_store_is_refused() -> None:
    config = ServeConfig(max_files_bytes=1000)
    answer = post("/v1/files", config, files={"file": encoded(noise_image())})
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "a file of 3,172 bytes is larger than the store (1,000)"
    answer = post("/v1/images/generations", config, json={"prompt": "a dog", "response_format": "url"})
    assert answer.status_code == 413


# --- masks ---

LEFT = (0, 0, 16, 32)


def left_of(mode: str, ground: Any, paint: Any) -> Image.Image:
    image = Image.new(mode, (32, 32), ground)
    image.paste(paint, LEFT)
    return image


def palette_mask() -> bytes:
    image = left_of("P", 1, 0)
    image.putpalette([0, 0, 0, 255, 255, 255])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


MASKS = {
    "RGBA, transparent": encoded(left_of("RGBA", (0, 0, 0, 255), (9, 9, 9, 0))),
    "RGBA, opaque": encoded(left_of("RGBA", (0, 0, 0, 255), (255, 255, 255, 255))),
    "RGBA, hardly transparent": encoded(left_of("RGBA", (0, 0, 0, 200), (255, 255, 255, 255))),
    "RGBA, nearly transparent": encoded(left_of("RGBA", (0, 0, 0, 255), (255, 255, 255, 3))),
    "grey with alpha": encoded(left_of("LA", (0, 255), (255, 255))),
    "grey, transparent": encoded(left_of("LA", (255, 255), (255, 0))),
    "grey": encoded(left_of("L", 0, 255)),
    "black and white": encoded(left_of("1", 0, 1)),
    "RGB": encoded(left_of("RGB", "black", "white")),
    "a palette with transparency": palette_mask(),
    "WebP, transparent": encoded(left_of("RGBA", (0, 0, 0, 255), (9, 9, 9, 0)), "WEBP"),
}


def edited(files: dict[str, bytes], **data: str) -> Image.Image:
    answer = post("/v1/images/edits", data={"prompt": "a dog", "seed": "3", **data}, files=files).json()
    assert answer["ddit"]["notices"] == []
    return decoded(answer["data"][0]["b64_json"])


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_where_it_is_transparent_or_if_nowhere_where_it_is_white(name: str) -> None:
    own = pipeline().inpaint(noise_image(1), left_of("L", 0, 255), "a dog", seed=3)[0]
    assert level_difference(edited({"image": encoded(noise_image(1)), "mask": MASKS[name]}), own) <= 1


def test_an_edit_without_a_mask_takes_the_transparency_of_its_image() -> None:
    image = noise_image(1).convert("RGBA")
    image.paste((0, 0, 0, 0), LEFT)
    seen = read_image(image)
    own = pipeline().inpaint(seen, left_of("L", 0, 255), "a dog", seed=3)[0]
    assert level_difference(edited({"image": encoded(image)}), own) <= 1
    varied = pipeline().vary(seen, "a dog", seed=3, strength=0.5)[0]
    assert level_difference(edited({"image": encoded(image)}, strength="0.5"), varied) <= 1
    right = Image.eval(left_of("L", 0, 255), lambda level: 255 - level)
    masked = pipeline().inpaint(seen, right, "a dog", seed=3)[0]
    assert level_difference(edited({"image": encoded(image), "mask": encoded(right)}), masked) <= 1


def test_an_opaque_rgba_image_without_a_mask_is_varied() -> None:
    own = pipeline().vary(noise_image(1), "a dog", seed=3)[0]
    assert level_difference(edited({"image": encoded(noise_image(1).convert("RGBA"))}), own) <= 1
