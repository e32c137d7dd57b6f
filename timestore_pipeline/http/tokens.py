"""Who may do what over HTTP: bearer tokens, of which only hashes are kept, by scope and dataset.

A token is random and long, so one SHA-256 is as good as a slow hash: nobody can try all tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from timestore_pipeline.errors import SettingsError
from timestore_pipeline.inert import log_named
from timestore_pipeline.model.named_files import content_of, opened
from timestore_pipeline.settings import Settings, variable_name

log = log_named(__name__)

EVERY_DATASET = "*"

_NOT_FOR_OTHERS = stat.S_IWGRP | stat.S_IRWXO


_NAME = r"^[A-Za-z0-9_.-]{1,63}$"


class Scope(StrEnum):
    """What a token is for."""

    STAGE = "stage"
    READ = "read"
    METRICS = "metrics"


class Token(BaseModel):
    """One token: its name in logs and lineage, its SHA-256 in hex, and what it is for.

    Its keys are in the space of that name, or in ``key_space``, which tokens may share that send the same batches.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=_NAME)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    datasets: frozenset[str] = frozenset()
    key_space: Annotated[str, Field(pattern=_NAME)] | None = None

    @model_validator(mode="after")
    def _has_datasets(self) -> Self:
        if not self.datasets and self.scopes - {Scope.METRICS}:
            raise ValueError('it names no datasets: give datasets: [NAME, …], or ["*"] for all')
        return self

    def allows(self, scopes: Iterable[Scope], dataset: str | None = None) -> bool:
        """Whether it is for one of ``scopes`` and, where one is named, for the dataset."""
        return not self.scopes.isdisjoint(scopes) and (dataset is None or self.covers(dataset))

    def covers(self, dataset: str) -> bool:
        """Whether it is for the dataset."""
        return dataset in self.datasets or EVERY_DATASET in self.datasets


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: Annotated[list[Token], Field(min_length=1)]


class Tokens:
    """The tokens that are taken now. A file is read anew when it changes, so that one can be withdrawn at once.

    Raises:
        SettingsError: the file or the variable is not usable.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = settings.path(settings.http_tokens_file) if settings.http_tokens_file is not None else None
        self._seen: tuple[int, ...] = ()
        self._tokens: tuple[Token, ...] = ()
        if settings.http_tokens is not None:
            self._tokens = _parsed(settings.http_tokens.get_secret_value(), variable_name("http_tokens"))
        self._refresh()

    @property
    def required(self) -> bool:
        """Whether a token is asked for at all."""
        return self._path is not None or bool(self._tokens)

    def find(self, presented: str) -> Token | None:
        """Return the token that was presented, after a time that tells nothing of those that there are.

        Raises:
            SettingsError: the file has changed and is not usable any more; then nobody is let in.
        """
        self._refresh()
        digest = hashlib.sha256(presented.encode()).hexdigest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found

    def _refresh(self) -> None:
        if self._path is None:
            return
        name = variable_name("http_tokens_file")
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if seen == self._seen:
                return
            tokens = _read(self._path, name)
        except OSError as error:
            raise SettingsError(f"{name} ({self._path}) cannot be read: {error.strerror or error}") from error
        if self._seen:
            log.warning("%s has changed: %d tokens are taken now", self._path, len(tokens))
        self._tokens, self._seen = tokens, seen


def _read(path: Path, name: str) -> tuple[Token, ...]:
    with opened(path) as file:
        status = os.fstat(file.fileno())
        if status.st_mode & _NOT_FOR_OTHERS or status.st_uid not in (0, os.geteuid()):
            raise SettingsError(
                f"{name} ({path}) can be written by its group, read or written by others, or belongs to somebody else: "
                "chown it to the user of this process and chmod it to 600 (or 640)"
            )
        content = content_of(file)
    try:
        return _parsed(content.decode(), f"{name} ({path})")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name} ({path}) is no text") from error


def _parsed(text: str, name: str) -> tuple[Token, ...]:
    try:
        document = _Document.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        # What stands there is shown to nobody.
        raise SettingsError(f"{name} is no YAML{where}") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'the document'}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_input=False, include_context=False)
        )
        raise SettingsError(f"{name} is not usable: {problems}. See docs/http.md, Tokens.") from None
    for field in ("name", "sha256"):
        values = [getattr(token, field) for token in document.tokens]
        if len(set(values)) < len(values):
            raise SettingsError(f"{name} is not usable: two tokens have the same {field}")
    return tuple(document.tokens)
