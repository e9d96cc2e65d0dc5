"""Addresses: which are of this machine or a private network, and what people type for one."""

import contextlib
import ipaddress
import re
import socket
from urllib.parse import urlsplit

from .errors import ParameterError

# Where Ollama, llama-server and vLLM listen if nobody says otherwise.
USUAL_PORTS = (11434, 8080, 8000)
_NETWORKS = "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16 "
PRIVATE = [*map(ipaddress.ip_network, f"{_NETWORKS} ::1/128 fc00::/7 fe80::/10".split())]
# RFC 6598: shared by carriers, for their customers' routers, and meshes such as Tailscale.
SHARED = ipaddress.ip_network("100.64.0.0/10")


def own_address(address: str) -> str | None:
    """This machine's own address on the way to an IP address, if any. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asked:
        asked.connect((address, 9))  # of a datagram's socket: that chooses the way, no more
        return str(asked.getsockname()[0])
    return None


def is_private(address: str) -> bool:
    """Whether an IP address is loopback, link-local or private (RFC 1918, 4193), or of a mesh.

    In the range that meshes share with carriers it is a mesh's where this machine has an address
    in it itself, on the way there; one that sits behind a carrier's router has none.
    """
    ip = _ip(address)
    if ip not in SHARED:
        return any(ip in network for network in PRIVATE)
    return (mine := own_address(address)) is not None and _ip(mine) in SHARED


def is_own(address: str) -> bool:
    """Whether an IP address is one of this machine."""
    mine = own_address(address)
    return _ip(address).is_loopback or (mine is not None and _ip(mine) == _ip(address))


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def is_one(word: str) -> bool:
    """Whether a word can name a server: http://host, host:port, or a host alone; not a file."""
    file = re.search(r"\.ya?ml$", word, re.IGNORECASE)
    return not file and re.match(r"https?://|[^/]+:\d+(/|$)|[^/\\]+/?$", word) is not None


def urls(word: str) -> list[str]:
    """Where the server `word` may be: its port, or the usual ones. Raises `ParameterError`."""
    bare, colons = "://" not in word, word.count(":")
    alone = f"[{word}]" if colons > 1 and "[" not in word else word  # of an IPv6 address
    base = re.sub(r"(/v1|/api)?/*$", "", f"http://{alone}" if bare else word)
    try:
        parts = urlsplit(base)
        whole = parts.port is not None or parts.scheme == "https" or bool(parts.path)
    except ValueError:
        parts = urlsplit("")
    if not is_one(word) or not parts.hostname:
        example = "write it like http://192.168.1.20:11434."
        raise ParameterError(f"{word[:80]} is not the address of a server; {example}")
    usual = [f"{base}:{port}" for port in USUAL_PORTS]
    return [base] if whole else usual if bare else [*usual, base]
