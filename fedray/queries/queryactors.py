"""Starts the actors of a query."""

from __future__ import annotations

from functools import cache
from typing import Any

import ray

from fedray.clients.placement import Place, actor_options
from fedray.queries.queryhost import QueryHost, QuerySite


def start_query_actor(place: Place, site: QuerySite, data: Any, model: Any) -> Any:
    """Start one actor; returns its handle at once."""
    return _actor_class().options(**actor_options(place)).remote(site, data, model)


@cache
def _actor_class() -> Any:
    """One class for all actors, which Ray sends to the head once."""
    return ray.remote(QueryHost)
