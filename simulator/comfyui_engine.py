"""What a ComfyUI server does with prompts: one at a time, with a queue, a cache and a history.

    pending --> running --> history (success, or error: failed or interrupted)
       +--> gone, when it is deleted from the queue
    pending, running, history --> gone, when the server is started anew; the files stay

Source: ComfyUI v0.3.64, its server and its executor, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import json
import random
import re
import struct
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from simulator import comfyui_nodes as nodes
from simulator.comfyui_nodes import Folders, NodeFailure, Workflow
from simulator.faults import Rule
from simulator.state import State

HISTORY_KEPT = 10_000
USUAL_RUN_S = 2.0
# How often something that hangs looks whether it is to stop.
HANG_STEP_S = 0.01
MILLISECONDS = 1e3

_PREVIEW_EVENT, _PREVIEW_JPEG = 1, 1
_TYPED_ERROR = re.compile(r"([A-Za-z_.]+(?:Error|Exception)): (.*)", re.DOTALL)
_OUT_OF_MEMORY_TIP = "\nThis error means you ran out of memory on your GPU."


class Interrupted(Exception):
    """The prompt is to stop."""


class Lost(Exception):
    """The prompt is to vanish, as if the server had been started anew."""


@dataclass(eq=False)
class Prompt:
    """One accepted prompt. Times ending in `_mono` are seconds of CLOCK_MONOTONIC.

    `status` is the word of the books. `files` are the paths of its output files.
    """

    number: float
    id: str
    workflow: Workflow
    extra_data: dict[str, Any]
    outputs: list[str]
    owner: str
    model_id: str
    prompt: str
    run_s: float
    faults: Mapping[str, Rule]
    created_mono: float = field(default_factory=time.monotonic)
    created_wall_ns: int = field(default_factory=time.time_ns)
    status: str = "starting"
    started_mono: float | None = None
    ended_mono: float | None = None
    messages: list[list[Any]] = field(default_factory=list)
    ui: dict[str, Any] = field(default_factory=dict)
    gets: int = 0
    cancels: int = 0
    file_hits: Counter[str] = field(default_factory=Counter)

    provider = "comfyui"
    webhook = None
    token_suffix = ""
    # The machine is the user's own.
    charged_usd = 0.0

    @property
    def has_ended(self) -> bool:
        """Tell whether the status is final."""
        return self.ended_mono is not None

    def wall_ns(self, mono: float) -> int:
        """Return the wall time of a monotonic time, free of steps of the clock."""
        return self.created_wall_ns + round((mono - self.created_mono) * 1e9)

    def input_digest(self) -> str:
        """Return the SHA-256 of the workflow, independent of the order of its keys."""
        return hashlib.sha256(json.dumps(self.workflow, sort_keys=True).encode()).hexdigest()

    def item(self) -> list[Any]:
        """Return the entry of the queue."""
        return [self.number, self.id, self.workflow, self.extra_data, self.outputs]

    def entry(self) -> dict[str, Any]:
        """Return the entry of the history."""
        is_good = self.status == "succeeded"
        meta = {
            node: {"node_id": node, "display_node": node, "parent_node": None, "real_node_id": node}
            for node in self.ui
        }
        return {
            "prompt": self.item(),
            "outputs": self.ui,
            "status": {
                "status_str": "success" if is_good else "error",
                "completed": is_good,
                "messages": self.messages,
            },
            "meta": meta,
        }


# A place in the queue, a number that no other has, and the prompt.
Waiting = tuple[float, int, Prompt]


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """Whoever listens on a WebSocket."""

    socket: web.WebSocketResponse
    transport: asyncio.Transport


class Engine:
    """The queue, what runs, what has run, the files, and whoever listens."""

    _queue: list[Waiting]

    def __init__(self, state: State) -> None:
        self._state = state
        self._worker: asyncio.Task[None] | None = None
        self._publisher: asyncio.Task[None] | None = None
        self.build()

    def build(self) -> None:
        """Forget everything, files included."""
        self.folders = Folders()
        self.owners_of_files: dict[str, Prompt] = {}
        self.clients: dict[str, Client] = {}
        self._messages: asyncio.Queue[tuple[Client, bytes | str]] = asyncio.Queue()
        self._rng = random.Random(self._state.seed)
        self._forget()

    async def close(self) -> None:
        """Stop what runs and hang up on all listeners."""
        await self._stop()

    async def restart(self) -> None:
        """Lose all that is in memory only: the queue, what runs, the history, the cache."""
        await self._stop()
        self._forget()

    def next_number(self, *, is_first: bool) -> float:
        """Return the place in the queue for a prompt that names none."""
        number = -self._number if is_first else self._number
        self._number += 1
        return number

    def run_s(self, model_id: str) -> float:
        """Return the time that the samplers of one more prompt take together."""
        settings = self._state.settings
        jitter = self._rng.uniform(-settings.run_jitter, settings.run_jitter)
        return max(0.0, settings.run_s(model_id, USUAL_RUN_S) * (1 + jitter))

    def put(self, prompt: Prompt) -> None:
        """Accept a prompt."""
        heapq.heappush(self._queue, (prompt.number, next(self._order), prompt))
        self._state.ledger.note(prompt, "accepted")
        self._tell_status()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())

    def pending(self) -> list[Prompt]:
        """Return what waits, in the order in which it will run."""
        return [prompt for _, _, prompt in sorted(self._queue, key=lambda entry: entry[:2])]

    def under_way(self, prompt_id: str) -> Prompt | None:
        """Return the prompt of that id that waits or runs, or None."""
        open_prompts = [*self.pending(), *([self.running] if self.running else [])]
        return next((prompt for prompt in open_prompts if prompt.id == prompt_id), None)

    def delete(self, prompt_ids: set[str] | None) -> None:
        """Take prompts that wait out of the queue; None: all."""
        kept: list[Waiting] = []
        for entry in self._queue:
            if prompt_ids is None or entry[2].id in prompt_ids:
                self._end(entry[2], "canceled")
            else:
                kept.append(entry)
        self._queue = kept
        heapq.heapify(self._queue)
        self._tell_status()

    def interrupt(self, prompt_id: str | None) -> None:
        """Have the running prompt stop, if it is that one; None: whichever it is."""
        running = self.running
        if running is not None and prompt_id in (None, running.id):
            delay_s = self._state.settings.cancel_seconds
            asyncio.get_running_loop().call_later(delay_s, self._flag, running)

    def free(self) -> None:
        """Forget the results of nodes."""
        self._cache.clear()

    def queue_remaining(self) -> int:
        """Return how many prompts wait or run."""
        return len(self._queue) + (self.running is not None)

    def greet(self, client_id: str, client: Client) -> None:
        """Take in a client that has just connected, in place of an older one of that id."""
        self.clients[client_id] = client
        self._post(client, _message("status", self._status(sid=client_id)))

    def _forget(self) -> None:
        self._queue = []
        self._order = itertools.count()
        self._number = 0
        self._cache: dict[str, tuple[Any, ...]] = {}
        self._interrupted: Prompt | None = None
        self.running: Prompt | None = None
        self.history: dict[str, Prompt] = {}

    async def _stop(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
            self._worker = None
        for prompt in (*self.pending(), *([self.running] if self.running else [])):
            self._end(prompt, "failed")
        self._queue.clear()
        self.running = None
        for client in self.clients.values():
            # The connection ends with the process, without a goodbye.
            client.transport.abort()
        self.clients.clear()

    async def _work(self) -> None:
        while self._queue:
            prompt = heapq.heappop(self._queue)[2]
            self.running = prompt
            self._tell_status()
            try:
                await self._execute(prompt)
            except Lost:
                self._end(prompt, "failed")
            else:
                self.history[prompt.id] = prompt
                if len(self.history) > HISTORY_KEPT:
                    del self.history[next(iter(self.history))]
            self.running = None
            self._tell_status()
            self._send(prompt, "executing", {"node": None, "prompt_id": prompt.id})

    async def _execute(self, prompt: Prompt) -> None:
        prompt.status, prompt.started_mono = "processing", time.monotonic()
        self._state.ledger.note(prompt, "start")
        workflow = prompt.workflow
        self._log(prompt, "execution_start")
        order = nodes.run_order(workflow, prompt.outputs)
        signatures = {n: nodes.signature(workflow, n, self.folders) for n in order}
        # Only what the previous prompt left is known, and what this one does not need goes.
        cache = {s: self._cache[s] for s in signatures.values() if s in self._cache}
        self._cache = cache
        self._log(prompt, "execution_cached", nodes=[n for n in order if signatures[n] in cache])
        results: dict[str, tuple[Any, ...]] = {}
        executed: list[str] = []
        for node_id in order:
            is_output = node_id in prompt.outputs
            try:
                if signatures[node_id] in cache:
                    results[node_id] = cache[signatures[node_id]]
                else:
                    await self._run_node(prompt, node_id, order, results)
                    cache[signatures[node_id]] = results[node_id]
                    executed.append(node_id)
            except (NodeFailure, Interrupted) as error:
                self._log_failure(prompt, node_id, executed, error)
                was_stopped = isinstance(error, Interrupted)
                self._end(prompt, "canceled" if was_stopped else "failed")
                return
            if is_output:
                self._show(prompt, node_id, results[node_id][0])
        self._log(prompt, "execution_success")
        self._end(prompt, "succeeded")

    async def _run_node(
        self,
        prompt: Prompt,
        node_id: str,
        order: list[str],
        results: dict[str, tuple[Any, ...]],
    ) -> None:
        workflow = prompt.workflow
        node = nodes.NODES[workflow[node_id]["class_type"]]
        where = {"node": node_id, "display_node": node_id, "prompt_id": prompt.id}
        self._send(prompt, "executing", where)
        self._tell_node(prompt, node_id, 0, 1, "running")
        self._check_interrupt(prompt)
        samplers = [n for n in order if nodes.NODES[workflow[n]["class_type"]].is_sampler]
        values = nodes.node_values(workflow, node_id, results)
        if node.is_sampler:
            steps = int(values["steps"] if "steps" in values else values["sigmas"])
            await self._sample(prompt, node_id, steps, prompt.run_s / len(samplers))
        else:
            await asyncio.sleep(nodes.work_s(node, values))
        if node.is_sampler or (not samplers and node_id in prompt.outputs):
            await self._apply_fault(prompt)
        results[node_id] = nodes.run_node(workflow, node_id, results, self.folders)
        self._tell_node(prompt, node_id, 1, 1, "finished")

    async def _sample(self, prompt: Prompt, node_id: str, steps: int, run_s: float) -> None:
        for step in range(steps):
            await asyncio.sleep(run_s / steps)
            self._check_interrupt(prompt)
            progress = {"value": step + 1, "max": steps, "prompt_id": prompt.id, "node": node_id}
            self._send(prompt, "progress", progress)
            self._tell_node(prompt, node_id, step + 1, steps, "running")
        self._send_preview(prompt)

    async def _apply_fault(self, prompt: Prompt) -> None:
        rule = prompt.faults.get("run")
        if rule is None:
            return
        if rule.kind == "hang":
            while True:
                await asyncio.sleep(HANG_STEP_S)
                self._check_interrupt(prompt)
        if rule.kind == "interrupt":
            raise Lost
        text = rule.options["error"]
        if rule.kind == "out_of_memory":
            raise NodeFailure("torch.OutOfMemoryError", text + _OUT_OF_MEMORY_TIP)
        typed = _TYPED_ERROR.fullmatch(text)
        raise NodeFailure(*typed.groups()) if typed else NodeFailure("RuntimeError", text)

    def _show(self, prompt: Prompt, node_id: str, files: list[dict[str, str]]) -> None:
        for file in files:
            self.owners_of_files[file_path(file["subfolder"], file["filename"])] = prompt
        rule = prompt.faults.get("output")
        if rule is not None and rule.kind == "empty_output":
            return
        if rule is not None and rule.kind == "short_output":
            count = rule.options["count"]
            files = files[: max(1, len(files) - 1) if count is None else count]
        prompt.ui[node_id] = {"images": files}
        output = {"output": prompt.ui[node_id], "prompt_id": prompt.id}
        self._send(prompt, "executed", {"node": node_id, "display_node": node_id, **output})

    def _log_failure(
        self,
        prompt: Prompt,
        node_id: str,
        executed: list[str],
        error: NodeFailure | Interrupted,
    ) -> None:
        node = prompt.workflow[node_id]
        where = {"node_id": node_id, "node_type": node["class_type"], "executed": executed}
        if isinstance(error, Interrupted):
            self._log(prompt, "execution_interrupted", **where)
            return
        place = f'  File "/simulated/ComfyUI/execution.py", line 1, in {node["class_type"]}\n'
        values = {k: [v] for k, v in node.get("inputs", {}).items() if not nodes.is_link(v)}
        self._log(
            prompt,
            "execution_error",
            **where,
            exception_message=f"{error.message}\n",
            exception_type=error.kind,
            traceback=[place],
            current_inputs=values,
            current_outputs=executed,
        )

    def _log(self, prompt: Prompt, event: str, **data: Any) -> None:
        data = {"prompt_id": prompt.id, **data, "timestamp": round(time.time() * MILLISECONDS)}
        prompt.messages.append([event, data])
        self._send(prompt, event, data)

    def _check_interrupt(self, prompt: Prompt) -> None:
        if self._interrupted is prompt:
            raise Interrupted

    def _flag(self, prompt: Prompt) -> None:
        self._interrupted = prompt

    def _end(self, prompt: Prompt, status: str) -> None:
        prompt.status, prompt.ended_mono = status, time.monotonic()
        self._state.ledger.note(prompt, "completed")

    def _status(self, **extra: str) -> dict[str, Any]:
        return {"status": {"exec_info": {"queue_remaining": self.queue_remaining()}}, **extra}

    def _tell_status(self) -> None:
        for client in self.clients.values():
            self._post(client, _message("status", self._status()))

    def _tell_node(self, prompt: Prompt, node_id: str, value: int, most: int, state: str) -> None:
        same = ("node_id", "display_node_id", "real_node_id")
        node = {"value": value, "max": most, "state": state, "prompt_id": prompt.id}
        node |= {**dict.fromkeys(same, node_id), "parent_node_id": None}
        self._send(prompt, "progress_state", {"prompt_id": prompt.id, "nodes": {node_id: node}})

    def _send(self, prompt: Prompt, event: str, data: dict[str, Any]) -> None:
        """Tell the client that queued the prompt, and nobody else."""
        client = self.clients.get(str(prompt.extra_data.get("client_id")))
        if client is not None:
            self._post(client, _message(event, data))

    def _send_preview(self, prompt: Prompt) -> None:
        client = self.clients.get(str(prompt.extra_data.get("client_id")))
        if client is not None:
            kind = struct.pack(">II", _PREVIEW_EVENT, _PREVIEW_JPEG)
            self._post(client, kind + b"\xff\xd8\xff")

    def _post(self, client: Client, message: bytes | str) -> None:
        # One after the other, by one task: two sends at once may swap places.
        self._messages.put_nowait((client, message))
        if self._publisher is None or self._publisher.done():
            self._publisher = asyncio.get_running_loop().create_task(self._publish())

    async def _publish(self) -> None:
        while not self._messages.empty():
            client, message = self._messages.get_nowait()
            # Whoever has gone misses it.
            with contextlib.suppress(ConnectionError):
                if isinstance(message, bytes):
                    await client.socket.send_bytes(message)
                else:
                    await client.socket.send_str(message)


def _message(event: str, data: dict[str, Any]) -> str:
    return json.dumps({"type": event, "data": data})


def file_path(subfolder: str, filename: str) -> str:
    """Return the path of a file below its folder."""
    return f"{subfolder}/{filename}" if subfolder else filename
