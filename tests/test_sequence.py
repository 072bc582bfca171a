"""Text to one-hot and back, and FASTA files."""

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from yuzu.errors import YuzuError
from yuzu.sequence import (
    DNA,
    LUA_DNA,
    PROTEIN,
    RNA,
    Fasta,
    decode,
    dna_order,
    one_hot_encode,
    read_fasta,
    reorder_alphabet,
)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def random_text(length, characters, seed):
    return "".join(random.Random(seed).choices(characters, k=length))


# ------------------------------------------------------------------ one_hot_encode


@pytest.mark.parametrize("alphabet, unknown", [(DNA, "N"), (RNA, "N"), (PROTEIN, "X"), ("AB", "N")])
def test_against_a_loop(alphabet, unknown):
    characters = alphabet + alphabet.lower() + unknown + unknown.lower()
    texts = [random_text(37, characters, seed) for seed in range(5)]
    X = one_hot_encode(texts, alphabet=alphabet)
    assert X.shape == (5, len(alphabet), 37) and X.dtype == torch.float32 and X.is_contiguous()
    for i, text in enumerate(texts):
        for j, character in enumerate(text):
            assert X[i, :, j].tolist() == [float(character.upper() == c) for c in alphabet]
        assert torch.equal(one_hot_encode(text, alphabet=alphabet), X[i])


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float64, torch.bfloat16, torch.int64])
def test_dtype(dtype):
    X = one_hot_encode("AcgN", dtype=dtype)
    assert X.dtype == dtype
    assert X.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_str_has_no_batch_axis_and_a_list_has():
    assert one_hot_encode("ACG").shape == (4, 3)
    assert one_hot_encode(["ACG"]).shape == one_hot_encode(("ACG",)).shape == (1, 4, 3)


def test_alphabet_may_be_a_list_and_gives_the_order():
    assert torch.equal(one_hot_encode("ACGT", alphabet=["T", "G", "C", "A"]), one_hot_encode("ACGT").flip(0))


def test_unknown():
    assert one_hot_encode("AN-n", unknown="N-").sum() == 1
    assert one_hot_encode("NX", alphabet=PROTEIN).sum(0).tolist() == [1, 0]
    with pytest.raises(YuzuError, match="got 'N' at position 1, want characters of 'ACGT', in either case"):
        one_hot_encode("AN", unknown="")
    with pytest.raises(YuzuError, match="'X' at position 1, want characters of 'ACGT' or 'N' for unknown"):
        one_hot_encode("AX")
    with pytest.raises(YuzuError, match="unknown: got 'xA', of which 'A' is in the alphabet"):
        one_hot_encode("A", unknown="xA")


@pytest.mark.parametrize("sequences, text", [
    ("ACGU", r"got 'U' at position 3, want characters of 'ACGT'"),
    ("AC GT", r"got ' ' at position 2,"),
    ("ACé", r"got 'é' at position 2,"),
    ("A\U0001f34aC?", r"got '\U0001f34a' at position 1,"),
    (["ACGT", "AC-T"], r"got '-' at position 2 of item 1,"),
    (["ACGT", "ACG", "A"], r"got length 3 for item 1 and 4 for item 0, want one length"),
    ("", r"got an empty sequence as item 0"),
    (["", ""], r"got an empty sequence as item 0"),
    ([], r"got an empty list"),
    (["ACGT", 5], r"got int as item 1, want str"),
    (b"ACGT", r"got bytes, want a str or a list or tuple of str"),
    (None, r"got NoneType, want"),
])
def test_bad_sequences(sequences, text):
    with pytest.raises(YuzuError, match="sequences: " + text):
        one_hot_encode(sequences)


def test_replacement_character_is_not_mistaken():
    with pytest.raises(YuzuError, match="got 'é' at position 1"):
        one_hot_encode("?é", unknown="?")


@pytest.mark.parametrize("kwargs, text", [
    ({"alphabet": ""}, "alphabet: got ''"),
    ({"alphabet": "ACGA"}, "alphabet: got 'ACGA', want distinct"),
    ({"alphabet": "ACGa"}, "alphabet: got 'ACGa', want distinct"),
    ({"alphabet": ["A", "CG"]}, r"alphabet: got \['A', 'CG'\]"),
    ({"alphabet": 4}, "alphabet: got 4"),
    ({"dtype": "float"}, "dtype: got 'float', want a torch.dtype"),
    ({"unknown": 0}, "unknown: got 0"),
])
def test_bad_options(kwargs, text):
    with pytest.raises(YuzuError, match=text):
        one_hot_encode("A", **kwargs)


# ------------------------------------------------------------------ decode


@pytest.mark.parametrize("alphabet, unknown", [(DNA, "N"), (RNA, "N"), (PROTEIN, "X")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bool])
def test_round_trip(alphabet, unknown, dtype):
    texts = [random_text(50, alphabet + unknown, seed) for seed in range(4)]
    X = one_hot_encode(texts, alphabet=alphabet, dtype=dtype)
    assert decode(X, alphabet=alphabet) == texts
    assert decode(X.numpy(), alphabet=alphabet) == texts
    assert decode(X[1], alphabet=alphabet) == texts[1]
    assert torch.equal(one_hot_encode(decode(X, alphabet=alphabet), alphabet=alphabet, dtype=dtype), X)


def test_decode_unknown():
    X = one_hot_encode("aNg")
    assert decode(X) == "ANG" and decode(X, unknown="-") == "A-G"
    with pytest.raises(YuzuError, match=r"\[0.0, 0.0, 0.0, 0.0\] at position 1, want a single 1 and zeros$"):
        decode(X, unknown="")


@pytest.mark.parametrize("column", [[0.5, 0.5, 0, 0], [1, 1, 0, 0], [1, -1, 1, 0], [float("nan"), 0, 0, 1],
                                    [0, 2, 0, 0], [1, 0.001, 0, 0]])
def test_decode_refuses_soft_columns(column):
    X = one_hot_encode(["ACGT", "ACGT", "AAAA"])
    X[1, :, 2] = torch.tensor(column)
    with pytest.raises(YuzuError, match="position 2 of item 1, want a single 1 and zeros or zeros for 'N'"):
        decode(X)
    with pytest.raises(YuzuError, match="at position 2, want"):
        decode(X[1].numpy())


def test_decode_takes_any_array():
    X = one_hot_encode("ACCN", dtype=torch.int8).numpy()
    assert decode(X[:, ::-1]) == "NCCA" and decode(np.broadcast_to(X, (2, 4, 4))) == ["ACCN", "ACCN"]
    assert decode(one_hot_encode("ACCN").requires_grad_()) == "ACCN"
    with pytest.raises(YuzuError, match="X: got str of <U4, want a tensor or array of numbers"):
        decode("ACGT")


@pytest.mark.parametrize("shape", [(4,), (3, 5), (1, 5, 4), (1, 1, 4, 5)])
def test_decode_shapes(shape):
    with pytest.raises(YuzuError, match=r"X: got shape .*want \(4, L\) or \(n, 4, L\) for the alphabet"):
        decode(np.zeros(shape))


# ------------------------------------------------------------------ reorder_alphabet


def test_order_of_lua():
    assert LUA_DNA == "AGCT"
    X = one_hot_encode("ACGTN", alphabet=LUA_DNA)
    assert X.argmax(0).tolist() == [0, 2, 1, 3, 0] and decode(X, alphabet=LUA_DNA) == "ACGTN"
    assert decode(X) == "AGCTN", "read in the wrong order, C and G change places"


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("source, target", [("ACGT", "AGCT"), ("AGCT", "ACGT"), ("ACGT", "tgca"), ("GTAC", ["A", "T", "C", "G"]), (PROTEIN, PROTEIN[3:] + PROTEIN[:3])])
def test_reorder_alphabet(kind, source, target):
    texts = [random_text(30, source + "X", seed) for seed in range(3)]
    X, wanted = (one_hot_encode(texts, alphabet=a, unknown="X", dtype=torch.int8) for a in (source, target))
    if kind == "numpy":
        X, wanted = X.numpy(), wanted.numpy()
    found = reorder_alphabet(X, source, target)
    assert type(found) is type(X) and found.dtype == X.dtype and (found == wanted).all()
    assert (reorder_alphabet(X[0], source, target) == wanted[0]).all(), "no batch axis"
    assert (reorder_alphabet(found, target, source) == X).all()
    scores = X[..., None] * np.ones(2, dtype=np.int8) if kind == "numpy" else X[..., None].repeat(1, 1, 1, 2)
    assert (reorder_alphabet(scores, source, target, dim=1)[..., 1] == wanted).all()


def test_reordered_is_a_copy_and_gradients_flow():
    X = one_hot_encode(["ACGT"])
    reorder_alphabet(X, DNA, DNA).zero_()
    assert X.sum() == 4
    scores = torch.arange(8.0).reshape(4, 2).requires_grad_()
    reorder_alphabet(scores, DNA, LUA_DNA)[1].sum().backward()
    assert scores.grad.tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize("args, text", [
    ((np.zeros((4, 3)), "ACGT", "ACGU"), "to_alphabet: got 'ACGU', want the characters of 'ACGT' in some order"),
    ((np.zeros((4, 3)), "ACGT", "ACG"), "to_alphabet: got 'ACG'"),
    ((np.zeros((4, 3)), "ACGA", "ACGT"), "alphabet: got 'ACGA', want distinct"),
    ((np.zeros((5, 3)), "ACGT", "AGCT"), r"X: got shape \(5, 3\), want 4 channels on axis -2 for the alphabet 'ACGT'"),
    ((np.zeros((4, 3)), "ACGT", "AGCT", 2), r"X: got shape \(4, 3\), want 4 channels on axis 2"),
    ((torch.zeros(4), "ACGT", "AGCT"), r"X: got shape \(4,\), want 4 channels on axis -2"),
    (("ACGT", "ACGT", "AGCT"), "X: got str, want a torch.Tensor or numpy.ndarray"),
])
def test_bad_reorder(args, text):
    with pytest.raises(YuzuError, match=text):
        reorder_alphabet(*args)


def test_dna_order():
    assert dna_order("agct") == dna_order(["A", "g", "C", "T"]) == "AGCT"
    for alphabet in ("ACGU", "ACG", "ACGTN", PROTEIN):
        with pytest.raises(YuzuError, match=f"alphabet: got '{alphabet}', want the letters of DNA, 'ACGT', in some order"):
            dna_order(alphabet)


# ------------------------------------------------------------------ read_fasta


def write(tmp_path, content, name="some.fa"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


PLAIN = b">one first record\nACGT\nacgtn\n\n>two\nTTTT-*.\n"
EXPECTED = Fasta(["one first record", "two"], ["ACGTacgtn", "TTTT-*."])


@pytest.mark.parametrize("content", [
    PLAIN, PLAIN.rstrip(), PLAIN.replace(b"\n", b"\r\n"), b"\n \n" + PLAIN + b"\n\n", b"\xef\xbb\xbf" + PLAIN,
    gzip.compress(PLAIN, mtime=0), gzip.compress(PLAIN.replace(b"\n", b"\r\n"), mtime=0),
    gzip.compress(PLAIN[:20], mtime=0) + gzip.compress(PLAIN[20:], mtime=0),
])
def test_fasta_in_all_its_forms(tmp_path, content):
    path = write(tmp_path, content)
    assert read_fasta(path) == EXPECTED
    assert read_fasta(str(path)).names == EXPECTED.names


def test_gzip_is_told_from_the_content_not_the_name(tmp_path):
    assert read_fasta(write(tmp_path, PLAIN, "plain.fa.gz")) == EXPECTED
    assert read_fasta(write(tmp_path, gzip.compress(PLAIN, mtime=0), "zipped.fa")) == EXPECTED


@pytest.mark.parametrize("content, text", [
    (b"", r"some.fa, line 1: the file is empty"),
    (b"\n\n", r"some.fa, line 1: the file is empty"),
    (b"\nACGT\n", r"some.fa, line 2: not FASTA; got 'ACGT', want a header starting with '>'"),
    (b"@read\nACGT\n+\nIIII\n", r"some.fa, line 1: not FASTA; got '@read'"),
    (b">a\nACGT\n\n>b\n>c\nA\n", r"some.fa, line 4: record 'b' has no sequence"),
    (b">a\nACGT\n>b\n\n", r"some.fa, line 3: record 'b' has no sequence"),
    (b">a\nACGT\nAC GT\n", r"some.fa, line 3: got ' ', want a line of sequence or a header"),
    (b">a\n1 ACGT\n", r"some.fa, line 2: got '1'"),
    (b">a\nAC\xc3\xa9\n", r"some.fa, line 2: got 'é'"),
    (b"\x89PNG\r\n\x1a\n\x00\xff", r"some.fa, after line 0: not FASTA, not even text"),
    (gzip.compress(PLAIN, mtime=0)[:-12], r"some.fa, after line \d: damaged gzip file"),
    (b"\x1f\x8bnonsense", r"some.fa, after line 0: damaged gzip file"),
])
def test_bad_fasta(tmp_path, content, text):
    with pytest.raises(YuzuError, match=text):
        read_fasta(write(tmp_path, content))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_fasta(tmp_path / "absent.fa")


def test_real_files():
    if not DATA.exists():
        pytest.skip(f"no data at {DATA}")
    names, (enhancer,) = read_fasta(DATA / "chr3_enhancer_hg38.fa")
    assert names == ["chr3:138862274-138864274 hg38"] and len(enhancer) == 2000
    assert decode(one_hot_encode(enhancer)) == enhancer.upper()
    peaks = read_fasta(DATA / "pu1.fa.gz")
    assert len(peaks.names) == 28677 and {len(s) for s in peaks.sequences} == {100}
    assert any(s != s.upper() for s in peaks.sequences)
    X = one_hot_encode(peaks.sequences, dtype=torch.int8)
    assert X.shape == (28677, 4, 100) and decode(X[-3:]) == [s.upper() for s in peaks.sequences[-3:]]
