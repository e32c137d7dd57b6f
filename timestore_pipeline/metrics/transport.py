"""How a push proves who it is, and makes sure of whom it talks to.

Secrets are read anew for each push, so that they can be renewed without a restart, and no message here holds one.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

from timestore_pipeline.errors import SettingsError
from timestore_pipeline.model.named_files import opened, read_text
from timestore_pipeline.settings import Settings, variable_name

T = TypeVar("T")
Headers = list[tuple[str, str]]
Handler = Callable[[str, str, float | None, Headers, bytes], Callable[[], None]]


def gateway_handler(settings: Settings, gateway: SplitResult) -> Handler:
    """Return the function that sends a request to the gateway, as the Prometheus client takes it.

    Raises:
        SettingsError: a file of a secret or a certificate cannot be read or holds something else.
    """
    authorization = _authorization(settings, gateway)
    context = _tls_context(settings) if gateway.scheme == "https" else None
    opener = build_opener(_Http(), _Https(context=context))

    def handler(url: str, method: str, timeout: float | None, headers: Headers, data: bytes) -> Callable[[], None]:
        def send() -> None:
            # A redirect of a PUT is an error for urllib, so the secret reaches no other server.
            request = Request(url, data=data, headers=dict(headers), method=method)
            if authorization is not None:
                request.add_unredirected_header("Authorization", authorization)
            with opener.open(request, timeout=timeout):
                pass

        return send

    return handler


_NONE: Mapping[str, str] = MappingProxyType({})


class _HearsOut(HTTPConnection):
    """Reads an answer that comes before everything was sent: that of a wrong password, which urllib would miss."""

    def request(
        self, method: str, url: str, body: Any = None, headers: Any = MappingProxyType({}), **more: Any
    ) -> None:
        # "Connection: close", as urllib has it, makes a Go server hang up without reading what is still on its way.
        kept = {name: value for name, value in headers.items() if name != "Connection"}
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            super().request(method, url, body, kept, **more)


class _SecureHearsOut(_HearsOut, HTTPSConnection):
    pass


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_HearsOut, req)


class _Https(HTTPSHandler):
    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(context=context)
        self._tls = context

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_SecureHearsOut, req, context=self._tls)


def secrets_sent(settings: Settings, gateway: SplitResult) -> tuple[str, ...]:
    """Return what a server is told and may repeat: the credentials, as they are sent and as they are set."""
    scheme, _, sent = (_authorization(settings, gateway) or "").partition(" ")
    if scheme != "Basic":
        return (sent,) if sent else ()
    password = base64.b64decode(sent).decode().partition(":")[2]
    return tuple(text for text in (sent, password) if text)


def _authorization(settings: Settings, gateway: SplitResult) -> str | None:
    token = _secret(settings, "pushgateway_bearer_token")
    if token is not None:
        return f"Bearer {token}"
    password = _secret(settings, "pushgateway_password")
    if settings.pushgateway_username is not None and password is not None:
        return _basic(settings.pushgateway_username, password)
    if gateway.username is not None:
        return _basic(unquote(gateway.username), unquote(gateway.password or ""))
    return None


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _secret(settings: Settings, field: str) -> str | None:
    given, path = getattr(settings, field), getattr(settings, f"{field}_file")
    name = variable_name(field if given is not None else f"{field}_file")
    if given is not None:
        secret = given.get_secret_value()
    elif path is not None:
        try:
            secret = read_text(settings.path(path)).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{name} cannot be read: {_reason(error)}") from error
    else:
        return None
    # http.client would refuse such a header too, and show it.
    if not secret or not (secret.isprintable() and (secret.isascii() or "password" in field)):
        raise SettingsError(f"{name} is empty or has characters that a secret cannot have")
    return secret


def _tls_context(settings: Settings) -> ssl.SSLContext:
    authorities = settings.pushgateway_ca_file and settings.path(settings.pushgateway_ca_file)
    context = _loaded(
        "pushgateway_ca_file",
        (authorities,),
        lambda: ssl.create_default_context(cafile=authorities),
    )
    if not settings.pushgateway_verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = (
        given and settings.path(given)
        for given in (settings.pushgateway_certificate_file, settings.pushgateway_key_file)
    )
    if certificate is not None:
        _loaded(
            "pushgateway_certificate_file",
            (certificate, key),
            # An empty passphrase, because without any OpenSSL would ask for one on the terminal.
            lambda: context.load_cert_chain(certificate, key, password=""),
        )
    return context


def _loaded(field: str, paths: Sequence[Path | None], load: Callable[[], T]) -> T:
    """Let OpenSSL load the files at ``paths``, which are looked at first: it would wait for a pipe."""
    try:
        for path in filter(None, paths):
            with opened(path):
                pass
        return load()
    except OSError as error:  # an SSLError is one too
        raise SettingsError(f"{variable_name(field)} ({paths[0]}) cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is no text"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
