"""The IMGPROXY_* environment that the stand-in reads, under the names and defaults of the real server."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TRUE = {"1", "t", "T", "TRUE", "true", "True"}
FALSE = {"0", "f", "F", "FALSE", "false", "False"}


class ConfigError(Exception):
    """One line for the operator: what is wrong with the environment."""


@dataclass(frozen=True)
class Config:
    host: str
    port: int
    path_prefix: str
    secret: str
    root: Path | None
    allow_loopback: bool
    pairs: tuple[tuple[bytes, bytes], ...]
    trusted_signatures: tuple[str, ...]
    signature_size: int
    auto: frozenset[str]
    enforced: frozenset[str]
    ttl: int
    cache_control_passthrough: bool
    fallback_path: Path | None
    fallback_ttl: int
    fallback_status: int
    use_etag: bool
    use_last_modified: bool
    debug_headers: bool
    unread: tuple[str, ...]

    @property
    def detects_formats(self) -> bool:
        return bool(self.auto | self.enforced)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        env = _Reader(environment)
        host, port = env.address()
        keys, salts = env.hex_list("IMGPROXY_KEY"), env.hex_list("IMGPROXY_SALT")
        if len(keys) != len(salts):
            raise ConfigError(f"IMGPROXY_KEY has {len(keys)} entries, IMGPROXY_SALT {len(salts)}")
        size = env.integer("IMGPROXY_SIGNATURE_SIZE", 32)
        if not 1 <= size <= 32:
            raise ConfigError("IMGPROXY_SIGNATURE_SIZE is not between 1 and 32")
        status = env.integer("IMGPROXY_FALLBACK_IMAGE_HTTP_CODE", 200)
        if status != 0 and not 100 <= status <= 599:
            raise ConfigError("IMGPROXY_FALLBACK_IMAGE_HTTP_CODE is neither 0 nor a status")
        formats = ("webp", "avif", "jxl")
        return cls(
            host=host,
            port=port,
            path_prefix=env.text("IMGPROXY_PATH_PREFIX"),
            secret=env.text("IMGPROXY_SECRET"),
            root=env.existing("IMGPROXY_LOCAL_FILESYSTEM_ROOT", directory=True),
            allow_loopback=env.boolean("IMGPROXY_ALLOW_LOOPBACK_SOURCE_ADDRESSES", False),
            pairs=tuple(zip(keys, salts, strict=True)),
            trusted_signatures=tuple(env.words("IMGPROXY_TRUSTED_SIGNATURES")),
            signature_size=size,
            auto=frozenset(f for f in formats if env.boolean(f"IMGPROXY_AUTO_{f.upper()}", False)),
            enforced=frozenset(f for f in formats if env.boolean(f"IMGPROXY_ENFORCE_{f.upper()}", False)),
            ttl=env.natural("IMGPROXY_TTL", 31_536_000),
            cache_control_passthrough=env.boolean("IMGPROXY_CACHE_CONTROL_PASSTHROUGH", False),
            fallback_path=env.existing("IMGPROXY_FALLBACK_IMAGE_PATH", directory=False),
            fallback_ttl=env.natural("IMGPROXY_FALLBACK_IMAGE_TTL", 0),
            fallback_status=status,
            use_etag=env.boolean("IMGPROXY_USE_ETAG", True),
            use_last_modified=env.boolean("IMGPROXY_USE_LAST_MODIFIED", True),
            debug_headers=env.boolean("IMGPROXY_ENABLE_DEBUG_HEADERS", False),
            unread=tuple(sorted(k for k in environment if k.startswith("IMGPROXY_") and k not in env.read)),
        )


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.read: set[str] = set()

    def text(self, name: str) -> str:
        self.read.add(name)
        return self.environment.get(name, "")

    def words(self, name: str) -> list[str]:
        text = self.text(name)
        return [word.strip() for word in text.split(",")] if text else []

    def hex_list(self, name: str) -> list[bytes]:
        try:
            return [bytes.fromhex(word) for word in self.words(name)]
        except ValueError:
            raise ConfigError(f"{name} is not a list of hexadecimal strings") from None

    def integer(self, name: str, default: int) -> int:
        text = self.text(name)
        try:
            return int(text) if text else default
        except ValueError:
            raise ConfigError(f"{name} is not an integer") from None

    def natural(self, name: str, default: int) -> int:
        value = self.integer(name, default)
        if value < 0:
            raise ConfigError(f"{name} is negative")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        text = self.text(name)
        if not text:
            return default
        if text not in TRUE | FALSE:
            raise ConfigError(f"{name} is not a boolean")
        return text in TRUE

    def existing(self, name: str, directory: bool) -> Path | None:
        text = self.text(name)
        if not text:
            return None
        path = Path(text)
        if not (path.is_dir() if directory else path.is_file()):
            raise ConfigError(f"{name}: {path} is no {'directory' if directory else 'file'}")
        return path

    def address(self) -> tuple[str, int]:
        text = self.text("IMGPROXY_BIND") or ":8080"
        host, _, port = text.rpartition(":")
        # The real server takes an empty host for every interface; a test tool has no business there.
        host = host.strip("[]") or "127.0.0.1"
        try:
            if not ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback:
                raise ConfigError(f"IMGPROXY_BIND: {host} is not a loopback address, the stand-in listens on no other")
            return host, int(port)
        except ValueError:
            raise ConfigError("IMGPROXY_BIND is not an address and a port") from None
