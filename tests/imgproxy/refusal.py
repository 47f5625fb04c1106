"""Errors that the client sees."""


class Refusal(Exception):
    """Ends a request with this status and this plain text, as imgproxy words it."""

    def __init__(self, status: int, text: str, why: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.why = why


def invalid_url(why: str, status: int = 404) -> Refusal:
    return Refusal(status, "Invalid URL", why)


def unreachable(why: str, status: int = 404) -> Refusal:
    return Refusal(status, "Source is unreachable", why)
