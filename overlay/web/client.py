"""Asks a server that runs under the overlay for its status, from wherever it can be reached."""

from __future__ import annotations

import http.client
import ipaddress
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from overlay import gates
from overlay.errors import OverlayError
from overlay.status_schema import SCHEMA, check

_TIMEOUT_SECONDS = 10.0
_MOST_BYTES = 16 << 20
_HOW_TO_PASS_A_KEY = f"Set {gates.API_KEY.name} to the key that the server was started with (--api-key)."


class NoStatusError(OverlayError):
    """A server did not answer with the status of its processes."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address gets neither the request nor, above all, the key."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def ask(url: str, key: str = "") -> dict[str, Any]:
    """The document of `GET /overlay/status` below `url`, which is the address of the server: `http://host:port`.

    `key` is sent as sglang's API key, if there is one. Raises NoStatusError, which says what to do.
    """
    address = _address(url)
    request = urllib.request.Request(address, headers={"Accept": "application/json"})
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with _opener(address).open(request, timeout=_TIMEOUT_SECONDS) as answer:
            content = answer.read(_MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise NoStatusError(f"{address} {_refusal(error.code, bool(key))}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise NoStatusError(
            f"{address} does not answer: {reason or type(reason).__name__}. Is the server up, and this its address?"
        ) from None
    return _checked(address, content)


def _address(url: str) -> str:
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port):
            return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/overlay/status"
    except ValueError:  # a port that is no number
        pass
    raise NoStatusError(f"--url {url!r} is not the address of a server. Give it as http://host:port.")


def _opener(address: str) -> urllib.request.OpenerDirector:
    """Environment variables name a proxy for the world outside; this machine is not behind it."""
    host = urlsplit(address).hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        local = False
    return urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if local else []))


def _refusal(code: int, with_key: bool) -> str:
    if code in (401, 403):
        wrong = "does not take this key" if with_key else "wants the server's API key"
        return f"{wrong} ({code}). {_HOW_TO_PASS_A_KEY}"
    if code == 404:
        return "is not there (404): this server runs without the overlay. Start it with `amd-sglang launch`."
    if 300 <= code < 400:
        return f"sends elsewhere ({code}), where the key does not follow. Name that address instead."
    return f"answers with status {code}. Its log may say why."


def _checked(address: str, content: bytes) -> dict[str, Any]:
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        document = json.loads(content)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"not a document of schema {SCHEMA}")
        rows, reasons = document.get("processes"), document.get("reasons")
        if not isinstance(rows, list) or not isinstance(reasons, list):
            raise ValueError("its 'processes' or 'reasons' are missing")
        for row in rows:
            _check_row(row)
    except (ValueError, RecursionError) as error:
        raise NoStatusError(f"{address} answers with something else than a status: {error}") from None
    found: dict[str, Any] = _printable(document)
    return found


def _check_row(row: Any) -> None:
    if isinstance(row, dict) and "error" in row:
        if not isinstance(row.get("file"), str):
            raise ValueError("an unreadable status without its file")
    else:
        check(row)
        if not isinstance(row.get("alive"), bool) or not isinstance(row.get("run"), str):
            raise ValueError("a process without 'alive' or 'run'")


def _printable(value: Any) -> Any:
    """The same without what could command a terminal."""
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else "?" for letter in value)
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value
