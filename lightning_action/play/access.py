"""Access to the play: by a token where others can reach the server, and for its own pages alone."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,200}")


def is_loopback(host: str) -> bool:
    """Tell whether a name is that of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def addresses(listened: str, port: int, token: str | None) -> list[str]:
    """Return the address to open here, and that for other machines where it is another.

    Args:
        listened: Address that is listened at, as numbers; one that stands for all of this machine opens nowhere.
        port: Port.
        token: Token that goes with the first address; None for none.
    """
    names = [listened]
    if ipaddress.ip_address(listened).is_unspecified:
        names = ["::1" if ":" in listened else "127.0.0.1", socket.gethostname()]
    query = "" if token is None else f"/?token={token}"
    return [f"http://{f'[{name}]' if ':' in name else name}:{port}{query}" for name in names]


def choose_token(host: str, token: str | None) -> str | None:
    """Return the token to ask for: the one given, a new one where others can reach the server, else None.

    Raises:
        ValueError: The token is short, or has letters that an address does not carry as they are.
    """
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(18)
    if not _TOKEN.fullmatch(token):
        raise ValueError(
            "a token has from 8 to 200 letters from a to z, digits, - or _: give another --token, or leave it out, and "
            "one is made where it is needed"
        )
    return token


@dataclass(frozen=True)
class Access:
    """Rules of who gets an answer.

    Args:
        token: Token that must be shown: as `token` of the first address, which leaves a cookie, or as
            `Authorization: Bearer`; None asks for nothing.
        port: Port of the server, so that servers of one machine have cookies of their own.
        any_name: True if the server may be called by any name, which a token makes safe; otherwise by those of this
            machine alone, so that no page can reach it by a name of its own that leads here (DNS rebinding).
    """

    token: str | None
    port: int
    any_name: bool = False

    @property
    def cookie(self) -> str:
        """Name of the cookie."""
        return f"play_token_{self.port}"

    def allows(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Tell whether a request is answered, by its headers (names in small letters) and cookies."""
        return self.is_own(headers) and self._shows_token(headers, cookies)

    def is_own(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a request is to this server by a name of its own, and from no page but its own.

        Programs that are no browsers send no origin.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name, origin_place = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:
            return False
        if not self.any_name and not is_loopback(name or ""):
            return False
        return origin is None or (origin.startswith(("http://", "https://")) and origin_place == host)

    def is_token(self, given: str | None) -> bool:
        """Tell whether a token is the right one, in a time that does not say how much of it is right."""
        return self.token is not None and hmac.compare_digest((given or "").encode(), self.token.encode())

    def _shows_token(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        return self.token is None or self.is_token(bearer) or self.is_token(cookies.get(self.cookie))
