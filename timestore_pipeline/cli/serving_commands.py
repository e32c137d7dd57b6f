"""``timestore metrics`` and ``serve``: what Prometheus fetches, and what takes batches over HTTP."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from timestore_pipeline.cli.options import open_store
from timestore_pipeline.cli.output import say

serving_app = typer.Typer(rich_markup_mode=None)


@serving_app.command(short_help="Print, write or serve every metric.")
def metrics(
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write them into FILE, whole or not at all, for a node exporter's textfile collector."
        ),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Let Prometheus fetch them, until Ctrl-C.")] = False,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where --serve listens; others can look unless it is loopback."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="The port with --serve; 0: any.")] = 9640,
) -> None:
    """Print every metric in the Prometheus text format, as it is pushed; or write or serve them."""
    if output is not None and serve:
        raise typer.BadParameter("--output and --serve exclude each other")
    if serve:
        _serve_metrics(host, port)
        return
    from timestore_pipeline.metrics import exposition, write_exposition

    with open_store() as store:
        if output is not None:
            write_exposition(store, output)
        else:
            # Whole as it is pushed: the format itself escapes what labels may not have.
            typer.echo(exposition(store).decode(), nl=False)


def _serve_metrics(host: str, port: int) -> None:
    from timestore_pipeline.metrics.endpoint import MetricsServer
    from timestore_pipeline.settings import load_settings
    from timestore_pipeline.store import Store

    settings = load_settings()
    Store.open(settings).close()  # what is wrong with it should be said now, not to the first scrape
    server = MetricsServer(settings, host, port)
    say(f"serving metrics at {server.url}")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve()


@serving_app.command(short_help="Take batches over HTTP.")
def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; other than this machine only with tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="The port; 0: any.")] = 8640,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every request.")] = False,
) -> None:
    """Take batches over HTTP and answer each once it is durable, until SIGTERM or Ctrl-C.

    See docs/http.md.
    """
    from timestore_pipeline.http import server

    def ready(url: str) -> None:
        say(f"serving at {url}")
        sys.stdout.flush()

    if verbose:
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.INFO)
        logging.getLogger("timestore_pipeline").setLevel(logging.INFO)
    server.serve(None, host, port, ready)
