"""How the stand-in says no: an HTTP status and a code beside the message, as all ARM services have them."""

from __future__ import annotations

from collections.abc import Sequence

from diskprep.errors import JobConflict


class Refusal(JobConflict):
    """The service says no. `target` names the property that is wrong, `details` are all the reasons there are."""

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 400,
        *,
        target: str = "",
        details: Sequence[Refusal] = (),
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.code, self.status, self.target, self.details = code, status, target, tuple(details)

    def document(self) -> dict[str, object]:
        """The value of `error` in an answer: code, message, and target and details where there are any."""
        found: dict[str, object] = {"code": self.code, "message": self.message}
        if self.target:
            found["target"] = self.target
        if self.details:
            found["details"] = [detail.document() for detail in self.details]
        return found
