"""Faults of the management interface that were ordered: each strikes a number of requests, the oldest order first."""

from __future__ import annotations

from dataclasses import dataclass

from diskprep.datacenter.database import Database
from diskprep.datacenter.faults import ServiceFault
from diskprep.errors import UsageError

METHODS = ("GET", "PUT", "PATCH", "POST", "DELETE")
TIMES_LIMIT = 1000
_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What happens to the next `times` requests; `method` "" means any. `retry_after_s` is told when throttled."""

    fault: ServiceFault
    times: int = 1
    method: str = ""
    retry_after_s: int = 1


class Orders:
    """The orders that are left. UNREGISTERED has no number: it lasts until somebody registers the provider."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, order: Order) -> None:
        """Raises UsageError."""
        if order.method and order.method not in METHODS:
            raise UsageError(f"{order.method!r} is no method; there are {', '.join(METHODS)}")
        if not 1 <= order.times <= TIMES_LIMIT:
            raise UsageError(f"a fault strikes 1 to {TIMES_LIMIT} requests")
        if not 0 <= order.retry_after_s <= _DAY_S:
            raise UsageError("Retry-After is at most a day")
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO orders (fault, method, times, retry_after_s) VALUES (?, ?, ?, ?)",
                (str(order.fault), order.method, order.times, order.retry_after_s),
            )

    def left(self) -> tuple[Order, ...]:
        """All orders, the oldest first."""
        found = self._database.rows("SELECT fault, method, times, retry_after_s FROM orders ORDER BY number")
        return tuple(
            Order(fault=ServiceFault(fault), method=method, times=times, retry_after_s=retry_after_s)
            for fault, method, times, retry_after_s in found
        )

    def take(self, method: str) -> Order | None:
        """The order that strikes this request, and one request less is left of it."""
        wanted = "SELECT number, fault, method, times, retry_after_s FROM orders WHERE fault != ? AND method IN ('', ?)"
        wanted += " ORDER BY number LIMIT 1"
        if not self._database.rows(wanted, str(ServiceFault.UNREGISTERED), method):
            return None  # the usual case, which needs no lock
        with self._database.transaction() as db:
            found = db.execute(wanted, (str(ServiceFault.UNREGISTERED), method)).fetchone()
            if found is None:
                return None
            number, fault, method, times, retry_after_s = found
            db.execute("UPDATE orders SET times = times - 1 WHERE number = ?", (number,))
            db.execute("DELETE FROM orders WHERE times <= 0")
        return Order(fault=ServiceFault(fault), method=method, times=times, retry_after_s=retry_after_s)

    @property
    def unregistered(self) -> bool:
        return any(order.fault is ServiceFault.UNREGISTERED for order in self.left())

    def register(self) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM orders WHERE fault = ?", (str(ServiceFault.UNREGISTERED),))

    def clear(self) -> None:
        """Forget all orders."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM orders")
