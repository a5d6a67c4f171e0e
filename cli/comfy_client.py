"""Run an API-format workflow on a ComfyUI server: submit, follow, fetch what it made."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import aiohttp

from ..core.errors import (
    CancelledError,
    InvalidInputError,
    OutputError,
    RemoteError,
    ServerUnavailableError,
)

Workflow = Mapping[str, Mapping[str, Any]]
EventKind = Literal["queued", "cached", "node", "progress", "preview", "text", "finished"]

# ComfyUI's binary websocket messages: a big-endian number, then the content.
PREVIEW_EVENTS, TEXT_EVENT = (1, 4), 3
FINAL_MESSAGES = ("execution_success", "execution_error", "execution_interrupted")
SILENCE = 5.0  # s without a message until the history is asked whether the job has ended
RECONNECT_AFTER = (0.2, 1.0, 2.0, 4.0)  # s


@dataclass(frozen=True)
class Event:
    """Something that happened on the server; node and class_type are empty where no node did it.

    value of total: of "progress", in the node's unit. text: of "text", what the node shows.
    """

    kind: EventKind
    prompt_id: str
    node: str = ""
    class_type: str = ""
    value: float = 0
    total: float = 0
    text: str = ""

    def __str__(self) -> str:
        name = f"{self.class_type} (node {self.node})" if self.node else self.prompt_id
        steps = f" {self.value:g}/{self.total:g}" if self.kind == "progress" else ""
        return f"{self.kind}: {name}{steps}{' ' + self.text if self.text else ''}"


@dataclass
class RunResult:
    """outputs: by node id, as in the server's history. previews: number of preview pictures sent.

    executed_nodes: in the order in which they ran; cached_nodes did not have to.
    """

    prompt_id: str
    files: list[Path] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    cached_nodes: list[str] = field(default_factory=list)
    executed_nodes: list[str] = field(default_factory=list)
    previews: int = 0


def run_workflow(
    url: str,
    workflow: Workflow,
    out: Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    timeout: float | None = None,
    *,
    extra_pnginfo: Mapping[str, Any] | None = None,
) -> RunResult:
    """What the server made of the workflow; its files are in `out`, over those of the same name.

    timeout: seconds for the whole run, queue included. When it passes, on Ctrl-C, and when on_event
    raises, the job is taken from the queue or interrupted. Errors: InvalidInputError (the server
    refuses the workflow), RemoteError (a node failed), CancelledError, ServerUnavailableError.
    """
    _check_workflow(workflow)
    if out is not None:
        make_folder(out)
    client = _Client(_base_url(url), workflow, on_event or (lambda event: None))
    return asyncio.run(client.run(out, timeout, extra_pnginfo or {}))


def _check_workflow(workflow: object) -> None:
    if isinstance(workflow, Mapping) and "nodes" in workflow and "links" in workflow:
        raise InvalidInputError(
            "this workflow is in the format of ComfyUI's editor; export it there with "
            "'Export (API)' and run that file"
        )
    if not isinstance(workflow, Mapping) or not workflow:
        raise InvalidInputError("a workflow is a JSON object {node id: {class_type, inputs}}")
    for node_id, node in workflow.items():
        if not isinstance(node, Mapping) or "class_type" not in node:
            raise InvalidInputError(f"workflow node {node_id!r} has no class_type")


def _base_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InvalidInputError(f"the server's URL is {url!r}; give one like http://127.0.0.1:8188")
    return url.rstrip("/")


class _Client:
    """One run: a websocket for the progress, the server's history for the truth."""

    def __init__(self, url: str, workflow: Workflow, on_event: Callable[[Event], None]):
        self.url = url
        self.workflow = workflow
        self.on_event = on_event
        self.client_id = uuid.uuid4().hex
        self.result = RunResult("")

    async def run(
        self, out: Path | None, timeout: float | None, extra_pnginfo: Mapping[str, Any]
    ) -> RunResult:
        async with self._session() as session:
            try:
                await asyncio.wait_for(self._submit_and_follow(session, extra_pnginfo), timeout)
            except aiohttp.ServerTimeoutError:
                raise
            except asyncio.TimeoutError as error:
                job = self.result.prompt_id
                raise RemoteError(f"job {job} took over {timeout:g} s: cancelled") from error
            if out is not None:
                await self._fetch_files(session, out)
        return self.result

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
        try:
            async with aiohttp.ClientSession(timeout=limits) as session:
                yield session
        except aiohttp.ClientConnectionError as error:
            raise ServerUnavailableError(
                f"no answer from a ComfyUI at {self.url} ({error}); start it, or give its --url"
            ) from error
        except (aiohttp.ClientError, json.JSONDecodeError) as error:
            raise RemoteError(f"{self.url} does not answer like a ComfyUI: {error}") from error

    async def _submit_and_follow(
        self, session: aiohttp.ClientSession, extra_pnginfo: Mapping[str, Any]
    ) -> None:
        async with self._websocket(session) as socket:
            await self._submit(session, extra_pnginfo)
            try:
                entry = await self._watch(session, socket)
            except aiohttp.ClientError:
                raise
            except BaseException:
                await self._cancel(session)
                raise
        self._take_history(entry)
        self._emit("finished")

    @asynccontextmanager
    async def _websocket(self, session: aiohttp.ClientSession) -> AsyncIterator[Any]:
        address = f"{self.url}/ws?clientId={self.client_id}"
        async with session.ws_connect(address, max_msg_size=0) as socket:
            yield socket

    async def _submit(
        self, session: aiohttp.ClientSession, extra_pnginfo: Mapping[str, Any]
    ) -> None:
        body = {
            "prompt": self.workflow,
            "client_id": self.client_id,
            "extra_data": {"extra_pnginfo": extra_pnginfo},
        }
        async with session.post(f"{self.url}/prompt", json=body) as response:
            if response.status == 400:
                raise InvalidInputError(refusal_text(await response.json()))
            response.raise_for_status()
            self.result.prompt_id = (await response.json())["prompt_id"]
        self._emit("queued")

    async def _watch(
        self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse
    ) -> dict[str, Any]:
        """The job's history entry once it has ended, over as many connections as it takes."""
        with suppress(aiohttp.ClientConnectionError):
            if entry := await self._follow(session, socket):
                return entry
        for delay in RECONNECT_AFTER:
            await asyncio.sleep(delay)
            with suppress(aiohttp.ClientConnectionError):
                return await self._follow_again(session)
        raise aiohttp.ClientConnectionError("the connection broke during the run")

    async def _follow(
        self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse
    ) -> dict[str, Any] | None:
        """The job's history entry once it has ended; None where the websocket broke before."""
        while not socket.closed:
            await self._read_events(socket)
            if (entry := await self._history(session)) is not None:
                return entry
        return None

    async def _follow_again(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        async with self._websocket(session) as socket:
            queued = await self._is_in(session, "queue_running", "queue_pending")
            if entry := await self._history(session):
                return entry
            if not queued:
                raise RemoteError(f"{self.url} lost job {self.result.prompt_id}: restarted?")
            if entry := await self._follow(session, socket):
                return entry
        raise aiohttp.ClientConnectionError("the websocket was closed")

    async def _read_events(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Reports events until the job or the connection ends, or the server has been silent."""
        while True:
            try:
                message = await socket.receive(timeout=SILENCE)
            except asyncio.TimeoutError:
                return
            if message.type == aiohttp.WSMsgType.BINARY:
                self._take_binary(message.data)
            elif message.type != aiohttp.WSMsgType.TEXT or self._take_text(message.json()):
                return

    def _take_text(self, message: dict[str, Any]) -> bool:
        """True where the message says that this job has ended."""
        kind, data = message["type"], message["data"]
        if not isinstance(data, dict) or data.get("prompt_id") != self.result.prompt_id:
            return False  # of another job, or a message that a pack invented
        self._take_event(kind, data)
        return kind in FINAL_MESSAGES or (kind == "executing" and data["node"] is None)

    def _take_event(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "execution_cached":
            for node in data["nodes"]:
                self._emit("cached", node)
        elif kind == "executing" and data["node"]:
            if data["node"] not in self.result.executed_nodes:
                self.result.executed_nodes.append(data["node"])
            self._emit("node", data["node"])
        elif kind == "progress":
            self._emit("progress", data["node"] or "", value=data["value"], total=data["max"])

    def _take_binary(self, data: bytes) -> None:
        kind = int.from_bytes(data[:4], "big")
        if kind in PREVIEW_EVENTS:
            self.result.previews += 1
            self._emit("preview", (self.result.executed_nodes or [""])[-1])
        elif kind == TEXT_EVENT:
            start = 8 + int.from_bytes(data[4:8], "big")
            text = data[start:].decode(errors="replace")
            self._emit("text", data[8:start].decode(errors="replace"), text=text)

    def _emit(self, kind: EventKind, node: str = "", **values: Any) -> None:
        class_type = self.workflow.get(node, {}).get("class_type", "")
        self.on_event(Event(kind, self.result.prompt_id, node, class_type, **values))

    async def _history(self, session: aiohttp.ClientSession) -> dict[str, Any] | None:
        job = self.result.prompt_id
        return (await self._get(session, f"history/{job}")).get(job)

    async def _is_in(self, session: aiohttp.ClientSession, *queues: str) -> bool:
        jobs = await self._get(session, "queue")
        return any(job[1] == self.result.prompt_id for queue in queues for job in jobs[queue])

    async def _get(self, session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
        async with session.get(f"{self.url}/{path}") as response:
            response.raise_for_status()
            return await response.json()

    def _take_history(self, entry: dict[str, Any]) -> None:
        messages = {name: data for name, data in entry["status"]["messages"]}
        if failure := messages.get("execution_error"):
            raise RemoteError(failure_text(failure))
        if stopped := messages.get("execution_interrupted"):
            raise CancelledError(f"interrupted at node {_node(stopped)}")
        self.result.outputs = entry["outputs"]
        self.result.cached_nodes = list(messages.get("execution_cached", {}).get("nodes", []))

    async def _cancel(self, session: aiohttp.ClientSession) -> None:
        """Takes the job from the queue, or interrupts it where it runs; other jobs go on."""
        job = self.result.prompt_id
        async with session.post(f"{self.url}/queue", json={"delete": [job]}):
            pass
        if await self._is_in(session, "queue_running"):
            async with session.post(f"{self.url}/interrupt", json={"prompt_id": job}):
                pass

    async def _fetch_files(self, session: aiohttp.ClientSession, out: Path) -> None:
        for output in self.result.outputs.values():
            for item in (item for items in output.values() for item in _listed(items)):
                if isinstance(item, dict) and "filename" in item:
                    self.result.files.append(await self._fetch_file(session, item, out))

    async def _fetch_file(
        self, session: aiohttp.ClientSession, item: Mapping[str, str], out: Path
    ) -> Path:
        target = target_path(item, out)
        query = {key: item.get(key, "") for key in ("filename", "subfolder", "type")}
        async with session.get(f"{self.url}/view", params=query) as response:
            response.raise_for_status()
            content = await response.read()
        write_file(target, content)
        return target


def write_file(target: Path, content: bytes) -> None:
    """Writes under a temporary name, then renames: `target` is whole or not there."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    make_folder(target.parent)
    try:
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {target}: {error.strerror}") from error


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error


def _listed(items: object) -> list[Any]:
    return items if isinstance(items, list) else []


def target_path(item: Mapping[str, str], out: Path) -> Path:
    """Where a file of the server goes below `out`; a name that leads out of it is refused."""
    parts = PurePosixPath(item.get("subfolder", "").replace("\\", "/"), item["filename"])
    target = out / parts
    if not target.resolve().is_relative_to(out.resolve()) or parts.is_absolute():
        raise RemoteError(f"the server names a file outside of the output folder: {parts}")
    return target


def refusal_text(body: Mapping[str, Any]) -> str:
    """A readable message from the server's answer 400: a line for each input that is wrong."""
    lines = []
    for node_id, node in (body.get("node_errors") or {}).items():
        name = f"node {node_id} ({node.get('class_type', '?')})"
        lines += [f"{name}: {_message(error)}" for error in node["errors"]]
    if not lines:
        lines = [_message(body.get("error", {}))]
    return "ComfyUI refuses the workflow: " + "\n  ".join(["", *lines] if lines[1:] else lines)


def _message(error: Mapping[str, Any] | str) -> str:
    if isinstance(error, str):
        return error
    return f"{error.get('message', 'no reason given')}: {error.get('details', '')}".rstrip(": ")


def failure_text(failure: Mapping[str, Any]) -> str:
    """One line from the server's execution_error message."""
    kind = str(failure.get("exception_type", "")).rsplit(".", 1)[-1]
    message = str(failure.get("exception_message", "")).strip()
    return f"node {_node(failure)} failed: {kind}: {message}"


def _node(message: Mapping[str, Any]) -> str:
    return f"{message.get('node_id')} ({message.get('node_type')})"
