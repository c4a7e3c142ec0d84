"""gRPC attempts including retries, read from channelz.

A call that fails on one server is retried on another inside gRPC, which shows Python the last answer only. Its channelz
(gRFC A14) counts the calls started on each server's connection, and that is every attempt.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz import ChannelzServicer


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts that have ended, by whether the server answered with OK."""

    succeeded: int = 0
    failed: int = 0


class _Context:
    """Receives the servicer's error for a connection that is gone: it is left out."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Drop the code."""

    def set_details(self, details: str) -> None:
        """Drop the words."""


class AttemptCounter:
    """Sum of the attempts on all channels of a target, closed ones included.

    Attempts of a connection between the last reading and its end are missed.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._seen: dict[int, Attempts] = {}  # by connection, at the last reading
        self._total = Attempts()

    def read(self) -> Attempts:
        """All attempts until now."""
        with self._lock:
            now = {number: attempts for channel in self._channels() for number, attempts in _attempts(channel)}
            before = self._seen
            self._total = Attempts(
                self._total.succeeded + sum(now[one].succeeded - before.get(one, Attempts()).succeeded for one in now),
                self._total.failed + sum(now[one].failed - before.get(one, Attempts()).failed for one in now),
            )
            self._seen = now
            return self._total

    def _channels(self) -> list[Any]:
        found: list[Any] = []
        start = 0
        while True:
            answer = ChannelzServicer.GetTopChannels(
                channelz_pb2.GetTopChannelsRequest(start_channel_id=start), _Context()
            )
            if answer is None:
                return found
            found += [channel for channel in answer.channel if channel.data.target == self._target]
            if answer.end or not answer.channel:
                return found
            start = answer.channel[-1].ref.channel_id + 1


def _attempts(channel: Any) -> list[tuple[int, Attempts]]:  # noqa: ANN401 - a message, for which there are no types
    """A channel's connections, also those below others, and the attempts on each."""
    found: list[tuple[int, Attempts]] = []
    for ref in channel.channel_ref:
        below = ChannelzServicer.GetChannel(channelz_pb2.GetChannelRequest(channel_id=ref.channel_id), _Context())
        if below is not None:
            found += _attempts(below.channel)
    for ref in channel.subchannel_ref:
        answer = ChannelzServicer.GetSubchannel(
            channelz_pb2.GetSubchannelRequest(subchannel_id=ref.subchannel_id), _Context()
        )
        if answer is not None:
            data = answer.subchannel.data
            found.append((ref.subchannel_id, Attempts(data.calls_succeeded, data.calls_failed)))
    return found
