"""The verbs of stored data, which runs are given by name."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuner.client import Client, data_path
from finetuner.csv_file import CSVOptions, write_csv
from finetuner.errors import DataError
from finetuner.experiment import Data, wire_data
from finetuner.pairs import Texts, read_rows

if TYPE_CHECKING:
    from docarray import DocumentArray

_client = Client()


def push_data(name: str, data: Data, csv_options: CSVOptions | None = None) -> dict[str, Any]:
    """Store texts under a name, in place of what has it, and return the entry as :func:`list_data` does.

    :param name: 1 to 128 letters, digits, ``.``, ``_``, ``-``; at most one ``/`` between two such.
    :param data: A CSV path or open file, rows, or a DocumentArray, as ``fit`` takes them.
    :param csv_options: How a CSV is read.
    :raises DataError: When they are no texts with labels and no pairs, or there is no such file.
    :raises ConfigError: When the name is not allowed.
    :raises TooLargeError, InsufficientSpaceError: When the server takes no more, or has no room.
    """
    file = io.StringIO(newline="")
    write_csv(texts_of(data, csv_options), file)
    content = file.getvalue().encode()
    return dict(_client.upload(data_path(name), content, media_type="text/csv; charset=utf-8"))


def texts_of(data: Data, csv_options: CSVOptions | None = None) -> Texts:
    """Return data as texts, read here.

    :param data: As for :func:`push_data`.
    :param csv_options: How a CSV is read.
    :raises DataError: When they are no texts with labels and no pairs, or there is no such file.
    """
    rows = wire_data(data, csv_options)
    if isinstance(rows, str):  # what `fit` takes for the name of stored data
        raise DataError(f"there is no CSV file `{rows}`")
    return read_rows(rows)


def pull_data(name: str) -> DocumentArray:
    """Return stored data as documents, as docarray's ``pull`` does.

    :raises DataNotFoundError: When nothing has the name.
    """
    from docarray import DocumentArray

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents"
        _client.download(data_path(name), path)
        return DocumentArray.load_binary(path.read_bytes(), protocol="protobuf", compress="gzip")


def list_data() -> list[dict[str, Any]]:
    """Return all stored data by name: ``name``, ``n_documents``, ``size_bytes``, ``created_at``."""
    return list(_client.get("/data")["items"])


def delete_data(name: str) -> dict[str, Any]:
    """Delete stored data, and return what they were; runs keep their texts.

    :raises DataNotFoundError: When nothing has the name.
    """
    return dict(_client.delete(data_path(name)))
