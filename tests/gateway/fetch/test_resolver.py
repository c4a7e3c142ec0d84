"""The resolver: what a client's names can hold, and for how long."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from clothing_gateway.deadline import Deadline
from clothing_gateway.fetch import resolver as resolvers
from clothing_gateway.fetch.resolver import NoAddress, NoAnswer, Resolver, limit_system_lookups, system_look_up, zone

ADDRESS = ip_address("93.184.215.14")


class Names:
    """A name server that hangs for names that begin with dead, until it is released."""

    def __init__(self):
        self.asked = []
        self.release = threading.Event()

    def look_up(self, host):
        self.asked.append(host)
        if host.startswith("dead"):
            self.release.wait(30)
            raise NoAnswer("no name server answers")
        if host.startswith("missing"):
            raise NoAddress("no such name")
        return [ADDRESS]


@pytest.fixture
def names():
    names = Names()
    yield names
    names.release.set()


def hang(resolver, names, hosts, seconds=0.1):
    """Ask for each host, for as long as a lookup takes to begin on a busy machine."""
    before = len(names.asked)
    for host in hosts:
        with pytest.raises(NoAnswer, match="took too long"):
            resolver.addresses(host, Deadline.after(seconds))
    return len(names.asked) - before


@pytest.mark.parametrize(("limits", "share"), [({"threads": 8, "threads_per_zone": 3}, 3), ({}, 8)])
def test_hanging_zone_takes_only_its_share_of_threads(names, limits, share):
    resolver = Resolver(names.look_up, **limits)
    assert hang(resolver, names, [f"dead{number}.attacker.test" for number in range(12)]) == share
    assert resolver.addresses("photos.example", Deadline.after(5)) == [ADDRESS]
    assert resolver._threads <= limits.get("threads", resolvers.THREADS)


def test_queued_lookup_of_a_zone_runs_when_its_thread_is_free(names):
    resolver = Resolver(names.look_up, threads=8, threads_per_zone=1)
    hang(resolver, names, ["dead.shop.test"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(resolver.addresses, "www.shop.test", Deadline.after(10))
        names.release.set()
        assert waiting.result() == [ADDRESS]


def test_concurrent_lookups_of_a_name_share_one_query(names):
    resolver = Resolver(names.look_up, threads=8)
    assert hang(resolver, names, ["dead.attacker.test"] * 10) == 1


def test_joined_lookup_keeps_its_own_deadline(names):
    resolver = Resolver(names.look_up, threads=1)
    hang(resolver, names, ["dead.attacker.test"])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(resolver.addresses, "www.shop.test", Deadline.after(0.05))
        second = pool.submit(resolver.addresses, "www.shop.test", Deadline.after(10))
        with pytest.raises(NoAnswer, match="took too long"):
            first.result()
        names.release.set()
        assert second.result() == [ADDRESS]
    assert names.asked.count("www.shop.test") == 1


def test_abandoned_lookup_is_dropped(names):
    resolver = Resolver(names.look_up, threads=1)
    hang(resolver, names, ["dead.attacker.test", "www.shop.test"], seconds=0.5)
    names.release.set()
    assert resolver.addresses("photos.example", Deadline.after(5)) == [ADDRESS]
    assert names.asked == ["dead.attacker.test", "photos.example"]


@pytest.mark.parametrize(("host", "error"), [("missing.test", NoAddress), ("dead.test", NoAnswer)])
def test_failed_lookup_is_cached_for_seconds(names, monkeypatch, host, error):
    names.release.set()
    resolver = Resolver(names.look_up)
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(error):
            resolver.addresses(host, Deadline.after(5))
    later = time.monotonic() + resolvers.FAILED_SECONDS
    with monkeypatch.context() as just_before:
        just_before.setattr(resolvers.time, "monotonic", lambda: began + resolvers.FAILED_SECONDS - 0.001)
        with pytest.raises(error):
            resolver.addresses(host, Deadline(later))
    assert names.asked == [host]
    monkeypatch.setattr(resolvers.time, "monotonic", lambda: later)
    with pytest.raises(error):
        resolver.addresses(host, Deadline(later + 5))
    assert names.asked == [host, host]


def test_failed_lookup_cache_is_bounded(names, monkeypatch):
    monkeypatch.setattr(resolvers, "FAILED_NAMES", 5)
    resolver = Resolver(names.look_up)
    for number in range(20):
        with pytest.raises(NoAddress):
            resolver.addresses(f"missing{number}.test", Deadline.after(5))
    assert list(resolver._failed) == [f"missing{number}.test" for number in range(15, 20)]
    assert not resolver._asked
    assert not resolver._busy
    assert not resolver._waiting


def test_addresses_are_not_cached(names):
    """An address that was checked may have changed hands: each fetch looks its name up anew."""
    resolver = Resolver(names.look_up)
    for _ in range(3):
        resolver.addresses("photos.example", Deadline.after(5))
    assert names.asked == ["photos.example"] * 3


def test_resolver_threads_are_bounded(names):
    resolver = Resolver(names.look_up, threads=4)
    assert hang(resolver, names, [f"dead.zone{number}.test" for number in range(10)]) == 4
    assert resolver._threads == 4


@pytest.mark.parametrize(
    ("host", "its"),
    [
        ("example.com", "example.com"),
        ("a.b.c.example.com", "example.com"),
        ("com", "com"),
        ("a.example.co.uk", "example.co.uk"),
        ("example.co.uk", "example.co.uk"),
        ("a.example.de", "example.de"),
        ("cdn.shop.io", "shop.io"),
    ],
)
def test_the_zone_of_a_name(host, its):
    assert zone(host) == its


@pytest.fixture
def spellings(monkeypatch, tmp_path):
    asked = []

    def getaddrinfo(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost Photos.Local # not.this\n# 10.0.0.1 nor.this\n")
    monkeypatch.setattr(resolvers, "_HOSTS", hosts)
    return asked


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("redis", "redis."),
        ("a.example.com", "a.example.com."),
        ("localhost", "localhost"),
        ("photos.local", "photos.local"),
        ("not.this", "not.this."),
        ("nor.this", "nor.this."),
    ],
)
def test_fully_qualified_name_is_queried_without_search_domains(spellings, host, asked):
    """With them a name that doesn't exist takes 12 questions, and one that does 2: the time told which."""
    with pytest.raises(NoAddress):
        system_look_up(host)
    assert spellings == [asked]


def test_a_machine_without_a_hosts_file(spellings, monkeypatch, tmp_path):
    monkeypatch.setattr(resolvers, "_HOSTS", tmp_path / "none")
    with pytest.raises(NoAddress):
        system_look_up("localhost")
    assert spellings == ["localhost."]


def test_resolver_options_of_the_environment_take_precedence(monkeypatch):
    monkeypatch.setattr(os, "environ", {"RES_OPTIONS": "timeout:9"})
    limit_system_lookups()
    assert os.environ == {"RES_OPTIONS": "timeout:9"}


# A name server that never answers, in a mount namespace whose resolv.conf names it.
SILENT = """
import socket, sys, time
from clothing_gateway.fetch.resolver import NoAnswer, limit_system_lookups, system_look_up
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("127.0.0.9", 53))
    limit_system_lookups()
    began = time.monotonic()
    try:
        system_look_up("dead.example")
    except NoAnswer:
        print(time.monotonic() - began)
"""
NAMESPACE = ["unshare", "--mount", "bash", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"']


@pytest.mark.skipif(
    not shutil.which("unshare") or os.geteuid() != 0, reason="only root can mount another resolv.conf and use port 53"
)
def test_the_c_library_gives_up_within_seconds(tmp_path):
    """By default it takes 10 s."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.9\n")
    done = subprocess.run(
        [*NAMESPACE, tmp_path / "resolv.conf", sys.executable, "-c", SILENT],
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount:" in done.stderr:
        pytest.skip(f"no mount namespace can be made here: {done.stderr}")
    assert 1.9 < float(done.stdout) < 5, done.stderr
