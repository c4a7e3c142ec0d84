"""Fetching photos by URL behind an SSRF guard: policy, resolver, HTTP client."""

from __future__ import annotations

from collections.abc import Callable

from clothing_gateway.fetch.client import USER_AGENT, Fetcher, Photo
from clothing_gateway.fetch.policy import Policy
from clothing_gateway.fetch.resolver import Resolver, limit_system_lookups
from clothing_gateway.limits.admission import ByteBudget
from clothing_gateway.settings import Settings

__all__ = ["Fetcher", "Photo", "Policy", "Resolver", "by_settings", "limit_system_lookups"]


def by_settings(
    settings: Settings, budget: ByteBudget, *, count: Callable[[str], object] = lambda result: None
) -> Fetcher:
    """Return a fetcher configured by the settings."""
    policy = Policy(
        settings.fetch_allowed_ports,
        settings.fetch_allowed_networks,
        settings.fetch_allowed_hosts,
        settings.fetch_denied_hosts,
        settings.fetch_denied_networks,
    )
    return Fetcher(
        policy,
        budget,
        timeout_seconds=settings.fetch_timeout_seconds,
        max_bytes=settings.fetch_max_bytes,
        max_redirects=settings.fetch_max_redirects,
        proxy=settings.fetch_proxy,
        user_agent=settings.fetch_user_agent or USER_AGENT,
        count=count,
    )
