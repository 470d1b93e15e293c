"""Images come from data URLs, uploads, and public addresses where that is switched on; never from private ones."""

import ipaddress
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from servers import ask, encoded, noise_image, pipeline, with_client

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
