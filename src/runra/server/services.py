"""What the routes work with, made once by the application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from runra.events import EventLog
from runra.server.access import Access
from runra.server.creates import Creates
from runra.server.executions import Executions
from runra.server.ingress.ingress import Ingress
from runra.server.keeping import Keeping
from runra.server.measure import Measures
from runra.server.nodeport import Node
from runra.server.ports import Ports
from runra.server.quotas import Quotas
from runra.server.settings import ServerSettings
from runra.server.store import Store


@dataclass
class Services:
    settings: ServerSettings
    store: Store
    node: Node
    events: EventLog
    access: Access
    creates: Creates
    executions: Executions
    measures: Measures
    ports: Ports
    ingress: Ingress
    keeping: Keeping
    quotas: Quotas
    #: Set when the server begins to stop: open streams end then, and their clients reconnect elsewhere or later.
    closing: asyncio.Event = field(default_factory=asyncio.Event)
