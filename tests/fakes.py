"""What all fake hypervisors of the tests answer alike: nothing is known of anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rollpoint.errors import HypervisorError, NotFoundError, UnsupportedError
from rollpoint.hypervisor.base import Conflict, Handle, Machine


class Plain:
    """A base for fakes: they add start, wait_for, power_off and status."""

    kind = "qemu"
    needs_files = False
    overlay_kind = "hosted"

    def power_on(self, machine_id: str) -> Handle:
        raise NotFoundError(f"no machine {machine_id}")

    def beats(self, machine_id: str) -> str:
        if self.status(machine_id) == "off":  # type: ignore[attr-defined]
            raise HypervisorError(f"machine {machine_id} is off")
        return "it beats"

    def shut_down(self, machine_id: str, timeout_seconds: float) -> str:
        self.power_off(machine_id)  # type: ignore[attr-defined]
        return "shut down"

    def let_go(self, machine_id: str) -> None:
        pass

    def started_by(self, machine_id: str) -> str:
        return ""

    def is_known(self, machine_id: str) -> bool:
        return bool(self.status(machine_id) != "off")  # type: ignore[attr-defined]

    def isolate(self, machine_id: str) -> str:
        raise UnsupportedError("no cards")

    def conflicts(self, machine: Machine) -> list[Conflict]:
        return []

    def freeze(self, machine_id: str, overlays: Mapping[str, str]) -> None:
        raise UnsupportedError("no freezing")

    def commit(
        self, machine_id: str, tops: Mapping[str, str], progress: Callable[[int, int], bool]
    ) -> None:
        raise UnsupportedError("no merging")


# Nothing is known of the source of most replicas here.
UNFENCED = {"source-fenced": "a test"}
