"""Fetching a photo by a URL that a client gave: the policy, the resolver, and the client that keeps to both."""

from clothing_gateway.fetch.client import Fetcher, Photo
from clothing_gateway.fetch.policy import Policy
from clothing_gateway.fetch.resolver import Resolver

__all__ = ["Fetcher", "Photo", "Policy", "Resolver"]
