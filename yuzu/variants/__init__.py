"""Effects of variants: read VCF files or tables, and score what each allele changes in a model's output.

Examples
--------
>>> import pandas, yuzu
>>> from yuzu import variants
>>> from yuzu.examples import load_ctcf_model
>>> table = pandas.DataFrame({"chrom": ["chr1"], "pos": [160], "ref": ["A"], "alt": ["G"]})
>>> list(variants.score(load_ctcf_model(), table, {"chr1": "ACGTTGCA" * 40}, 100))
['chrom', 'pos', 'ref', 'alt', 'status', 'delta']
"""

from yuzu.variants.reading import read as read
from yuzu.variants.scoring import score as score

__all__ = ["read", "score"]


def __dir__() -> list[str]:
    return sorted(__all__)
