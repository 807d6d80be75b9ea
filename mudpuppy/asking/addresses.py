"""Addresses of servers: brought into one form, and how near they are."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from mudpuppy.errors import UsageError

KEY_VARIABLE = "MUDPUPPY_ENDPOINT_KEY"
"""Environment variable with the API key. Not OPENAI_API_KEY: that is not every server's to see."""
NEAR_ENDINGS = (".local", ".lan", ".internal", ".home.arpa")
"""Endings of names that only a private network knows."""


def clean_url(url: str, flag: str = "--endpoint") -> str:
    """Return the address of a server up to `/v1`.

    Args:
        url: as it was typed.
        flag: where, for messages.

    Raises:
        UsageError: it is no http address, or holds a password.
    """
    hint = "give it like http://127.0.0.1:1234/v1"
    try:
        parts = urlsplit(url.strip())
        has_host, _ = bool(parts.hostname), parts.port
    except ValueError as problem:
        raise UsageError(f"{flag} is not an address: {problem}", hint=hint) from None
    if parts.scheme not in ("http", "https") or not has_host:
        raise UsageError(f"{flag} {url[:200]!r} is not an http address", hint=hint)
    if parts.username or parts.password:
        hint = f"put the key into the variable {KEY_VARIABLE}"
        raise UsageError(f"{flag} holds a password, which would be printed", hint=hint)
    if parts.query or parts.fragment:
        raise UsageError(f"{flag} holds more than an address and a path", hint=hint)
    path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/models")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def is_local(url: str) -> bool:
    """Whether an address is on this machine."""
    number = _number(url)
    return (urlsplit(url).hostname == "localhost") if number is None else number.is_loopback


def is_near(url: str) -> bool:
    """Whether an address is on this machine or on a private network, by its name alone.

    A name is looked up nowhere: one without a dot, or with an ending that no public name has, is
    taken for a neighbour's.
    """
    number = _number(url)
    if number is not None:
        return number.is_loopback or number.is_private or number.is_link_local
    host = (urlsplit(url).hostname or "").rstrip(".")
    return "." not in host or host.endswith(NEAR_ENDINGS)


def _number(url: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the number that an address is; None for a name."""
    try:
        return ipaddress.ip_address((urlsplit(url).hostname or "").partition("%")[0])
    except ValueError:
        return None
