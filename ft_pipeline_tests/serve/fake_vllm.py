"""A vLLM replica without a model: the HTTP API of vLLM 0.32 as its source has it (entrypoints/openai/models/serving.py and beside).

Adapters by name and folder, a resolver asked for unknown names, an LRU of adapters in memory that reads an evicted one from its folder
again and dies when the folder is gone, error shapes, streams with usage. What it answers says which weights answered.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse


@dataclass
class FakeVllm:
    """State and behaviour of one server. `resolve` is the plugin: name -> folder, None to refuse."""

    resolve: Callable[[str], Path | None]
    base_root: str = "/models/base"
    base_name: str = "base"
    max_loras: int = 2
    max_cpu_loras: int = 4
    token_seconds: float = 0.0
    dies_at_token: int | None = None
    loras: dict[str, str] = field(default_factory=dict)
    memory: OrderedDict[str, None] = field(default_factory=OrderedDict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    waiting: int = 0
    aborted: int = 0
    die: Callable[[], None] = lambda: None

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/health")(lambda: Response(status_code=200))
        app.get("/metrics")(self.metrics)
        app.get("/v1/models")(self.models)
        app.post("/v1/load_lora_adapter")(self.load)
        app.post("/v1/unload_lora_adapter")(self.unload)
        app.post("/tokenize")(self.tokenize)
        app.post("/v1/chat/completions")(self.chat)
        app.post("/v1/completions")(self.completions)
        return app

    async def models(self) -> JSONResponse:
        rows = [_card(self.base_name, self.base_root, None)]
        rows += [_card(name, root, self.base_name) for name, root in self.loras.items()]
        return JSONResponse({"object": "list", "data": rows})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        if name in self.loras and not body.get("load_inplace"):
            return _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not self._in_memory(path):
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        self.loras[name] = path
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self.loras.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        refused = await self._check_model(body["model"])
        return refused or JSONResponse({"count": 1, "max_model_len": 512, "tokens": [1], "token_strs": None})

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def metrics(self) -> PlainTextResponse:
        names = ",".join(list(self.loras)[: self.max_loras]) if self.running else ""
        rows = [
            f'vllm:num_requests_running{{engine="0",model_name="base"}} {float(self.running)}',
            f'vllm:num_requests_waiting{{engine="0",model_name="base"}} {float(self.waiting)}',
            'vllm:kv_cache_usage_perc{engine="0",model_name="base"} 0.25',
            f'vllm:lora_requests_info{{max_lora="{self.max_loras}",running_lora_adapters="{names}",waiting_lora_adapters=""}} 1.7e+09',
        ]
        return PlainTextResponse("\n".join(rows) + "\n")

    async def _check_model(self, name: str) -> JSONResponse | None:
        """As `_check_model` and `resolve_lora`."""
        if name == self.base_name or name in self.loras:
            return None
        folder = await asyncio.to_thread(self.resolve, name)
        if folder is None:
            text = f"The model `{name}` does not exist. Valid aliases: {self.base_name}."
            return _error(404, text, "NotFoundError", "model")
        if not self._in_memory(str(folder)):
            return _error(400, f"LoRA adapter '{name}' was found but could not be loaded.", "BadRequestError")
        self.loras[name] = str(folder)
        return None

    def _in_memory(self, path: str) -> bool:
        """LRU of `max_cpu_loras`; False when the folder is not there."""
        if path not in self.memory and not Path(path).is_dir():
            return False
        self.memory[path] = None
        self.memory.move_to_end(path)
        while len(self.memory) > self.max_cpu_loras:
            self.memory.popitem(last=False)
        return True

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if refused := await self._check_model(body["model"]):
            return refused
        if body.get("max_tokens") == 0:
            return _error(400, "max_tokens must be at least 1, got 0.", "BadRequestError", "max_tokens")
        root = self.loras.get(body["model"], self.base_root)
        if root != self.base_root and not self._in_memory(root):
            self.die()  # LoRAAdapterNotFoundError in the engine: the whole server exits
            await asyncio.sleep(30)
        words = [f"{Path(root).name[:12]} ", *(f"w{i} " for i in range((body.get("max_tokens") or 4) - 1))]
        if body.get("stream"):
            return self._stream(body, words, chat)
        return await _with_cancellation(request, self._whole(body, words, chat))

    async def _whole(self, body: dict[str, Any], words: list[str], chat: bool) -> Response:
        self.running += 1
        try:
            for number in range(len(words)):
                await self._token(number)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1
        text = "".join(words)
        choice = {"index": 0, "finish_reason": "length", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        kind = "chat.completion" if chat else "text_completion"
        return JSONResponse({**_frame(body, kind), "choices": [choice], "usage": _usage(len(words))})

    def _stream(self, body: dict[str, Any], words: list[str], chat: bool) -> Response:
        options = body.get("stream_options") or {}
        each = options.get("include_usage") and options.get("continuous_usage_stats")

        async def events() -> AsyncIterator[str]:
            kind = "chat.completion.chunk" if chat else "text_completion"
            self.running += 1
            try:
                for number, word in enumerate(words):
                    await self._token(number)
                    choice = {"index": 0, "finish_reason": "length" if number == len(words) - 1 else None}
                    choice |= {"delta": {"content": word}} if chat else {"text": word}
                    usage = {"usage": _usage(number + 1)} if each else {}
                    yield f"data: {json.dumps({**_frame(body, kind), 'choices': [choice], **usage})}\n\n"
                if options.get("include_usage"):
                    yield f"data: {json.dumps({**_frame(body, kind), 'choices': [], 'usage': _usage(len(words))})}\n\n"
                yield "data: [DONE]\n\n"
            except asyncio.CancelledError:
                self.aborted += 1
                raise
            finally:
                self.running -= 1

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _token(self, number: int) -> None:
        if number == self.dies_at_token:
            self.die()
            await asyncio.sleep(30)
        await asyncio.sleep(self.token_seconds)


async def _with_cancellation(request: Request, work: Any) -> Response:
    """As vLLM's decorator: a client that leaves cancels the generation."""
    working = asyncio.create_task(work)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.create_task(gone())
    done, pending = await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return working.result() if working in done else Response(status_code=499)


def _card(name: str, root: str, parent: str | None) -> dict[str, Any]:
    return {
        "id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": root, "parent": parent,
        "max_model_len": 512 if parent is None else None, "permission": [],
    }  # fmt: skip


def _error(status: int, message: str, kind: str, param: str | None = None) -> JSONResponse:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def _frame(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": kind, "created": int(time.time()), "model": body["model"]}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


class Listening:
    """An ASGI app on a port of its own, in a thread. `kill` breaks every connection at once; `start` again takes the same port."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self.port = app, 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(self._app, log_level="critical", timeout_graceful_shutdown=5))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(serve())

    def kill(self) -> None:
        """From any thread, also the server's own."""
        self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        self._server.force_exit = self._server.should_exit = True
        for server in getattr(self._server, "servers", []):
            server.close()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    def dead(self) -> None:
        """Returns when it is."""
        self._thread.join(10)

    def stop(self) -> None:
        """Gracefully."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


class Replica(Listening):
    """A fake vLLM that listens."""

    def __init__(self, resolve: Callable[[str], Path | None], **options: Any) -> None:
        self.vllm = FakeVllm(resolve=resolve, **options)
        self.vllm.die = self.kill
        super().__init__(self.vllm.app())

    def restart(self) -> None:
        """As a new process: it knows no adapter."""
        self.vllm.loras.clear()
        self.vllm.memory.clear()
        self.vllm.dies_at_token = None
        self.start()
