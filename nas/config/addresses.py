"""What addresses and variables in an experiment may be: of whatever is read by others, nothing may be a secret. Raises
ValueError for what they may not."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

SECRET_NAME = re.compile(r"(?i)(token|secret|passw|passphrase|credential|api_?key|access_?key|private_?key)")
SECRET_VALUE = re.compile(
    r"-----BEGIN|\b(AKIA[0-9A-Z]{12}|gh[pousr]_\w{16}|glpat-|sk-\w{16}|hf_\w{16}|xox[abp]-|eyJ[\w-]{8,}\.)|://[^/\s:@]*:[^/\s@]+@"
)

PASSWORD = re.compile(
    r"(?i)://[^/\s:@]*:[^/\s]+@|[?&;](password|passwd|pwd|token|secret|access_?key|secret_?key|api_?key)="
)
STORES = ("http", "https", "databricks", "databricks-uc", "sqlite", "postgresql", "mysql", "mssql")  # that MLflow knows


def no_secret(env: dict[str, str]) -> dict[str, str]:
    """Environment variables as they are, where none of them looks like a secret."""
    for name, value in env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"given {name!r}; allowed: names of letters, digits and _")
        named = SECRET_NAME.search(name) and not name.upper().endswith(("_PATH", "_FILE"))
        if named or SECRET_VALUE.search(value):
            raise ValueError(
                f"{name} looks like a secret, and everyone who sees the job would see it: set it on the cluster's "
                "machines instead"
            )
    return env


def no_password(text: str) -> str:
    """An address as it is, or any other text. One with a password in it would be written into the run directory, the
    report, MLflow and the job."""
    if PASSWORD.search(text):
        raise ValueError(
            "an address with a password or a key in it would be seen by everyone who sees the run; leave it out here "
            "and give it in the environment"
        )
    return text


def masked(text: str) -> str:
    """A text whose addresses are without the names and passwords that they are opened with."""
    return re.sub(r"://[^/\s]*@", "://...@", text)


def tracking(uri: str) -> str:
    """Where MLflow can keep a run; a folder's path is told below, where it is known which folder it counts from."""
    if PASSWORD.search(uri):
        raise ValueError(
            "an address with a password in it would be seen by everyone who sees the run, its report and its job; "
            "leave it out here, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (a server), or the whole "
            "address as MLFLOW_TRACKING_URI"
        )
    scheme, colon, _ = uri.partition(":")
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) and scheme.partition("+")[0] not in (*STORES, "file"):
        raise ValueError(
            f"given {uri!r}; allowed: http://... or https://... of an `mlflow server`, "
            "sqlite:////absolute/path/mlflow.db, another database that MLflow knows, or databricks"
        )
    return uri


def absolute(path: str) -> str:
    """A directory's path without its last slash."""
    if "://" in path:
        raise ValueError(
            f"given {path!r}; a run needs a directory while it goes on: write this into cluster.mirror, and a "
            "directory here"
        )
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(
            f"given {path!r}; allowed: an absolute path without .. that every machine of the cluster mounts"
        )
    return path.rstrip("/") or "/"


def object_store(uri: str) -> str:
    """An address in an object store, without its last slash. Credentials have no place in it: everyone who sees the
    job would see them."""
    parts = urlsplit(uri)
    if "@" in parts.netloc or re.search(r"(?i)(key|token|secret|password)=", parts.query):
        raise ValueError(
            "an address with a key in it would be seen by everyone who sees the job: let the cluster's machines have "
            "the credentials"
        )
    if parts.scheme not in ("s3", "gs") or not parts.netloc:
        raise ValueError(f"given {uri!r}; allowed: s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/")))


def below(uri: str, name: str) -> str:
    """The address of `name` below an address."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))
