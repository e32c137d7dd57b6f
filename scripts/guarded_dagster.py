"""``dagster dev`` whose webserver takes only what its own pages ask, as the proxy of a deployment does.

Dagster's takes GraphQL by GET, under any Host and from any Origin: while it runs, a picture in any page that the same
browser opens could launch a run. There is no option for that, so the webserver gets a middleware when it is started.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_READING = ("GET", "HEAD")
# A name or an address, and perhaps a port. Whatever else may stand in a URL before a path is no host.
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]+)?")


def refusal(kind: str, method: str, path: str, headers: Mapping[str, str], names: Collection[str]) -> int | None:
    """Return the HTTP status with which a request is refused, None where it may pass.

    Args:
        kind: ``http`` or ``websocket``.
        method: of the request, in capitals.
        path: the path that is asked for, decoded.
        headers: the request's, by names in lower case.
        names: names of this machine, in lower case; addresses are always its own, as no site can give them away.
    """
    host = headers.get("host", "")
    named = _HOST.fullmatch(host)
    if named is None or not _is_own(named[1] or named[2], names):
        return 421
    # Programs send no Origin; a browser always does, but for what merely reads.
    if (kind == "websocket" or method not in _READING) and headers.get("origin", f"http://{host}") != f"http://{host}":
        return 403
    if kind == "http" and path.startswith("/graphql") and method != "POST":
        return 405
    return None


def _is_own(name: str, names: Collection[str]) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in names
    return True


class OnlyItsOwnPages:
    """ASGI middleware that answers by itself what :func:`refusal` refuses."""

    def __init__(self, app: App, names: Collection[str]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            headers: dict[str, str] = {}
            for name, value in scope["headers"]:
                # One that is there twice is both of them, which none that may pass is.
                key, text = name.decode("latin-1").lower(), value.decode("latin-1")
                headers[key] = f"{headers[key]}, {text}" if key in headers else text
            status = refusal(scope["type"], scope.get("method", ""), scope["path"], headers, self.names)
            if status is not None and scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            if status is not None:
                body = b"only pages of this webserver may ask for that; see docs/security.md\n"
                plain = [(b"content-type", b"text/plain")]
                await send({"type": "http.response.start", "status": status, "headers": plain})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)


def run_webserver() -> None:
    """Run ``dagster-webserver`` with the middleware, and with this process's arguments."""
    from dagster_webserver.cli import main
    from dagster_webserver.webserver import DagsterWebserver
    from starlette.middleware import Middleware

    names = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
    build = DagsterWebserver.build_middleware
    DagsterWebserver.build_middleware = lambda self: [Middleware(OnlyItsOwnPages, names=names), *build(self)]
    main()


def run_dev() -> None:
    """Run ``dagster dev`` with this process's arguments, and that webserver."""
    from dagster._cli import dev, main

    start = dev.open_ipc_subprocess  # pyright: ignore[reportPrivateImportUsage]
    theirs = [sys.executable, "-m", "dagster_webserver"]

    def start_guarded(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if command[: len(theirs)] == theirs:
            command = [sys.executable, str(Path(__file__)), "webserver", *command[len(theirs) :]]
        return start(command, **options)

    dev.open_ipc_subprocess = start_guarded  # pyright: ignore[reportPrivateImportUsage]
    main()


if __name__ == "__main__":
    what = sys.argv[1]
    sys.argv = [what, *sys.argv[2:]] if what == "webserver" else ["dagster", *sys.argv[1:]]
    run_webserver() if what == "webserver" else run_dev()
