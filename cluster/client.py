"""A way to a cluster: its Jobs server, the token, and what is said when either is wrong."""

from __future__ import annotations

import json
import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from cluster.names import Refused

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT = "http://127.0.0.1:8265"
PATIENCE_S = 10.0
OVERRIDES = (
    "RAY_API_SERVER_ADDRESS",
    "RAY_ADDRESS",
)  # with these set, Ray's client goes there, whatever address it is given


@dataclass(frozen=True)
class Cluster:
    """A cluster that has answered.

    Attributes:
        address: of its Jobs server, ``http://head:8265``.
        headers: what every request carries: the token, if there is one.
        ray: the version of Ray there.
        client: Ray's own client.
    """

    address: str
    headers: dict[str, str]
    ray: str
    client: JobSubmissionClient

    def get(self, path: str, timeout_s: float = PATIENCE_S) -> HTTPResponse:
        """The answer to a GET, to be read in pieces."""
        return _get(self.address + path, self.headers, timeout_s)


def connect(address: str | None) -> Cluster:
    """The cluster at an address; RAY_API_SERVER_ADDRESS names it where nothing else does.

    Raises:
        Refused: nothing answers there, it is no Ray cluster, or it wants another token.
    """
    address = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.username or parts.password:
        raise Refused(
            f"{_masked(address)!r} is no address of a Jobs server; write http://HOST:8265, that of the head's "
            "dashboard, without a password"
        )
    headers = {"Authorization": f"Bearer {token}"} if (token := find_token()) else {}
    version = _hello(address, headers)
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # it tells of each package and each connection
    with _without(*OVERRIDES):
        return Cluster(address, headers, version, _ray_client(address, headers))


def _ray_client(address: str, headers: dict[str, str]) -> JobSubmissionClient:
    """Ray's own client, but for one that follows no redirect either."""
    from ray.job_submission import JobSubmissionClient

    class Direct(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **given: Any) -> Any:
            answer = super()._do_request(method, endpoint, allow_redirects=False, **given)
            if answer.is_redirect:
                raise Refused(_elsewhere(address, answer.headers["location"]))
            return answer

    return Direct(address, headers=dict(headers))


def find_token() -> str | None:
    """The token for the cluster, from where Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH,
    ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip() or None
    except OSError as error:
        if named:
            raise Refused(f"RAY_AUTH_TOKEN_PATH names {path}, which cannot be read: {error.strerror}") from None
        return None


def _hello(address: str, headers: dict[str, str]) -> str:
    """The version of Ray that answers at an address."""
    try:
        with _get(f"{address}/api/version", headers, PATIENCE_S) as answer:
            return str(json.load(answer)["ray_version"])
    except Refused:
        raise
    except HTTPError as error:
        raise Refused(_denied(address, error.code, bool(headers))) from None
    except (URLError, OSError) as error:
        why = getattr(error, "reason", error)
        raise Refused(
            f"no Ray cluster answers at {address}: {why}\n"
            "Give --address, or cluster.address in the experiment: that of the head's dashboard, port 8265 by "
            "default.\n"
            "A head listens on its own loopback alone unless it was started with --dashboard-host; then forward the "
            "port:\n"
            "  ssh -L 8265:127.0.0.1:8265 HEAD        or  kubectl port-forward service/HEAD-SERVICE 8265:8265"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise Refused(
            f"what answers at {address} is no Ray cluster; the address is that of the head's dashboard, port 8265 by "
            "default"
        ) from None


def _denied(address: str, code: int, had_token: bool) -> str:
    if code not in (401, 403):
        return f"what answers at {address} is no Ray cluster, or a damaged one: it says HTTP {code}"
    which = "another token than the one found here" if had_token else "a token, and none was found here"
    return (
        f"the cluster at {address} wants {which}.\n"
        "Set RAY_AUTH_TOKEN to the cluster's token, or RAY_AUTH_TOKEN_PATH to a file with it, or put it into "
        "~/.ray/auth_token;\n"
        "looked for in that order. The cluster's administrator has it: `ray get-auth-token` on the head."
    )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses to be sent elsewhere: the token would go along (urllib repeats every header)."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        raise Refused(_elsewhere(req.full_url, newurl))


def _elsewhere(address: str, target: str) -> str:
    return (
        f"{_masked(address)} sends on to {_masked(target)}, which is not followed: the token is for the address that "
        "was given.\nIf that is the cluster, give its address instead."
    )


def _get(url: str, headers: dict[str, str], timeout_s: float) -> HTTPResponse:
    opener = urllib.request.build_opener(_NoRedirects)
    answer: HTTPResponse = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    return answer


def _masked(address: str) -> str:
    """An address without the password that somebody may have put into it."""
    before, at, after = address.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else address


@contextmanager
def _without(*names: str) -> Iterator[None]:
    kept: dict[str, Any] = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
