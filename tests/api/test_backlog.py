"""What clients are told when there is too much, and what becomes of priorities."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from api.backlog import Backlog
from shared.errors import TooManyTasks
from shared.levels import BACKGROUND, FIRST, key_of
from shared.pace import Pace
from shared.records import CatalogEntry
from shared.settings import Settings
from shared.store import catalog
from shared.store.database import Database
from tests.api.clients import Client
from tests.api.conftest import serving
from tests.api.test_access import guarded, with_key  # noqa: F401
from tests.api.worker import FakeWorker
from tests.shared.tables import dump
