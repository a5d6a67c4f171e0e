"""HTTPS answers from public addresses only, whatever a link, a name server or a redirect says.

A name is resolved once per request, every address is judged, and the connection goes to a judged
address: nothing is resolved a second time. Written on http.client because neither requests nor
httpx connects to a given address under another name without reaching into their insides, and
which of the two is installed depends on the version of huggingface_hub.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from ..core.errors import DownloadError

MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"User-Agent": "ai-toolkit-inference", "Accept": "*/*", "Accept-Encoding": "identity"}
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
MAPPED = (ipaddress.ip_network("::ffff:0:0/96"), ipaddress.ip_network("64:ff9b::/96"))
# Not private by the book, and still not the internet: protocol assignments, a cloud's platform
# address, and IPv6 that carries an IPv4 address of the sender's choice (Teredo, 6to4).
NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "2002::/16")
]


class TransientError(DownloadError):
    """A failure that another attempt may mend. wait: seconds the server asks for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, IPv4 inside IPv6 included."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in MAPPED):
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in NOT_PUBLIC)


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, IPv4 first. Raises socket.gaierror."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def system_proxy(host: str) -> str | None:
    """The proxy that the environment or the system names for https, unless it excepts the host."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    return None if not proxy or urllib.request.proxy_bypass(host) else proxy


def tls_context() -> ssl.SSLContext:
    """Verifies names and certificates by the system's authorities, and certifi's if installed."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    with suppress(ImportError):  # comes with huggingface_hub; some Pythons find no system store
        import certifi

        context.load_verify_locations(certifi.where())
    return context


@dataclass(frozen=True)
class Network:
    """How hosts are found, judged and reached. No user input decides it; tests replace parts."""

    resolve: Callable[[str, int], list[str]] = resolve
    is_allowed: Callable[[str], bool] = is_public
    ports: Container[int] = (443, 8443)
    tls: Callable[[], ssl.SSLContext] = tls_context
    proxy: Callable[[str], str | None] = system_proxy
    sleep: Callable[[float], None] = time.sleep
    stall_seconds: float = 30.0


@dataclass(frozen=True)
class Answer:
    """The answer at the end of the redirects, its body unread.

    own: headers of each answer of the first host, before the first redirect to another one.
    """

    host: str
    response: http.client.HTTPResponse
    own: list[Message]
    deadline: float

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def headers(self) -> Message:
        return self.response.headers

    def read(self, size: int) -> bytes:
        """At most size bytes as soon as there are some; none at the end, or where it was cut."""
        with _speaking_with(self.host, self.deadline):
            return self.response.read1(size)


def check_url(url: str) -> SplitResult:
    """The parts of an https link, host and path in ASCII. Raises DownloadError."""
    if re.search(r"[\x00-\x1f\x7f\\]", url):
        raise DownloadError("the link holds control characters or backslashes; copy it again")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host.encode("idna").decode()
        netloc = host if parts.port in (None, 443) else f"{host}:{parts.port}"
    except ValueError:  # no such port, a bad IPv6 address, a name that cannot be a host's
        raise DownloadError("the link is no web address; copy it again") from None
    if parts.scheme != "https" or not host:
        raise DownloadError(f"{shown(url)} is refused: a link has to start with https://HOST/")
    if "@" in parts.netloc:
        raise DownloadError(
            f"{shown(url)} is refused: user names and passwords in a link would be saved with "
            "it; take them out, or download the file yourself and choose it by name"
        )
    path, query = (quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
    return SplitResult("https", netloc, path or "/", query, "")


def shown(url: str) -> str:
    """A link as messages may show it: without user, password, query and fragment."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    return re.sub(r"//[^/]*@", "//", bare)[:200]


def same_origin(url: str, other: str) -> bool:
    """Whether two https links lead to the same host and port."""
    first, second = check_url(url), check_url(other)
    return first.netloc == second.netloc


@contextmanager
def open_url(
    url: str, headers: dict[str, str], token: str | None, network: Network, deadline: float
) -> Iterator[Answer]:
    """The answer to a GET after at most five redirects, each judged like the first address.

    token: for url's host; it is not sent once a redirect has led to another one.
    deadline: of time.monotonic(), for everything that is done with the answer.
    Raises DownloadError, or TransientError where another attempt may help.
    """
    at_home, own = True, []
    for _ in range(MAX_REDIRECTS + 1):
        secret = {"Authorization": f"Bearer {token}"} if token and at_home else {}
        with _request(url, HEADERS | headers | secret, network, deadline) as response:
            own += [response.headers] if at_home else []
            if response.status not in REDIRECTS:
                host = urlsplit(url).hostname or ""
                yield Answer(host, response, own, deadline)
                return
            target = urljoin(url, response.headers.get("Location") or "")
        at_home = at_home and same_origin(url, target)
        url = target
    raise DownloadError(
        f"{shown(url)}: more than {MAX_REDIRECTS} redirects; use the link they lead to"
    )


@contextmanager
def _request(
    url: str, headers: dict[str, str], network: Network, deadline: float
) -> Iterator[http.client.HTTPResponse]:
    parts = check_url(url)
    host = parts.hostname or ""
    sock = _connect(host, parts.port or 443, network, deadline)
    connection = http.client.HTTPConnection(host)
    connection.auto_open = 0  # or it would connect again by itself, to any address and unencrypted
    connection.sock = sock
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    with ExitStack() as stack:
        stack.callback(connection.close)
        stack.enter_context(_hang_up(sock, deadline))
        with _speaking_with(host, deadline):
            connection.request("GET", target, headers={"Host": parts.netloc, **headers})
            response = stack.enter_context(connection.getresponse())
        yield response


@contextmanager
def _hang_up(sock: socket.socket, deadline: float) -> Iterator[None]:
    """Ends the connection at the deadline, so that a trickle of bytes cannot hold a read longer."""

    def shutdown() -> None:
        with suppress(OSError):  # closed meanwhile
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket's would change the reader's

    timer = threading.Timer(max(0.0, deadline - time.monotonic()) + 0.05, shutdown)  # past it
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _speaking_with(host: str, deadline: float) -> Iterator[None]:
    """Turns what a connection can raise into a TransientError."""
    try:
        yield
    except TimeoutError as error:
        raise TransientError(f"{host} sent nothing for too long") from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(f"the connection to {host} broke: {_brief(error)}") from error
    finally:
        check_time(deadline)


def check_time(deadline: float) -> None:
    """Raises DownloadError past the deadline."""
    if time.monotonic() > deadline:
        raise DownloadError(
            "the download took longer than allowed; what has come is kept: ask again to "
            "continue, or raise AITK_DOWNLOAD_SECONDS"
        )


def _connect(host: str, port: int, network: Network, deadline: float) -> ssl.SSLSocket:
    if port not in network.ports:
        raise DownloadError(f"{host}: port {port} is refused; allowed: 443 and 8443")
    proxy = network.proxy(host)
    failure: OSError | None = None
    for address in _judged(host, port, network, proxy is not None):
        check_time(deadline)
        try:
            return _reach(host, address, port, proxy, network)
        except ssl.SSLCertVerificationError as error:
            raise DownloadError(
                f"{host} did not prove who it is ({error.verify_message}); check the link, this "
                "machine's clock and, behind a company proxy, SSL_CERT_FILE"
            ) from error
        except OSError as error:
            failure = error
    raise TransientError(f"{host} cannot be reached: {_brief(failure)}") from failure


def _judged(host: str, port: int, network: Network, proxied: bool) -> list[str]:
    """The addresses of a host. Raises DownloadError unless every one is allowed."""
    try:
        addresses = network.resolve(host, port)
    except (OSError, UnicodeError) as error:
        message = f"the name {host} was not found: {_brief(error)}; check the link and the network"
        if proxied:
            message += ". A proxy is set, but this machine has to know the address too, to judge it"
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            raise TransientError(message) from error
        raise DownloadError(message) from error
    refused = [address for address in addresses if not network.is_allowed(address)]
    if refused or not addresses:
        raise DownloadError(
            f"{host} is refused: its address ({', '.join(refused) or 'none'}) is private or "
            "local, and links may only lead to the internet; download the file yourself and choose "
            "it by name"
        )
    return addresses


def _reach(
    host: str, address: str, port: int, proxy: str | None, network: Network
) -> ssl.SSLSocket:
    timeout = min(CONNECT_SECONDS, network.stall_seconds)
    sock = _tunnel(proxy, address, port, timeout) if proxy else None
    sock = sock or socket.create_connection((address, port), timeout)
    try:
        secure = network.tls().wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise
    secure.settimeout(network.stall_seconds)
    return secure


def _tunnel(proxy: str, address: str, port: int, timeout: float) -> socket.socket:
    """A connection through an http proxy to a judged address, not to a name."""
    host, gate, login = _proxy_parts(proxy)
    goal = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    lines = [f"CONNECT {goal} HTTP/1.1", f"Host: {goal}"]
    if login:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}")
    sock = socket.create_connection((host, gate), timeout)
    try:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        with http.client.HTTPResponse(sock, method="CONNECT") as answer:
            answer.begin()
        if answer.status != 200:
            raise DownloadError(
                f"the proxy {host} answered {answer.status} to a connection to {goal}; "
                "links are reached by address: allow that, or download the file yourself"
            )
    except http.client.HTTPException as error:
        sock.close()
        raise OSError(f"the proxy does not speak HTTP: {_brief(error)}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _proxy_parts(proxy: str) -> tuple[str, int, str]:
    """Host, port and "user:password" of a proxy's address. Raises DownloadError."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    with suppress(ValueError):  # of the port
        if parts.scheme == "http" and parts.hostname:
            names = (parts.username, parts.password or "") if parts.username else ()
            login = ":".join(unquote(name) for name in names)
            return parts.hostname, parts.port or 80, login
    raise DownloadError(
        "the proxy in HTTPS_PROXY is not of the form http://HOST:PORT, the only one supported: "
        "change it, or download the file yourself and choose it by name"
    )


def _brief(error: BaseException | None) -> str:
    return str(error)[:200] or type(error).__name__
