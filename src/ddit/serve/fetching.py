"""Fetches an image from a public address that a client names, and from no other.

The host is resolved once, all of its addresses must be public, and the connection goes to one that was checked, so that
no second answer of the name server can lead elsewhere. The same holds for every redirect.

Not by safehttpx, which accepts a host with one public address among private ones, asks dns.google about a host that has
none, takes 100.64.0.0/10 and IPv6 networks that embed IPv4 for public, and reads a body of any size.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from ddit.serve.errors import ApiError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 3
TIMEOUT = 10.0
REDIRECTS = (301, 302, 303, 307, 308)
EMBEDDING = [
    ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
]
"""IPv6 networks whose addresses stand for IPv4 ones, which may be private."""


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet: not private, loopback, link-local, multicast or reserved."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in EMBEDDING) or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def fetch(
    url: str, *, max_bytes: int, timeout: float = TIMEOUT, may_connect: Callable[[Address], bool] = is_public
) -> bytes:
    """The bytes at an http(s) URL, after at most three redirects.

    Args:
        max_bytes: the most that may be read.
        timeout: seconds in all.
        may_connect: whether an address may be connected to.

    Raises:
        ApiError: if it cannot be fetched, may not be connected to, or is too large.
    """
    until = time.monotonic() + timeout
    for _ in range(MAX_REDIRECTS + 1):
        status, location, data = _get(url, max_bytes, until, may_connect)
        if status not in REDIRECTS or not location:
            break
        url = urljoin(url, location)
    else:
        raise _refused("the URL redirects too often")
    if status != 200:
        raise _refused(f"the URL answers with status {status}")
    return data


def _refused(why: str) -> ApiError:
    return ApiError(why, param="image_url", code="invalid_image_url")


def _get(
    url: str, max_bytes: int, until: float, may_connect: Callable[[Address], bool]
) -> tuple[int, str | None, bytes]:
    parts, port = _split(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection | None = None
    try:
        plain = _connect(parts.hostname, port, until, may_connect)
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = plain
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        host = parts.hostname if port in (80, 443) else f"{parts.hostname}:{port}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Host": host, "Accept": "image/*", "User-Agent": "ddit"})
        response = connection.getresponse()
        return response.status, response.getheader("location"), _read(response, plain, max_bytes, until)
    except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
        raise _refused(f"the URL cannot be fetched ({type(error).__name__})") from None
    finally:
        if connection is not None:
            connection.close()


def _split(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise _refused("the URL is not valid") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refused("the URL must begin with http:// or https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise _refused("the URL may not hold a login")
    return parts, port


def _connect(host: str, port: int, until: float, may_connect: Callable[[Address], bool]) -> socket.socket:
    """A connection to an address of the host, if all of its addresses may be connected to."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not may_connect(ipaddress.ip_address(str(address[0]).partition("%")[0])):
            raise _refused("the URL's host is not a public address")
    return socket.create_connection((str(found[0][-1][0]), port), timeout=_left(until))


def _read(response: http.client.HTTPResponse, sock: socket.socket, max_bytes: int, until: float) -> bytes:
    if response.status != 200:
        return b""
    chunks, size = [], 0
    while chunk := response.read1(65_536):
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise _refused(f"the file at the URL is larger than {max_bytes:,} bytes")
        sock.settimeout(_left(until))
    return b"".join(chunks)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
