"""The server process: opens store and catalog, loads what is in production, follows the catalog, answers on a port."""

from __future__ import annotations

import logging
import sys
import threading

from ft_pipeline import settings as settings_module
from ft_pipeline.errors import FtError
from ft_pipeline.serve.client import catalog_mark
from ft_pipeline.serve.limits import Limits
from ft_pipeline.serve.listening import listen
from ft_pipeline.serve.live import BaseServer, LiveEngine, guard
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, open_store
from ft_pipeline.store.catalog import open_catalog


def serve(settings: Settings, *, host: str = "127.0.0.1", port: int) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what runs. Raises UserError when the port is taken."""
    from ft_pipeline.serve.app import build_app
    from ft_pipeline.serve.drain import run_until_told

    limits = limits_of(settings)
    listening = listen(host, port, setting="FT_SERVE_PORT")
    engine = open_engine(settings, limits)
    engine.refresh()
    stopped = threading.Event()
    watcher = threading.Thread(target=guard, args=(engine, stopped), name="watch-catalog", daemon=True)
    watcher.start()
    app = build_app(engine, facts={"catalog": catalog_mark(settings)}, limits=limits)
    try:
        run_until_told(app, listening, drain_seconds=limits.drain_seconds)
    finally:
        stopped.set()
        watcher.join()
        engine.close()
        listening.close()


def open_engine(settings: Settings, limits: Limits) -> LiveEngine:
    """The engine over the settings' store and catalog; torch is imported when the first base model is opened."""

    def open_server(base: Artifact) -> BaseServer:
        from ft_pipeline.serve.local import PeftServer

        return PeftServer(base, threads=settings.threads, limits=limits)

    return LiveEngine(
        catalog=open_catalog(settings), store=open_store(settings), settings=settings, open_server=open_server
    )


def limits_of(settings: Settings) -> Limits:
    """What a person may set; the rest are habits."""
    return Limits(
        max_rows=settings.serve_rows, max_waiting=settings.serve_waiting, max_adapters=settings.serve_adapters
    )


def main(argv: list[str]) -> int:
    """The child of `client.running_server`: `python -m ft_pipeline.serve.main PORT PARENT`; ends with its parent."""
    from ft_pipeline.workers.child import die_with_parent

    die_with_parent(int(argv[2]))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        serve(settings_module.load(), port=int(argv[1]))
    except FtError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
