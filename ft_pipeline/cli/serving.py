"""`serve` and `chat`: the OpenAI-compatible server of this machine, and a talk with what it serves."""

from __future__ import annotations

import click

from ft_pipeline import resources, settings
from ft_pipeline.cli.completion import MODEL
from ft_pipeline.cli.show import console


@click.command()
@click.option("--port", type=int, help="Default: FT_SERVE_PORT, else 8321.")
@click.option("--host", default="127.0.0.1", show_default=True)
def serve(port: int | None, host: str) -> None:
    """Serve every production adapter, many in one batch, as an OpenAI-compatible API. Follows promotions and rollbacks at once."""
    from ft_pipeline.serve import main

    house = resources.open_house()
    port = port or house.settings.serve_port
    console.print(f"OpenAI-compatible server on http://{host}:{port}/v1   (Ctrl-C stops it)", soft_wrap=True)
    main.serve(house.settings, host=host, port=port)


@click.command()
@click.argument("name", metavar="MODEL", type=MODEL)
@click.argument("text", required=False)
@click.option("--port", type=int, help="Port of a running server; one is started when none answers.")
def chat(name: str, text: str | None, port: int | None) -> None:
    """Talk to MODEL (`tenant/name`). With TEXT: one answer. Without: a conversation until an empty line or Ctrl-D."""
    from ft_pipeline.serve import client

    where = settings.load()
    resources.open_house().catalog.model(name)
    with client.running_server(where, port or where.serve_port) as url:
        if text:
            _say(url, name, [{"role": "user", "content": text}])
            return
        _converse(url, name)


def _converse(url: str, name: str) -> None:
    turns: list[dict[str, str]] = []
    console.print(f"[dim]{name} at {url}; an empty line ends[/dim]")
    while True:
        try:
            said = console.input("[bold]you[/bold]  ")
        except EOFError:
            return
        if not said.strip():
            return
        turns.append({"role": "user", "content": said})
        turns.append({"role": "assistant", "content": _say(url, name, turns)})


def _say(url: str, name: str, turns: list[dict[str, str]]) -> str:
    """Prints the answer as it comes and gives it back."""
    from ft_pipeline.serve import client

    answer = ""
    for piece in client.answer(url, name, turns):
        click.echo(piece, nl=False)
        answer += piece
    click.echo()
    return answer
