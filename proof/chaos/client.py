"""A client process: lanes that train and sample, one run after the other, until time is up.

`python -m proof.chaos.client '{"seed": ...}'`; each run ends with a line of JSON on stdout.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import threading
import time
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import httpx
import tinker
from tinker import types
from tinker.lib.internal_client_holder import InternalClientHolder
from tinker.lib.public_interfaces.sampling_client import _get_retry_handler

from proof.chaos import watch
from proof.chaos.front import say
from proof.chaos.judge import HURRIED
from proof.chaos.plan import ACCOUNT, LAST_SAMPLES, PLANE_KEY, SAMPLES, WANTED, Plan, draw, job_name
from tinker_guard import GuardSettings, install_guard
from tinker_guard.gateway.train import SEQUENCES

PATIENCE: Final = 200.0
"""Seconds after which a result counts as one that never comes. The SDK by itself waits for up to a
minute for an answer and for half a minute between tries, the guard for 30 s in a race."""
WINDOW: Final = 64
"""Samples of one run that are waited for at the same time."""
_CLOSE_TIMEOUT: Final = 8.0
_CLOSE_TRIES: Final = 6
"""So often and for so many seconds a session's end is waited for. Its last requests can meet races
too, and the SDK retries them."""
_REST: Final = 1.0
"""Seconds between two runs of a lane, lest those that end early take the machine for themselves."""
_ENCORE: Final = 60.0
"""Seconds for which a lane goes on after the end if it has not met all that it is there for."""
_LOOK_EVERY: Final = 1.0
_COLLECT_EVERY: Final = 3.0


class Process:
    """One client process.

    Args:
        given: Seed, lanes (kind and number of each), ports of the front and the judge, when to
            begin no more runs, and how the guard is to be installed.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._until: float = given["until"]
        self._judge = httpx.Client(base_url=f"http://127.0.0.1:{given['judge']}", timeout=60)
        self._tally, self._faults = watch.observe()
        self._hung_closes = self._lost_cancellations = 0

    def run(self) -> None:
        """Run all lanes to their end, and see what is left."""
        # The SDK forgets the httpx client of its first request. If the garbage collector finds it
        # on the SDK's event loop, a descriptor can be lost to a newer connection, whose answer then
        # is never read (python/cpython#130141). So it is found elsewhere.
        gc.disable()
        watch.sdk_loop()
        lanes = self._given["lanes"]
        looking = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(looking,), daemon=True)
        watcher.start()
        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(self.run_lane, *zip(*lanes, strict=True)))
        looking.set()
        watcher.join()
        self._say_what_is_left()

    def run_lane(self, kind: str, lane: int) -> None:
        """One run after another of a kind, until the time is over and what is wanted was met."""
        number = self._given["incarnation"] * 1000
        has_404s = self._given["has_404s"]
        is_asking = has_404s and self._given["is_guarded"]
        wanted = set(WANTED.get(kind, ()) if is_asking else ())
        while True:
            number += 1
            plan = draw(self._given["seed"], job_name(kind, lane, number), has_404s=has_404s)
            log = self.run_one(plan)["log"]
            if plan.plane_fault is not None and log is not None and log["questions"]:
                wanted.discard(plan.plane_fault)
            if time.time() >= self._until + (_ENCORE if wanted else 0.0):
                return
            time.sleep(_REST)

    def run_one(self, plan: Plan) -> dict[str, Any]:
        """One run, and all that is known about it."""
        found: dict[str, Any] = {"event": "run", "job": plan.job, "losses": [], "tokens": []}
        began = time.monotonic()
        service: Any = None
        submitted: deque[Any] = deque()
        try:
            service = tinker.ServiceClient(base_url=self._url(plan), api_key=plan.key)
            (_train if plan.steps else _sample)(service, plan, found, submitted)
        except Exception as error:
            # Without this, the SDK goes on with an optimizer step whose run has ended, for up to
            # five minutes after its client was closed, and pyqwest keeps its connections for it.
            for future in submitted:
                future.future().cancel()
            found["error"] = {
                "type": f"{type(error).__module__}.{type(error).__qualname__}",
                "text": str(error)[:500],
                "chain": [type(each).__module__ for each in _chain_of(error)],
                "causes": [str(each)[:200] for each in _chain_of(error)],
            }
        found["seconds"] = time.monotonic() - began
        # Not those of the end: when a pool is closed, a request of the SDK's may be under way.
        found["strange_errors"] = self._tally.strange_errors_of(plan.job)
        if service is not None:
            self._close(service, plan)
        self._tally.strange_errors_of(plan.job)
        found["verdicts"] = self._tally.verdicts_of(plan.job)
        found["log"] = self._judge.get(f"/log/{plan.job}").json()
        say(**found)
        return found

    def _url(self, plan: Plan) -> str:
        port = self._given["ports"][plan.entrance]
        scheme = "http" if plan.entrance == "plain" else "https"
        return f"{scheme}://127.0.0.1:{port}/training/v1/rlorTrainerJobs/{ACCOUNT}/{plan.job}"

    def _close(self, service: Any, plan: Plan) -> None:
        closing = service.close("success")
        for _ in range(_CLOSE_TRIES):
            try:
                # Closing sends requests too, and a fault may hit them.
                with suppress(tinker.TinkerError):
                    closing.result(_CLOSE_TIMEOUT)
                break
            except TimeoutError:
                # On Python 3.11 now and then for ever: `asyncio.wait_for`, in which pyqwest reads,
                # can lose a cancellation (python/cpython#86296), guarded or not. So it comes again.
                self._lost_cancellations += 1
                for task in _background_tasks(service._session_holder):
                    watch.sdk_loop().call_soon_threadsafe(task.cancel)
        else:
            self._hung_closes += 1
        for pool in _pools.pop(self._url(plan), ()):
            closing = asyncio.run_coroutine_threadsafe(pool.close(), watch.sdk_loop())
            closing.result(PATIENCE)
        # It keeps the last hundred sessions that sampled, and what pyqwest has open for them.
        _get_retry_handler.cache_clear()

    def _watch(self, is_over: threading.Event) -> None:
        looks = 0
        while not is_over.wait(_LOOK_EVERY):
            looks += 1
            if looks % int(_COLLECT_EVERY / _LOOK_EVERY) == 0:
                gc.collect()
            say(event="resources", **watch.resources(self._tally))

    def _say_what_is_left(self) -> None:
        """Wait a little for what is still being closed, then tell what is not."""
        ports = set(self._given["ports"].values())
        # The SDK tries for half a minute to report a failure to a trainer that has just gone.
        deadline = time.monotonic() + 45
        while time.monotonic() < deadline:
            gc.collect()
            tasks, sockets = watch.tasks(), watch.connections(ports)
            if not tasks and not sockets:
                break
            time.sleep(0.5)
        say(
            event="left",
            tasks=tasks,
            connections=sockets,
            spans=self._tally.open("tinker_guard"),
            spans_of_others=self._tally.open("others"),
            hung_closes=self._hung_closes,
            lost_cancellations=self._lost_cancellations,
            faults=self._faults.lines,
            counts=dict(self._tally.counts),
            longest=dict(self._tally.longest),
        )


def _background_tasks(holder: Any) -> list[Any]:
    """What the SDK cancels when a session is closed, and waits for."""
    tasks = [
        holder._session_heartbeat_task,
        holder._client_dynamic_config_refresh_task,
        holder._cancel_drain_task,
        getattr(holder._telemetry, "_task", None),
        *holder._futures_poller_tasks.copy(),
    ]
    return [task for task in tasks if task is not None and task.cancelling()]


_pools: defaultdict[str, list[Any]] = defaultdict(list)
"""The SDK's pools of connections, by base URL, of which each run has its own."""


def remember_pools() -> None:
    """Keep the SDK's pools where they can be closed.

    It forgets the one of its first request, whose connection then stays open until the server ends
    it: the event loop still knows the socket, so that the garbage collector never does. With one of
    these for each run, connections that the guard forgets could not be seen.
    """
    original = InternalClientHolder._create_client_connection_pool

    def create(self: Any, *given: Any, **named: Any) -> Any:
        pool = original(self, *given, **named)
        _pools[self._base_url].append(pool)
        return pool

    InternalClientHolder._create_client_connection_pool = create


def _train(service: Any, plan: Plan, found: dict[str, Any], submitted: deque[Any]) -> None:
    """Train, then sample from what was learned."""
    client = _here(service.create_lora_training_client(base_model="tinker-guard/bigram", rank=8))
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(
                    data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]
                ),
            },
        )
        for tokens in SEQUENCES
    ]
    for _ in range(plan.steps):
        submitted.append(client.forward_backward(data, "cross_entropy"))
        submitted.append(client.optim_step(types.AdamParams(learning_rate=0.1)))
        found["losses"].append(submitted.popleft().result(PATIENCE).metrics["loss:sum"])
        submitted.popleft().result(PATIENCE)
        time.sleep(plan.pause)
    # By name: without one, the SDK's own retry of a reply that was lost sends another body.
    path = client.save_weights_for_sampler("learned").result(PATIENCE).path
    learned = _here(service.create_sampling_client(model_path=path))
    submitted += [_drawn(learned, seed) for seed in range(LAST_SAMPLES)]
    while submitted:
        found["tokens"].append(list(submitted.popleft().result(PATIENCE).sequences[0].tokens))


def _sample(service: Any, plan: Plan, found: dict[str, Any], submitted: deque[Any]) -> None:
    """Sample from an untrained model, many at a time."""
    client = _here(service.create_sampling_client(base_model="tinker-guard/bigram"))
    for seed in range(SAMPLES + WINDOW):
        if seed < SAMPLES:
            submitted.append(_drawn(client, seed))
        if seed >= WINDOW:
            result = submitted.popleft().result(PATIENCE)
            found["tokens"].append(list(result.sequences[0].tokens))


def _here(created: Any) -> Any:
    return created.result(PATIENCE) if hasattr(created, "result") else created


def _drawn(client: Any, seed: int) -> Any:
    params = types.SamplingParams(max_tokens=8, seed=seed)
    return client.sample(types.ModelInput.from_ints([1, 2, 3]), 1, params)


def _chain_of(error: BaseException) -> list[BaseException]:
    """An error and what caused it."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and len(chain) < 20:
        chain.append(at)
        at = at.__cause__ or at.__context__
    return chain


def main() -> None:
    """Read what to do, and do it."""
    given = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.CRITICAL)
    if given["is_guarded"]:
        # Where each 404 is said to be untrue, the front is killed more often than 30 s pass.
        changed: dict[str, Any] = {"retry_timeout": HURRIED}
        if given["plane"] is not None:
            changed = {
                "control_plane_url": f"http://127.0.0.1:{given['plane']}",
                "control_plane_api_key": PLANE_KEY,
                # On a machine that is too busy, the SDK's event loop can stand still for seconds.
                "control_plane_timeout": 15.0,
            }
        install_guard(GuardSettings(trace="all", child_processes=False, **changed))
    if given["sabotage"]:
        from proof.sabotage import SABOTAGE

        SABOTAGE[given["sabotage"]].apply(setattr)
    remember_pools()
    Process(given).run()
    sys.stdout.flush()
    # Without the interpreter's own end, which would wait for what a hung close left behind.
    os._exit(0)


if __name__ == "__main__":
    main()
