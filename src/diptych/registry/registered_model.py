"""The registered model: its versions and its aliases."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel as Registered
from mlflow.exceptions import MlflowException

from diptych.config import Params
from diptych.errors import DiptychError, is_disk_full
from diptych.project.provenance import model_digests
from diptych.project.workspace import Workspace
from diptych.registry.address import tracking_uri
from diptych.registry.connection import connect, global_tracking_uri
from diptych.registry.errors import mlflow_errors_explained, reason
from diptych.registry.relocation import local_path

CHALLENGER = "challenger"
"""The alias of the version of the last run, new or known already."""
CHAMPION = "champion"
"""The alias of the version in use."""
PREVIOUS = "previous-champion"
"""The alias of the version that was in use before."""

_ADVICE = {
    CHAMPION: " `diptych promote` makes a version the champion.",
    PREVIOUS: " A second champion makes the first one that: `diptych promote` another version.",
}
"""What brings an alias that is missing."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_SHOWN_NAMES = 10
_VERSION = re.compile(r"[1-9][0-9]{0,9}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


class FetchError(DiptychError):
    """A package could not be fetched, which is no fault of the package."""


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
        """Name and number, for messages."""
        return f"{self.name} version {self.version}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = self._asdict()
        del values["run_id"]
        return values


class Entry(NamedTuple):
    """Tags and aliases of a registered model, apart from its versions."""

    tags: dict[str, str]
    aliases: dict[str, str]
    """Version numbers by alias."""


class RegisteredModel:
    """The registered model `name` in the MLflow at `uri`."""

    def __init__(self, client: MlflowClient, name: str, uri: str) -> None:
        self.client = client
        self.name = name
        self.uri = uri

    @classmethod
    def of(cls, workspace: Workspace, params: Params, name: str | None = None) -> RegisteredModel:
        """Return the registered model of params.yaml, or the one called `name` in the same MLflow.

        Raises:
            DiptychError: MLflow does not answer, or `name` cannot be the name of a registered model.
        """
        name = name or params.register_.model_name
        if not MODEL_NAME.fullmatch(name):
            raise DiptychError(
                f"{name!r} cannot name a registered model: it may have letters, digits and, after the first character, "
                ". _ -"
            )
        uri = tracking_uri(workspace, params)
        with mlflow_errors_explained(uri):
            return cls(connect(workspace, params)[0], name, uri)

    def exists(self) -> bool:
        """Return whether the registry has this model, with versions or without."""
        return self.entry() is not None

    def entry(self) -> Entry | None:
        """Return the tags and the aliases as they are at one moment; None where the registry lacks this model."""
        with mlflow_errors_explained(self.uri):
            try:
                return _entry(self.client.get_registered_model(self.name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def aliases(self) -> dict[str, str]:
        """Return the version numbers by alias."""
        with self.errors_explained():
            return _entry(self.client.get_registered_model(self.name)).aliases

    def numbers(self) -> list[str]:
        """Return the numbers of all versions, ascending."""
        with mlflow_errors_explained(self.uri):
            versions = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted((str(version.version) for version in versions), key=int)

    def find(self, which: str) -> Version:
        """Return the version with this number or alias.

        Raises:
            DiptychError: there is none; the message lists all.
        """
        number = which
        if not _VERSION.fullmatch(which):
            if not _ALIAS.fullmatch(which):
                raise DiptychError(f"{which!r} is neither a version's number nor an alias.")
            number = self.aliases().get(which, "")
            if not number:
                raise self._not_found(which)
        with self.errors_explained():
            try:
                version = self.client.get_model_version(self.name, number)
            except MlflowException:
                # Databases answer a number that is too large in their own ways.
                if number in self.numbers():
                    raise
                raise self._not_found(which) from None
            return Version(
                name=self.name,
                version=str(version.version),
                aliases=sorted(version.aliases),
                tags=dict(version.tags),
                metrics=self._metrics(version.run_id or ""),
                run_id=str(version.run_id or ""),
            )

    def champion(self) -> Version | None:
        """Return the version in use, if there is one."""
        number = self.aliases().get(CHAMPION)
        return self.find(number) if number in self.numbers() and number else None

    def set_alias(self, alias: str, version: str) -> None:
        """Move an alias in one call, so that there is no moment without it."""
        with self.errors_explained():
            self.client.set_registered_model_alias(self.name, alias, version)

    def remove_alias(self, alias: str) -> None:
        """Remove an alias."""
        with self.errors_explained():
            self.client.delete_registered_model_alias(self.name, alias)

    def tag(self, version: Version, tags: dict[str, str]) -> None:
        """Add tags to a version."""
        with self.errors_explained():
            for key, value in tags.items():
                self.client.set_model_version_tag(self.name, version.version, key, value)

    def download(self, version: Version, folder: Path) -> Path:
        """Return the folder of the downloaded package, after a check that it has the hashes of its tags.

        Raises:
            FetchError: the artifact store does not answer, or no longer has the package.
            DiptychError: it is damaged, or another model lies in its place.
        """
        from mlflow.artifacts import download_artifacts

        try:
            with global_tracking_uri(self.uri):
                path = Path(download_artifacts(f"models:/{version.name}/{version.version}", dst_path=str(folder)))
        except Exception as error:  # of the network, the disk or the store
            # The command line explains a full disk.
            if is_disk_full(error):
                raise
            # MLflow lists the errors of all files; the last line is one of them.
            last = Exception(str(error).strip().rpartition("\n")[2] or type(error).__name__)
            raise FetchError(f"{version.title}: its package cannot be fetched ({reason(last, self.uri)}).") from None
        self._check(version, model_folder(path))
        return path

    @contextmanager
    def fetched(self, version: Version) -> Iterator[Path]:
        """Give the model's folder of the package, as `download` returns it; it is removed at the end."""
        with tempfile.TemporaryDirectory(prefix="diptych-") as folder:
            yield model_folder(self.download(version, Path(folder)))

    def missing_folder(self, number: str) -> Path | None:
        """Return where a version's package should lie in the file system and does not; None where it lies there."""
        with self.errors_explained():
            address = self.client.get_model_version_download_uri(self.name, number)
        path = local_path(address)
        return path if path is not None and not path.exists() else None

    def copy_of(self, version: Version) -> Version:
        """Return the copy of `version` in this registered model, made once; `version` itself if it is of this model."""
        if version.name == self.name:
            return version
        address = f"models:/{version.name}/{version.version}"
        with self.errors_explained():
            # MLflow records the source itself. The tag comes later, and a kill may leave the copy without it.
            copies = self.client.search_model_versions(f"name = '{self.name}' and source_path = '{address}'")
            numbers = [int(copy.version) for copy in copies]
            number = str(max(numbers) if numbers else self.client.copy_model_version(address, self.name).version)
            self.client.set_model_version_tag(self.name, number, "copied_from", address.removeprefix("models:/"))
        return self.find(number)

    def _not_found(self, which: str) -> DiptychError:
        numbers = ", ".join(self.numbers()) or "none"
        aliases = ", ".join(f"{alias} ({number})" for alias, number in self.aliases().items()) or "none"
        return DiptychError(
            f"{self.name} has no {which!r}. Versions: {numbers}; aliases: {aliases}.{_ADVICE.get(which, '')}"
        )

    def _check(self, version: Version, model: Path) -> None:
        digests = model_digests(model)
        if not digests:
            raise DiptychError(f"{version.title}: its package is gone or damaged: it holds no weights.")
        for name, digest in digests.items():
            expected = version.tags.get(name, "nothing")
            if digest != expected:
                raise DiptychError(
                    f"{version.title}: its package is not what was registered: {name} is {digest[:12]}, and the "
                    f"version's tag says {expected[:12]}. Do not use it: bring back the artifact store's copy, or "
                    "train again."
                )

    def _metrics(self, run_id: str) -> dict[str, float]:
        """Return the metrics of the run; none where the run is gone."""
        try:
            return dict(self.client.get_run(run_id).data.metrics) if run_id else {}
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        """Turn the errors of MLflow into errors for the user that name what is missing."""
        try:
            with mlflow_errors_explained(self.uri):
                yield
        except DiptychError as error:
            cause = error.__cause__
            if isinstance(cause, MlflowException) and cause.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise DiptychError(self._missing(cause)) from cause
            raise

    def _missing(self, cause: MlflowException) -> str:
        if self.exists():
            return f"MLflow has no {self.name!r} with what is asked for: {cause.message.splitlines()[0]}."
        with mlflow_errors_explained(self.uri):
            names = sorted(model.name for model in self.client.search_registered_models(max_results=_SHOWN_NAMES))
        registered = f"there is {', '.join(names)}" if names else "nothing is registered yet"
        return (
            f"No model is registered as {self.name!r}: {registered}. `diptych run` registers a first version; "
            "register.model_name in params.yaml says under which name."
        )


def model_folder(package: Path) -> Path:
    """Return the folder of the model within a downloaded package."""
    return package / "artifacts" / "model"


def _entry(registered: Registered) -> Entry:
    return Entry(dict(registered.tags), {alias: str(number) for alias, number in registered.aliases.items()})
