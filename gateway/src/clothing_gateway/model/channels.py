"""Channels (gRPC) to the model servers: options, the pool, its replacement."""

from __future__ import annotations

import functools
import json
import socket
import threading
import time
from typing import Any

import grpc

from clothing_gateway.model import tls
from clothing_gateway.model.concurrency import TOKEN_RATIO, CallSlots, retry_tokens
from clothing_gateway.model.dialect import Dialect
from clothing_gateway.model.tls import TlsFiles
from clothing_gateway.settings import Settings

# The smallest retry buffer: one photo of 512 x 512 in float32 is 3 MiB.
_RETRY_BUFFER_BYTES = 4 << 20
# A server that is up accepts a connection within milliseconds.
_CONNECT_SECONDS = 2.0
# Keepalive: while calls wait on a connection and nothing arrives, the server is pinged at this interval, and has as
# long to acknowledge. A server that hangs is found while its calls have time left for another one.
_PING_SECONDS = 5
# The start of a target that is a name, which the system's own name servers know.
_DNS = "dns:///"
# An address that was absent for so long counts as new when it returns.
_ADDRESS_SECONDS = 60.0
# Channels in a pool, at most.
_MOST_CHANNELS = 8


def target_of(address: str) -> str:
    """The gRPC target for HOST:PORT.

    It is dns:///, so that all addresses of a headless Service are found.
    """
    return address if address.startswith(("dns:", "ipv4:", "ipv6:", "unix:", "passthrough:")) else f"{_DNS}{address}"


def host_and_port(address: str) -> tuple[str, str] | None:
    """Host and port of HOST:PORT or a dns:/// target; None for gRPC's other kinds.

    Those only gRPC reads.
    """
    target = target_of(address)
    if not target.startswith(_DNS):
        return None
    host, _, port = target.removeprefix(_DNS).rpartition(":")
    return host.strip("[]"), port


def channel_options(service: str, retry_buffer_bytes: int, max_in_flight: int) -> list[tuple[str, Any]]:
    """The channel's options, each with its reason."""
    service_config = {
        # One connection to each pod and calls in turn; the default, pick_first, sends all to one.
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": service}],
                # Predict changes nothing, so it may be retried: on another pod, as the retry picks anew.
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    # Not RESOURCE_EXHAUSTED: a policy can't tell a server without a free thread, which the predictor
                    # retries, from a GPU without memory.
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        # A full batching queue is UNAVAILABLE, too: without this, retries triple the load that filled it.
        "retryThrottling": {"maxTokens": retry_tokens(max_in_flight), "tokenRatio": TOKEN_RATIO},
    }
    return [
        ("grpc.service_config", json.dumps(service_config)),
        # Channels with the same options would share their connections.
        ("grpc.use_local_subchannel_pool", 1),
        # The default of 256 KiB silently turns retries off for anything larger, and a photo's tensor is 1 MB.
        ("grpc.per_rpc_retry_buffer_size", retry_buffer_bytes),
        # gRPC sends its calls through the proxy of http_proxy and https_proxy, which knows no name inside of a
        # cluster: the gateway would never be ready. no_proxy would help only in lower case, and with the very name.
        ("grpc.enable_http_proxy", 0),
        # The configuration is above; no TXT record of the name is asked for one.
        ("grpc.service_config_disable_resolution", 1),
        # 30 s by default: too long for a pod that has just started.
        ("grpc.dns_min_time_between_resolutions_ms", 5000),
        # A node that vanishes, or a server that hangs, closes no connection. Pings only during calls, and only where
        # nothing else arrives: a server that was not told to expect them (the chart tells it) takes three without an
        # answer to send, so that no call of GATEWAY_REQUEST_TIMEOUT_SECONDS' 20 meets its limit.
        ("grpc.keepalive_time_ms", _PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _PING_SECONDS * 1000),
        # The option that gRPC uses since 1.60 in place of the line above; its default is a minute.
        ("grpc.http2.ping_timeout_ms", _PING_SECONDS * 1000),
        # Up to 120 s by default: the model server would be back long before it is tried again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.max_receive_message_length", 16 << 20),
        ("grpc.primary_user_agent", "clothing-gateway"),
    ]


def open_channel(settings: Settings, service: str, retry_buffer_bytes: int, files: TlsFiles | None) -> grpc.Channel:
    """Open a channel to the model servers; it connects on its first use."""
    target = target_of(settings.tf_serving_host)
    options = channel_options(service, retry_buffer_bytes, settings.max_in_flight)
    if files is None:
        return grpc.insecure_channel(target, options=options)
    if settings.model_tls_server_name:
        options.append(("grpc.ssl_target_name_override", settings.model_tls_server_name))
    return grpc.secure_channel(target, files.credentials(), options=options)


class PooledChannel:
    """A channel, and the number of Predict calls on it."""

    def __init__(self, channel: grpc.Channel, dialect: Dialect, lock: threading.Lock) -> None:
        self.channel = channel
        self.calls = 0
        self._lock = lock  # its pool's
        # Called, or started with .future; with bytes that are a request already.
        self.predict: Any = channel.unary_unary(dialect.predict.path, response_deserializer=dialect.predict.read)
        self.metadata: Any = channel.unary_unary(dialect.metadata.path, response_deserializer=dialect.metadata.read)

    def give_back(self) -> None:
        """End one of its calls."""
        with self._lock:
            self.calls -= 1


class ChannelPool:
    """One channel, and more of them while calls are made at the same time.

    Calls that share a channel wait for each other's megabyte, and wake each other's threads: with 8 calls in flight a
    photo costs a twelfth more CPU, and throughput is an eighth lower.
    """

    def __init__(self, settings: Settings, dialect: Dialect, retry_buffer_bytes: int, files: TlsFiles | None) -> None:
        self.retry_buffer_bytes = retry_buffer_bytes
        self._dialect = dialect
        self._open = functools.partial(open_channel, settings, dialect.service, retry_buffer_bytes, files)
        self._lock = threading.Lock()
        first = PooledChannel(self._open(), dialect, self._lock)
        self._channels = [first]
        self._connecting: grpc.Channel | None = None
        self._closed = False
        self.metadata = first.metadata

    def is_ready(self, seconds: float) -> bool:
        """Whether the first channel connects to a server within this time."""
        connected = grpc.channel_ready_future(self._channels[0].channel)
        try:
            connected.result(timeout=seconds)
        except grpc.FutureTimeoutError:
            connected.cancel()
            return False
        return True

    def take(self) -> PooledChannel:
        """Take the channel with the fewest calls for another call.

        Where none is idle, another is opened for later calls.
        """
        with self._lock:
            chosen = min(self._channels, key=_calls)
            if chosen.calls and len(self._channels) < _MOST_CHANNELS and self._connecting is None and not self._closed:
                self._connecting = self._open()
                self._add_when_ready(self._connecting)
            chosen.calls += 1
            return chosen

    def _add_when_ready(self, channel: grpc.Channel) -> None:
        """Add a channel once it has connected to a server.

        Each resolves the servers' name itself. One name server may not know yet what another has told the first
        channel, and calls must not fail of it.
        """

        def observe(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.READY:
                channel.unsubscribe(observe)
                with self._lock:
                    if self._connecting is channel:
                        self._channels.append(PooledChannel(channel, self._dialect, self._lock))
                        self._connecting = None

        channel.subscribe(observe, try_to_connect=True)

    def close(self) -> None:
        """Close all channels; calls on them fail."""
        with self._lock:
            self._closed = True
            channels = [pooled.channel for pooled in self._channels]
            if self._connecting is not None:
                channels.append(self._connecting)
                self._connecting = None
        for channel in channels:
            channel.close()


def _calls(pooled: PooledChannel) -> int:
    return pooled.calls


class Channels:
    """The current pool, and its replacement.

    A new pool is for other certificates, new servers, or larger messages.
    """

    def __init__(self, settings: Settings, dialect: Dialect) -> None:
        self._settings = settings
        self._dialect = dialect
        self._lock = threading.Lock()
        # No more calls than photos in flight; also with clients that leave, whose calls end later than their requests.
        self.slots = CallSlots(settings.max_in_flight)
        self._pool: ChannelPool | None = None
        self._stale = False  # whether another pool should be in its place
        self._retry_buffer_bytes = _RETRY_BUFFER_BYTES
        self._tls: TlsFiles | None = None
        self._retired: list[tuple[float, ChannelPool]] = []
        self._addresses: dict[str, float] = {}  # of the servers' name, and when each was last resolved

    def pool(self) -> ChannelPool:
        """The current pool, opened at the first call."""
        pool = self._pool
        if pool is not None:
            return pool
        with self._lock:
            if self._pool is None:
                self._pool = self._open()
            return self._pool

    def refresh(self) -> None:
        """Replace the pool where certificates or the servers' addresses have changed.

        Raises TlsError for a bad file.
        """
        files = tls.read(self._settings)
        if files != self._tls:  # certificates are renewed while the gateway runs
            self._tls = files
            self._stale = True
        if self._has_new_servers():
            self.slots.forget()
            self._stale = True
        if self._stale:
            self.renew()

    def renew(self, *, at_once: bool = False) -> None:
        """Replace the pool when a new one has connected to a server.

        Where the old one has no server, it is replaced at once.

        The old pool is closed when no call can be left on it. A new one that does not connect is closed, and the next
        refresh opens another.
        """
        new = self._open()
        self._stale = not at_once and not new.is_ready(_CONNECT_SECONDS)
        if self._stale:
            new.close()
            return
        with self._lock:
            old, self._pool = self._pool, new
            if old is not None:
                self._retired.append((time.monotonic() + self._settings.request_timeout_seconds + 1, old))

    def require_retry_buffer(self, size: int) -> None:
        """Allow retries of messages up to this many bytes.

        The buffer is a limit, not memory taken.
        """
        self._retry_buffer_bytes = max(self._retry_buffer_bytes, size)
        if self.pool().retry_buffer_bytes < self._retry_buffer_bytes:
            self.renew()

    def close_retired(self) -> None:
        """Close replaced pools on which no call can be left."""
        now = time.monotonic()
        with self._lock:
            over = [pool for until, pool in self._retired if until < now]
            self._retired = [(until, pool) for until, pool in self._retired if until >= now]
        for pool in over:
            pool.close()

    def close(self) -> None:
        """Close all pools; calls on them fail."""
        with self._lock:
            pools = [pool for _, pool in self._retired]
            if self._pool is not None:
                pools.append(self._pool)
            self._retired, self._pool = [], None
        for pool in pools:
            pool.close()

    def _open(self) -> ChannelPool:
        return ChannelPool(self._settings, self._dialect, self._retry_buffer_bytes, self._tls)

    def _has_new_servers(self) -> bool:
        """Whether the model servers' name has an address that it did not have before.

        gRPC itself resolves the name when a connection ends, which may be half a minute after a server has started:
        too late where the only other one is about to stop, as when two nodes are drained one after the other.
        """
        target = host_and_port(self._settings.tf_serving_host)
        if target is None:
            return False
        try:
            found = socket.getaddrinfo(target[0], None, type=socket.SOCK_STREAM)
        except OSError:
            return False
        now = time.monotonic()
        # A name server that gives a few of many addresses, others each time, must not look like new servers.
        before = {one: seen for one, seen in self._addresses.items() if now - seen < _ADDRESS_SECONDS}
        self._addresses = before | {str(one[4][0]): now for one in found}
        return bool(before) and len(self._addresses) > len(before)
