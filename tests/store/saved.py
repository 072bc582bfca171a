"""A saved precomputation, for tests of files."""

import json
import struct

import pytest

from tests.small_models import Profile, randomized
from yuzu import Precomputation, PrecomputationError, precompute

L = 30


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, its precomputation, and the bytes of its file."""
    model = randomized(Profile(), seed=1).eval()
    precomputation = precompute(model, L)
    path = tmp_path_factory.mktemp("saved") / "profile.yuzu"
    precomputation.save(path)
    return model, precomputation, path.read_bytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "precomputation.yuzu"


def header_of(data):
    """The JSON header of a safetensors file, and the bytes after it."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(data, change):
    """The file with its ``__metadata__`` changed by ``change(metadata)``."""
    header, rest = header_of(data)
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def refuse(path, match):
    with pytest.raises(PrecomputationError, match=match) as caught:
        Precomputation.load(path)
    message = str(caught.value)
    assert path.name in message and "precompute" in message  # which file, and what to do
    assert sum(word in message for word in ("truncated", "not a Yuzu", "damaged", "version", "folder")) == 1, message
    return caught.value


def json_fields(data):
    """Every field of the header that holds JSON, with the keys of its first level."""
    metadata = header_of(data)[0]["__metadata__"]
    return {name: json.loads(text) for name, text in metadata.items() if text.startswith("{")}
