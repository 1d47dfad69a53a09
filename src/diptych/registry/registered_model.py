"""The registered model: its versions and its aliases, with MLflow's errors in the words of a user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DatabaseError, OperationalError

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.addresses import without_secret
from diptych.project.provenance import model_digests
from diptych.project.workspace import Workspace
from diptych.registry.address import store_file, tracking_uri
from diptych.registry.answering import UnreachableError, damaged, reason, unanswered
from diptych.registry.relocation import local_path
from diptych.registry.tracking import addressed, connect

CHALLENGER = "challenger"
"""The alias of the version that was registered last."""
CHAMPION = "champion"
"""Of the version that is in use."""
PREVIOUS = "previous-champion"
"""Of the one that was in use before."""

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_SHOWN_NAMES = 10
_VERSION = re.compile(r"[1-9][0-9]{0,9}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


class FetchError(DiptychError):
    """A package could not be fetched, which says nothing of the package."""


class Version(NamedTuple):
    """A version of the registered model."""

    name: str
    version: str
    aliases: list[str]
    tags: dict[str, str]
    metrics: dict[str, float]
    run_id: str

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.name} version {self.version}"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values = self._asdict()
        del values["run_id"]
        return values


class RegisteredModel:
    """The registered model `name` in the MLflow at `uri`."""

    def __init__(self, client: MlflowClient, name: str, uri: str) -> None:
        self.client = client
        self.name = name
        self.uri = uri

    @classmethod
    def of(cls, workspace: Workspace, params: Params, name: str | None = None) -> RegisteredModel:
        """That of params.yaml, or another one in the same MLflow.

        Raises:
            DiptychError: MLflow does not answer, or `name` is no name.
        """
        name = name or params.register_.model_name
        if not MODEL_NAME.fullmatch(name):
            raise DiptychError(f"{name!r} is no name of a registered model: letters, digits, and . _ - within.")
        uri = tracking_uri(workspace, params)
        with explained(uri):
            return cls(connect(workspace, params)[0], name, uri)

    def exists(self) -> bool:
        """Whether the registry has this model, with versions or without."""
        with explained(self.uri):
            return bool(self.client.search_registered_models(f"name = '{self.name}'", max_results=1))

    def aliases(self) -> dict[str, str]:
        """Version numbers by alias."""
        with self.known():
            return {alias: str(number) for alias, number in self.client.get_registered_model(self.name).aliases.items()}

    def numbers(self) -> list[str]:
        """Of all versions that there are, ascending."""
        with explained(self.uri):
            found = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted((str(version.version) for version in found), key=int)

    def find(self, which: str) -> Version:
        """The version with this number or alias.

        Raises:
            DiptychError: there is none; the message says which there are.
        """
        number = which
        if not _VERSION.fullmatch(which):
            if not _ALIAS.fullmatch(which):
                raise DiptychError(f"{which!r} is neither a version's number nor an alias.")
            number = self.aliases().get(which, "")
        if number not in self.numbers():
            there = ", ".join(self.numbers()) or "none"
            with_aliases = ", ".join(f"{alias} ({number})" for alias, number in self.aliases().items()) or "none"
            raise DiptychError(f"{self.name} has no {which!r}. Versions: {there}; aliases: {with_aliases}.")
        with self.known():
            return self._read(self.client.get_model_version(self.name, number))

    def champion(self) -> Version | None:
        """The version in use, if there is one."""
        number = self.aliases().get(CHAMPION)
        return self.find(number) if number in self.numbers() and number else None

    def point(self, alias: str, version: str) -> None:
        """Moves an alias in one call, so that there is no moment without it."""
        with self.known():
            self.client.set_registered_model_alias(self.name, alias, version)

    def remove_alias(self, alias: str) -> None:
        """Where there is none to point to."""
        with self.known():
            self.client.delete_registered_model_alias(self.name, alias)

    def tag(self, version: Version, tags: dict[str, str]) -> None:
        """Adds to what is known of a version."""
        with self.known():
            for key, value in tags.items():
                self.client.set_model_version_tag(self.name, version.version, key, value)

    def download(self, version: Version, folder: Path) -> Path:
        """The package of `version`, whole and what was registered: its weights have the hash of its tags.

        Raises:
            FetchError: the artifact store does not answer, or has it no more.
            DiptychError: it is damaged, or another model lies in its place.
        """
        from mlflow.artifacts import download_artifacts

        try:
            with addressed(self.uri):
                path = Path(download_artifacts(f"models:/{self._address(version)}", dst_path=str(folder)))
        except Exception as error:  # of the network, the disk or the store
            if "No space left on device" in str(error):
                # That says nothing of the version; the command line knows how to say it.
                raise
            # MLflow gathers what went wrong, file by file: the last line is a reason.
            last = Exception(str(error).strip().rpartition("\n")[2] or type(error).__name__)
            raise FetchError(f"{version.title}: its package cannot be fetched ({reason(last, self.uri)}).") from None
        self._check(version, model_folder(path))
        return path

    def missing_folder(self, number: str) -> Path | None:
        """Return where a version's package should lie in the file system and does not; None where nothing is amiss."""
        with self.known():
            address = self.client.get_model_version_download_uri(self.name, number)
        path = local_path(address)
        return path if path is not None and not path.exists() else None

    def copy(self, version: Version, name: str) -> RegisteredModel:
        """Makes `version` one of the registered model `name` too, and tells where it came from; once."""
        other = RegisteredModel(self.client, name, self.uri)
        number = other.origin_of(version)
        with self.known():
            if number is None:
                number = self.client.copy_model_version(f"models:/{self._address(version)}", name).version
            self.client.set_model_version_tag(name, str(number), "copied_from", self._address(version))
        return other

    def origin_of(self, version: Version) -> str | None:
        """The number of this model's version that was copied from `version` of another."""
        with explained(self.uri):
            # By what MLflow itself writes down: the tag comes after the copy, which a kill may leave without one.
            found = self.client.search_model_versions(
                f"name = '{self.name}' and source_path = 'models:/{self._address(version)}'"
            )
        return max((str(one.version) for one in found), key=int, default=None)

    @staticmethod
    def _address(version: Version) -> str:
        return f"{version.name}/{version.version}"

    def _check(self, version: Version, model: Path) -> None:
        found = model_digests(model)
        if not found:
            raise DiptychError(f"{version.title}: its package is gone or damaged: it holds no weights.")
        for name, digest in found.items():
            expected = version.tags.get(name, "nothing")
            if digest != expected:
                raise DiptychError(
                    f"{version.title}: its package is not what was registered: {name} is {digest[:12]}, and the "
                    f"version's tag says {expected[:12]}. Do not use it: bring back the artifact store's copy, or "
                    "train again."
                )

    def _read(self, found: ModelVersion) -> Version:
        return Version(
            name=self.name,
            version=str(found.version),
            aliases=sorted(found.aliases),
            tags=dict(found.tags),
            metrics=self._metrics(found.run_id or ""),
            run_id=str(found.run_id or ""),
        )

    def _metrics(self, run_id: str) -> dict[str, float]:
        """Of the run; none where the run is gone."""
        try:
            return dict(self.client.get_run(run_id).data.metrics) if run_id else {}
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}

    @contextmanager
    def known(self) -> Iterator[None]:
        try:
            with explained(self.uri):
                yield
        except DiptychError as error:
            cause = error.__cause__
            if isinstance(cause, MlflowException) and cause.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise DiptychError(self._missing(cause)) from cause
            raise

    def _missing(self, cause: MlflowException) -> str:
        if self.exists():
            return f"MLflow has no {self.name!r} with what is asked for: {cause.message.splitlines()[0]}."
        with explained(self.uri):
            names = sorted(one.name for one in self.client.search_registered_models(max_results=_SHOWN_NAMES))
        there = f"there is {', '.join(names)}" if names else "nothing is registered yet"
        return (
            f"No model is registered as {self.name!r}: {there}. `diptych run` registers a first version; "
            "register.model_name in params.yaml says under which name."
        )


def model_folder(package: Path) -> Path:
    """Where a downloaded package has the model itself."""
    return package / "artifacts" / "model"


@contextmanager
def explained(uri: str, mend: str = "") -> Iterator[None]:
    """MLflow's errors at `uri`, told without its secrets, and how to `mend` what they leave.

    Raises:
        DiptychError: MLflow refuses, does not answer, or its store is damaged.
    """
    try:
        yield
    except MlflowException as error:
        if "No space left on device" in str(error):
            # That says nothing of MLflow; the command line knows how to say it.
            raise
        raise DiptychError(f"MLflow at {without_secret(uri)} says: {reason(error, uri)}{mend}") from error
    except UnreachableError as error:
        raise UnreachableError(f"{error}{mend.removeprefix('.')}") from error
    except OperationalError as error:
        # A full disk is for the command line to explain.
        if "full" in str(error.orig):
            raise
        raise unanswered(str(store_file(uri) or without_secret(uri)), error.orig) from error
    except DatabaseError as error:
        store = store_file(uri)
        if store is not None:
            raise damaged(str(store), error.orig) from error
        said = reason(error.orig or error, uri)
        raise DiptychError(
            f"MLflow's database {without_secret(uri)} refuses ({said}): see to its tables, and to what its user may do"
            f"{mend or '.'}"
        ) from error
