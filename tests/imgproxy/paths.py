"""From the request target to a repaired path with a verified signature."""

import base64
import binascii
import hashlib
import hmac
import re

from config import Config
from refusal import Refusal, invalid_url

LOST_SLASHES = re.compile(r"\A(\S+):/(?!/|\Z)", re.ASCII)
COLON_IN_SIGNATURE = (
    "The signature appears to be a processing option. The signature section should always be present in the URL."
)


def split(target: str, prefix: str) -> tuple[str, str]:
    """Signature and repaired path; the query is cut before anything else."""
    path = target.partition("?")[0].removeprefix(prefix + "/").removeprefix("/")
    signature, _, rest = path.partition("/")
    if not signature or not rest:
        raise invalid_url("no signature or no path")
    return signature, repair(rest)


def repair(path: str) -> str:
    """Undoes what browsers and proxies do to a path, so that signature and options see the original."""
    if path.startswith("plain/"):
        options, separator, source = "", "/plain/", path.removeprefix("plain/")
    else:
        options, separator, source = path.partition("/plain/")
    source = LOST_SLASHES.sub(_restore, source, count=1)
    return (options.replace("%3A", ":") + separator + source).removeprefix("/")


def _restore(match: re.Match[str]) -> str:
    return f"{match[1]}://{'/' if match[1] == 'local' else ''}"


def verify(config: Config, signature: str, path: str) -> None:
    if not config.pairs:
        if ":" in signature:
            raise Refusal(403, COLON_IN_SIGNATURE)
        return
    if signature in config.trusted_signatures:
        return
    given = decode_base64(signature)
    if given is None:
        raise Refusal(403, "Forbidden", "signature is not base64")
    message = ("/" + path.removeprefix("/")).encode(errors="surrogateescape")
    for key, salt in config.pairs:
        mac = hmac.new(key, salt + message, hashlib.sha256).digest()
        if hmac.compare_digest(given, mac[: config.signature_size]):
            return
    raise Refusal(403, "Forbidden", "wrong signature")


def decode_base64(text: str) -> bytes | None:
    """URL-safe base64 without padding; None if it is none."""
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        return None
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
