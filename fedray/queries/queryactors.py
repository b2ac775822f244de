"""Starts the actors of a query."""

from __future__ import annotations

from functools import cache
from typing import Any

import ray

from fedray.clients.nodes import in_placement_group, ray_options
from fedray.clients.placement import Place
from fedray.queries.queryhost import QueryHost, QuerySite


def start_query_actor(place: Place, site: QuerySite, data: Any, model: Any) -> Any:
    """Start one actor; returns its handle at once.

    Nothing is repeated by Ray itself, because a repeated call would be a second release that nobody charged.
    """
    r = place.resources
    options = ray_options(r) | {"max_restarts": 0, "max_task_retries": 0}
    if place.client is None and not r.labels and not r.custom and not in_placement_group():
        options["scheduling_strategy"] = "SPREAD"
    return _actor_class().options(**options).remote(site, data, model)


@cache
def _actor_class() -> Any:
    """One class for all actors, which Ray sends to the head once."""
    return ray.remote(QueryHost)
