"""The one spelling of a variant, against a comparison of whole chromosomes."""

import random

import pytest

from tests.variants.naive import chromosome, edited, spelling
from yuzu.variants.alleles import as_read, is_symbolic, leftmost, status_of, trimmed


@pytest.mark.parametrize("letters", ["A", "AC", "ACGT"])
def test_spellings_are_leftmost(letters):
    """Of few letters, variants can move far: up to the first position, and over more than what is read at once."""
    rng = random.Random(1)
    text = chromosome(700, 3, letters)
    for _ in range(300):
        pos, size = rng.randrange(len(text) - 8), rng.randrange(5)
        ref, alt = text[pos : pos + size], "".join(rng.choice(letters) for _ in range(rng.randrange(5)))
        if ref == alt:
            continue
        found = leftmost(*trimmed(pos, ref, alt), lambda start, stop: text[start:stop])
        assert edited(text, *found) == edited(text, pos, ref, alt)
        assert found == spelling(text, pos, ref, alt), (pos, ref, alt)


def test_unknown_letters_stop_a_variant():
    text = "AAAANAAAA"
    assert leftmost(7, "A", "", lambda start, stop: text[start:stop]) == (5, "A", "")
    assert leftmost(2, "", "AA", lambda start, stop: text[start:stop]) == (0, "", "AA")


def test_equal_alleles_stay():
    assert trimmed(4, "ACG", "ACG") == (4, "A", "A") and trimmed(4, "", "") == (4, "", "")


@pytest.mark.parametrize("text", ["<DEL>", "<*>", "*", "G]17:1]", "]13:1]T", "[2:3[A", ".TG", "TG.", "<NON_REF>"])
def test_symbols(text):
    assert is_symbolic(text) and status_of("A", as_read(text)) == "symbolic" and as_read(text) == text


@pytest.mark.parametrize(
    "ref, alt, status",
    [("A", "C", "ok"), ("", "C", "ok"), ("A", "", "ok"), ("A", ".", "no_alternative"), (".", "A", "not_acgt"), ("A", "U", "not_acgt"), ("RA", "A", "not_acgt")],
)
def test_statuses(ref, alt, status):
    assert status_of(ref, alt) == status
