"""No file of a precomputation runs code."""

import contextlib
import json
import os
import pickle

import numpy as np
import pytest
import torch

from tests.small_models import sequences
from tests.store.saved import json_fields, refuse, with_header
from yuzu import Precomputation, yuzu_ism

L = 30


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_the_payload_works(tmp_path):
    """So that the tests below would notice."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").is_dir()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_does_not_run(path, tmp_path, protocol):
    path.write_bytes(pickle.dumps(Payload(tmp_path / "marker"), protocol))
    refuse(path, "not a Yuzu precomputation")
    assert not (tmp_path / "marker").exists()


def test_a_torch_file_does_not_run(path, tmp_path):
    for zipped in (True, False):
        torch.save({"x": Payload(tmp_path / "marker")}, path, _use_new_zipfile_serialization=zipped)
        refuse(path, "not a Yuzu precomputation")
        assert not (tmp_path / "marker").exists()


def test_a_numpy_file_does_not_run(path, tmp_path):
    with open(path, "wb") as file:
        np.save(file, np.array([Payload(tmp_path / "marker")], dtype=object), allow_pickle=True)
    refuse(path, "not a Yuzu precomputation")
    assert not (tmp_path / "marker").exists()


def test_code_in_a_field_does_not_run(saved, path, tmp_path, captured_once):
    model, _, data = saved
    marker = tmp_path / "marker"
    code = f"__import__('os').mkdir({str(marker)!r})"
    pickled = pickle.dumps(Payload(marker), 0).decode("latin1")
    for name, fields in json_fields(data).items():
        for key in fields:
            for text in (code, pickled):

                def change(metadata, name=name, key=key, text=text):
                    metadata[name] = json.dumps({**json.loads(metadata[name]), key: text})

                path.write_bytes(with_header(data, change))
                with contextlib.suppress(Exception):  # which errors may come is the business of the tests above
                    yuzu_ism(model, sequences(1, L), Precomputation.load(path))
                assert not marker.exists()
