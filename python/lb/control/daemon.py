"""
The running balancer: `lb run`.

It makes the parts and connects them: the data path with its sockets (`runtime`), the place of all changes
(`controller`) and their queue (`changes`), health checks, reloads, flow log, metrics and the control socket. Then it
only waits, for a stop or a failure; packets never come by here. What starting changed is undone in reverse order at
the end, however it ends (rule 20.1, restoring the host). `lb.control.process` runs it until a signal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import lb.backends
from lb.balancer import choose_backend
from lb.compiler.spec import Spec
from lb.control.api.explainer import Explainer
from lb.control.api.flow_rows import FlowRows
from lb.control.api.handlers import Api
from lb.control.api.listener import Listener
from lb.control.api.paths import default_control_path
from lb.control.changes import Changes
from lb.control.controller import Controller
from lb.control.health.checks import Checks
from lb.control.housekeeping import Housekeeping
from lb.control.interfaces import InterfaceFollower, describe_interfaces
from lb.control.kept import StateDirectory
from lb.control.predecessor import Left, Predecessor
from lb.control.preparation import Prepared, control_name
from lb.control.reload import Reloader, ReloadRecord, load_config
from lb.control.runtime import Runtime
from lb.control.seed import describe_drawn, draw_seed, with_seed
from lb.control.standing import restored
from lb.control.stopping import Stopping
from lb.control.stored_flows import StoredFlows
from lb.control.successor import Successors
from lb.control.tasks import Supervisor, call_on
from lb.control.telemetry.flow_log import FlowLog
from lb.control.telemetry.metrics_server import MetricsServer
from lb.control.telemetry.sampler import Sampler
from lb.errors import LbError
from lb.net.kernel import Kernel
from lb.privileges import broker

# How long the start waits for the servers' MACs, so that a burst of first packets is not lost: only three wait per hop.
SETTLE_S = 0.5

log = logging.getLogger(__name__)


class Daemon:
    """
    A running balancer. `start`, then `wait`, then `stop`, all on one asyncio loop.

    Args:
        config_path: of the configuration; read again at each reload.
        backend: `rust`, `python`, or `auto`: what the configuration says.
        control_path: of the control socket. None: `lb.control.api.paths.default_control_path()`.
        made: what was made while this process had all its rights; None: nothing, it still has them.
        tell_ready: called when it forwards: before the process that it takes over from may end, and after the start.
    """

    def __init__(
        self,
        config_path: Path,
        backend: str = "auto",
        control_path: Path | None = None,
        made: Prepared | None = None,
        tell_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._config_path = config_path
        loaded = load_config(config_path)
        self._made = made or Prepared()
        self._tell_ready = tell_ready
        # Hashes place flows by the seed: flows of the process before are found again by the same one.
        self._seed_left = None if self._made.state is None else self._made.state.seed_left
        self._is_seed_drawn = loaded.seed is None
        self._config = with_seed(loaded, draw_seed() if self._seed_left is None else self._seed_left)
        self._backend = lb.backends.load(choose_backend(backend, self._config))
        self._control_path = control_path or default_control_path()
        self._broker_trouble: str | None = None
        self._supervisor = Supervisor()
        self._cleanup = AsyncExitStack()
        self._stopped = asyncio.Event()
        self._is_replaced = False
        self._successors: Successors | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._loop: asyncio.AbstractEventLoop
        self._kernel: Kernel
        self._runtime: Runtime
        self._controller: Controller
        self._changes: Changes
        self._checks: Checks
        self._interfaces: InterfaceFollower
        self._reloader: Reloader
        self._metrics: MetricsServer
        self._listener: Listener
        self._stopping: Stopping
        self._stored_flows: StoredFlows

    async def start(self) -> None:
        """
        Let packets flow. When it raises, everything is undone.

        Raises:
            LbError: see the tree in `lb.errors`; the message says how to fix it.
        """
        try:
            self._loop = asyncio.get_running_loop()
            self._supervisor.watch_loop(self._loop)
            self._cleanup.push_async_callback(self._supervisor.stop)
            await self._start_control()
            await self._start_data_path()
            await self._start_observation()
            self._begin_forwarding()
            self._be_sole()
            await self._metrics.serve()
            await self._listener.serve()
            self._start_tasks()
            self._log_start()
            self._tell_ready()
        except BaseException:
            await self._cleanup.aclose()
            raise

    async def _start_control(self) -> None:
        """Claim the interfaces, and make the parts that changes go through."""
        self._kernel = Kernel(self._config)
        self._runtime = Runtime(self._config, self._backend, self._made, self._kernel, self._supervisor, self.fail)
        self._cleanup.enter_context(self._runtime.claimed())
        await self._kernel.open()
        self._cleanup.push_async_callback(self._kernel.close)
        interfaces = await self._kernel.read_interfaces()
        self._controller = Controller(self._config, interfaces, self._runtime, spec=self._restored())
        self._changes = Changes(self._controller, self._supervisor)
        self._stored_flows = StoredFlows(self._controller, self._runtime)
        self._stopping = Stopping(self._controller, self._changes, self._runtime, self._supervisor, self.request_stop)
        self._checks = Checks(self._controller, self._changes, self._supervisor, measure=self._runtime.measurements)
        self._interfaces = InterfaceFollower(self._controller, self._changes, self._supervisor, self.fail)

    def _restored(self) -> Spec:
        """Return the configuration with what stood beside it in the process before."""
        state = self._made.state
        if state is None:
            return Spec(self._config)
        return restored(self._config, state.standing_left, state.left)

    async def _start_data_path(self) -> None:
        """Open the sockets, publish the first snapshot, and wait for the servers' MACs."""
        self._cleanup.enter_context(self._runtime.opened(self._controller.snapshot))
        self._controller.start()
        self._runtime.set_next_hops(await self._kernel.settle(SETTLE_S))
        await self._kernel.refresh()

    def _begin_forwarding(self) -> None:
        """
        Have the flows of the process before, and forward. One that still runs stops only now: all else is prepared, and
        packets wait in the sockets meanwhile. Where this fails, that one goes on.
        """
        predecessor, began_s = self._made.predecessor, time.monotonic()
        try:
            left = None if predecessor is None else self._stop_predecessor(predecessor)
            drawn = self._config.seed if self._is_seed_drawn else None
            if not self._runtime.keep_flows(self._controller.snapshot, drawn, left):
                self._load_snapshot()
            self._cleanup.enter_context(self._runtime.running())
        except BaseException:
            if predecessor is not None:
                # Now, not after all else is undone: no packet is forwarded until then.
                predecessor.close()
            raise
        if predecessor is not None:
            waited_ms = (time.monotonic() - began_s) * 1000
            log.info("took over from process %d: packets waited for %.1f ms", predecessor.pid, waited_ms)

    def _load_snapshot(self) -> None:
        """Take over the flows of the latest snapshot: the process before has left no newer ones in memory."""
        if (snapshots := self._made.snapshots) is None or (latest := snapshots.latest()) is None:
            return
        path = snapshots.path / latest.place
        try:
            loaded = self._stored_flows.load_all(latest.contents)
        except LbError as error:
            log.warning("%s: %s: flows begin empty", path, error)
        else:
            log.info("%s: %d flows loaded, %d dropped", path, loaded.flows, loaded.dropped)

    def _stop_predecessor(self, predecessor: Predecessor) -> Left:
        """Let the running balancer stop; follow what it has changed while this one was preparing itself."""
        # Last of all that may fail: the guard is theirs until they stop.
        self._runtime.guard_host(self._controller.snapshot)
        left = predecessor.stop()
        if self._made.state is not None:
            self._made.state.read_left()
        if (spec := self._restored()) != self._controller.spec:
            self._controller.restore(spec)
        return left

    def _be_sole(self) -> None:
        """Let the process before end, now that this one forwards, and have what it leaves."""
        controller, predecessor, state = self._controller, self._made.predecessor, self._made.state
        if predecessor is not None:
            self._tell_ready()
            predecessor.dismiss()
            self._runtime.take_host(controller.snapshot)
            self._listener.own()
            self._made.own_control()
        if state is None:
            return
        state.begin(controller.snapshot, controller.spec)
        controller.reset_down()
        controller.listen(lambda: state.note_standing(controller.spec))
        self._supervisor.spawn("predecessor", self._forget_predecessor(state, predecessor))

    async def _forget_predecessor(self, state: StateDirectory, predecessor: Predecessor | None) -> None:
        """
        Have the room of the table that the process before left, once that has ended; only then may one take over from
        this process: its table is to be there.
        """
        if predecessor is not None:
            try:
                await asyncio.to_thread(predecessor.wait_for_end)
            finally:
                predecessor.close()
        state.forget_left()
        if self._stopped.is_set():
            return
        self._successors = Successors(state.successors, self)
        self._cleanup.callback(self._successors.stop)
        self._waiting = self._supervisor.run("successors", self._successors.wait)

    # What a successor gets: `lb.control.successor.Replaced`.

    def open_descriptors(self) -> dict[str, int]:
        """Return what the successor goes on with, by what it is."""
        control = {control_name(self._control_path): self._listener.descriptor()}
        snapshots = {} if self._made.snapshots is None else self._made.snapshots.descriptors()
        return {**self._runtime.descriptors(), **self._metrics.descriptors(), **control, **snapshots}

    async def leave(self) -> dict[str, Any]:
        """Stop changes and the packet loop; return what goes on beside the flows. Raise LbError when it cannot."""
        await self._metrics.pause()
        await self._listener.pause()
        await self._changes.hold()
        try:
            await self._runtime.finish_resets()
            return await asyncio.to_thread(self._runtime.leave)
        except BaseException:
            await self.resume()
            raise

    async def resume(self) -> None:
        """Go on forwarding, and making changes: the successor has failed. A failure ends this balancer."""
        try:
            await asyncio.to_thread(self._runtime.resume)
        except LbError as error:
            self.fail(error)
        await self._go_on()

    async def _go_on(self) -> None:
        self._changes.release()
        await self._listener.serve()
        await self._metrics.serve()

    def end_replaced(self) -> None:
        """End: the successor forwards. What it goes on with stays."""
        log.info("another process has taken over")
        self._is_replaced = True
        if self._waiting is not None:
            # Who comes now is the successor's.
            self._waiting.cancel()
        self._runtime.keep_host()
        self._listener.leave()
        self._made.leave_control()
        self._stopped.set()

    async def _start_observation(self) -> None:
        """Serve metrics and flow log as configured, and the control socket."""
        record, flow_log = ReloadRecord(), FlowLog(self._runtime, self._supervisor)
        self._cleanup.push_async_callback(flow_log.stop)
        sampler = self._make_sampler(flow_log, record)
        self._metrics = metrics = MetricsServer(sampler.sample, self._made.take_left)
        self._cleanup.push_async_callback(metrics.stop)
        metrics.wait()
        flow_log.follow(self._config.flow_log)
        await metrics.follow(self._config.metrics)
        self._reloader = Reloader(
            self._config_path,
            self._config,
            self._controller,
            self._changes,
            self._kernel,
            metrics,
            flow_log,
            self._supervisor,
            record,
        )
        await self._start_api(sampler)

    def _make_sampler(self, flow_log: FlowLog, record: ReloadRecord) -> Sampler:
        return Sampler(
            self._backend.NAME,
            self._config_path,
            self._runtime,
            self._controller,
            self._checks,
            flow_log,
            record,
            self._supervisor.states,
            lambda: (self._interfaces.trouble, self._broker_trouble),
            self._stopping.seconds_left,
        )

    async def _start_api(self, sampler: Sampler) -> None:
        explainer = Explainer(self._controller, self._runtime, lambda: self._kernel.next_hops)
        api = Api(
            self._controller, self._changes, self._runtime, self._reloader, sampler.facts, explainer, self._stopping
        )
        handlers = {**api.handlers(), **FlowRows(self._stored_flows).handlers()}
        self._listener = Listener(self._control_path, handlers, bind=self._made.take_control)
        self._cleanup.push_async_callback(self._listener.stop)
        await self._listener.bind()
        if self._made.predecessor is not None:
            # Not ours yet.
            self._listener.leave()

    def _start_tasks(self) -> None:
        """Begin to make changes, to check servers and to watch the kernel."""
        housekeeping = Housekeeping(self._controller, self._changes, self._runtime)
        self._cleanup.push_async_callback(self._changes.close)
        self._changes.start()
        self._supervisor.run("sweep", housekeeping.sweep)
        self._supervisor.run("replan", housekeeping.replan)
        self._supervisor.run("host guard", self._runtime.watch_guard)
        if (snapshots := self._made.snapshots) is not None:
            interval_s = self._config.flows.snapshot_interval / 1e9
            self._supervisor.run("snapshots", lambda: snapshots.keep_writing(self._stored_flows, interval_s))
        self._cleanup.push_async_callback(self._checks.stop)
        self._controller.listen(lambda: call_on(self._loop, self._checks.follow))
        self._checks.start()
        self._watch_broker()
        follower = self._interfaces
        self._kernel.watch(self._runtime.set_next_hops, follower.on_change, follower.on_trouble, self._supervisor)
        self._runtime.announce(self._controller.snapshot)

    def _watch_broker(self) -> None:
        """Notice at once when the process ends that opens files for this one: reloads fail from then on."""
        if self._made.broker is None or (end_fd := self._made.broker.end_fd) is None:
            return
        self._cleanup.callback(self._loop.remove_reader, end_fd)

        def note() -> None:
            self._loop.remove_reader(end_fd)
            self._broker_trouble = f"no reload is possible: {broker.ENDED}"
            self._supervisor.note("broker", LbError(self._broker_trouble))

        self._loop.add_reader(end_fd, note)

    def _log_start(self) -> None:
        if notice := self._made.notice:
            log.log(notice.level, "%s", notice.text)
        for ignored in self._runtime.ignored_settings():
            log.warning("%s", ignored)
        if line := self._runtime.describe_memory():
            log.info("%s", line)
        snapshot = self._controller.snapshot
        if self._is_seed_drawn:
            log.info("%s", describe_drawn(self._config, snapshot.seed, is_left=self._seed_left is not None))
        services = ", ".join(
            f"{entry.name} {entry.address} port {entry.port}/{entry.protocol}" for entry in self._config.services
        )
        where, how = describe_interfaces(snapshot.interfaces), self._runtime.describe()
        log.info("ready: %s on %s, backend %s, control %s", services, where, how, self._control_path)

    def fail(self, error: Exception) -> None:
        """End the run with an error, from any thread; the first error counts."""
        self._failure = self._failure or error
        call_on(self._loop, self._stopped.set)

    @property
    def is_replaced(self) -> bool:
        """Whether another process has taken over."""
        return self._is_replaced

    def request_stop(self) -> None:
        """Let `wait` return."""
        self._stopped.set()

    def request_reload(self) -> None:
        """Start a reload in the background; the log and the status tell how it ends."""
        self._reloader.request()

    async def wait(self) -> None:
        """Wait until a stop is requested or the data path fails."""
        await self._stopped.wait()

    async def stop(self) -> None:
        """
        Do with the flows what `on_stop` says, unless another process goes on with them, and undo everything that
        `start` did.

        Raises:
            LbError: the balancer had failed; says why.
        """
        if self._successors is not None:
            # What is left to one that may forward is not to be undone.
            await self._successors.close(has_failed=self._failure is not None)
        if self._failure is not None and self._made.state is not None:
            # The next one goes on with the flows: until then the host's kernel is to answer none of their packets.
            self._runtime.keep_host()
        if self._failure is None and not self._is_replaced:
            await self._stopping.end_flows()
            if self._made.snapshots is not None:
                await asyncio.to_thread(self._made.snapshots.write, self._stored_flows)
        await self._supervisor.stop()
        await self._cleanup.aclose()
        if isinstance(self._failure, LbError):
            raise self._failure
        if self._failure is not None:
            raise LbError(f"the balancer failed: {self._failure!r}") from self._failure
