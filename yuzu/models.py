"""Example models: the six of the Yuzu paper (Schreiber et al., "Accelerating in silico saturation mutagenesis
using compressed sensing", Bioinformatics 2022), Beluga and SpliceAI, at published sizes with random weights.

The six have the layer names, the sizes and, for one `random_state`, the weights of `yuzu-ism` 0.0.1, so state
dicts go both ways. Unlike there, the global random state is left as it was, gradients flow through `forward`
and `n_inputs` is honoured everywhere. As any `torch.nn.Module` they start in training mode: call `.eval()`
before predicting with those that hold batch normalization or dropout.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from yuzu.errors import YuzuError, shown

__all__ = [
    "BPNet",
    "Basset",
    "Beluga",
    "DeepSEA",
    "FactorizedBasset",
    "Flatten",
    "OneLayer",
    "SpliceAI",
    "ToyNet",
    "Unsqueeze",
]


@contextmanager
def _seeded(module: torch.nn.Module, random_state: int) -> Iterator[None]:
    """Draw the weights made inside from `random_state`, on the CPU; then move `module` to the default device.

    `torch.manual_seed` would seed the accelerators too, and `fork_rng` puts only the CPU's state back: hence
    the CPU's generator alone, which also makes the weights the same whatever the default device is.
    """
    device = torch.empty(0).device
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(random_state)
        yield
    module.to(device)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        try:
            good = operator.index(value) >= 1
        except TypeError:
            good = False
        if not good:
            raise YuzuError(f"{name}: got {shown(value)}, want an int of at least 1")


def _check_length(model: str, seq_len: int | None, shortest: int) -> int:
    """`seq_len`, after checking that at least one position is left where the dense layers start."""
    wanted = f"want the length of the sequences as an int of at least {shortest}"
    if seq_len is None:
        raise YuzuError(f"seq_len: got None, but the dense layers of {model} depend on it; {wanted}")
    _check_sizes(seq_len=seq_len)
    if seq_len < shortest:
        raise YuzuError(f"seq_len: got {seq_len}, of which {model}'s pooling leaves nothing; {wanted}")
    return seq_len


class Flatten(torch.nn.Module):
    """Flatten `(n, C, L)` to `(n, L * C)`, position after position (`torch.nn.Flatten` goes by channel)."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return X.permute(0, 2, 1).flatten(1)


class Unsqueeze(torch.nn.Module):
    """Insert an axis of size 1 at `dim`."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return X.unsqueeze(self.dim)


class OneLayer(torch.nn.Module):
    """A single convolution: `(n, n_inputs, L)` to `(n, n_filters, L)` (`L + 1` for an even `kernel_size`).

    Parameters
    ----------
    n_inputs : int
        Characters in the alphabet.
    n_filters, kernel_size : int, optional
        Defaults 64 and 7.
    seq_len : int or None, optional
        Not used; there so that all models can be built with the same call.
    random_state : int, optional
        Seed of the weights. Default is 0.
    """

    def __init__(
        self,
        n_inputs: int,
        n_filters: int = 64,
        kernel_size: int = 7,
        seq_len: int | None = None,
        random_state: int = 0,
    ):
        super().__init__()
        _check_sizes(n_inputs=n_inputs, n_filters=n_filters, kernel_size=kernel_size)
        with _seeded(self, random_state):
            self.conv = torch.nn.Conv1d(n_inputs, n_filters, kernel_size, padding=kernel_size // 2)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return self.conv(X)


class ToyNet(torch.nn.Module):
    """Three convolutions with ReLUs between: `(n, n_inputs, L)` to `(n, 2, L)` (odd `kernel_size`).

    Parameters as for `OneLayer`; `n_filters` is 32 by default and holds for the first two.
    """

    def __init__(
        self,
        n_inputs: int,
        n_filters: int = 32,
        kernel_size: int = 7,
        seq_len: int | None = None,
        random_state: int = 0,
    ):
        super().__init__()
        _check_sizes(n_inputs=n_inputs, n_filters=n_filters, kernel_size=kernel_size)
        padding = kernel_size // 2
        with _seeded(self, random_state):
            self.conv1 = torch.nn.Conv1d(n_inputs, n_filters, kernel_size, padding=padding)
            self.relu1 = torch.nn.ReLU()
            self.conv2 = torch.nn.Conv1d(n_filters, n_filters, kernel_size, padding=padding)
            self.relu2 = torch.nn.ReLU()
            self.conv3 = torch.nn.Conv1d(n_filters, 2, kernel_size, padding=padding)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(X)))))


class DeepSEA(torch.nn.Module):
    """DeepSEA, in the variant of the Yuzu paper: `(n, n_inputs, seq_len)` to `(n, 1, 925)` probabilities.

    Parameters
    ----------
    n_inputs : int
        Characters in the alphabet.
    seq_len : int
        Length of the sequences, at least 16.
    random_state : int, optional
        Seed of the weights. Default is 0.

    Raises
    ------
    YuzuError
        If `seq_len` is None or too short, or a size is no positive int.

    References
    ----------
    Zhou and Troyanskaya, "Predicting effects of noncoding variants with deep learning-based sequence model",
    Nature Methods 2015.
    """

    def __init__(self, n_inputs: int, seq_len: int | None = None, random_state: int = 0):
        super().__init__()
        _check_sizes(n_inputs=n_inputs)
        n_pooled = _check_length("DeepSEA", seq_len, 16) // 16
        with _seeded(self, random_state):
            self.conv1 = torch.nn.Conv1d(n_inputs, 320, 9, padding=4)
            self.relu1 = torch.nn.ReLU()
            self.mp1 = torch.nn.MaxPool1d(4)
            self.conv2 = torch.nn.Conv1d(320, 480, 9, padding=4)
            self.relu2 = torch.nn.ReLU()
            self.mp2 = torch.nn.MaxPool1d(4)
            self.conv3 = torch.nn.Conv1d(480, 960, 9, padding=4)
            self.relu3 = torch.nn.ReLU()
            self.reshape = Flatten()
            self.fc = torch.nn.Linear(n_pooled * 960, 925)
            self.sigmoid = torch.nn.Sigmoid()
            self.unsqueeze = Unsqueeze(1)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        X = self.mp1(self.relu1(self.conv1(X)))
        X = self.mp2(self.relu2(self.conv2(X)))
        X = self.relu3(self.conv3(X))
        return self.unsqueeze(self.sigmoid(self.fc(self.reshape(X))))


class _BassetLayers(torch.nn.Module):
    """The blocks that both Bassets are made of, under their published names."""

    def _add_conv(self, name: str, n_in: int, n_out: int, kernel_size: int) -> None:
        self.add_module(f"conv{name}", torch.nn.Conv1d(n_in, n_out, kernel_size, padding=kernel_size // 2))
        self.add_module(f"bn{name}", torch.nn.BatchNorm1d(n_out))
        self.add_module(f"relu{name}", torch.nn.ReLU())

    def _apply_layers(self, X: torch.Tensor, *names: str) -> torch.Tensor:
        for name in names:
            X = getattr(self, name)(X)
        return X

    def _add_dense(self, n_pooled: int, n_outputs: int) -> None:
        self.fc1 = torch.nn.Linear(n_pooled * 200, 1000)
        self.relu4 = torch.nn.ReLU()
        self.bn4 = torch.nn.BatchNorm1d(1000)
        self.fc2 = torch.nn.Linear(1000, 1000)
        self.relu5 = torch.nn.ReLU()
        self.bn5 = torch.nn.BatchNorm1d(1000)
        self.fc3 = torch.nn.Linear(1000, n_outputs)
        self.unsqueeze = Unsqueeze(1)

    def _apply_dense(self, X: torch.Tensor) -> torch.Tensor:
        return self._apply_layers(X, "fc1", "relu4", "bn4", "fc2", "relu5", "bn5", "fc3", "unsqueeze")


class Basset(_BassetLayers):
    """Basset: `(n, n_inputs, seq_len)` to `(n, 1, 164)` logits of accessibility, one per cell type.

    Parameters and errors as for `DeepSEA`; `seq_len` is at least 48.

    References
    ----------
    Kelley, Snoek and Rinn, "Basset: learning the regulatory code of the accessible genome with deep
    convolutional neural networks", Genome Research 2016.
    """

    def __init__(self, n_inputs: int, seq_len: int | None = None, random_state: int = 0):
        super().__init__()
        _check_sizes(n_inputs=n_inputs)
        n_pooled = _check_length("Basset", seq_len, 48) // 48
        with _seeded(self, random_state):
            self._add_conv("1", n_inputs, 300, 19)
            self.maxpool1 = torch.nn.MaxPool1d(3)
            self._add_conv("2", 300, 200, 11)
            self.maxpool2 = torch.nn.MaxPool1d(4)
            self._add_conv("3", 200, 200, 7)
            self.maxpool3 = torch.nn.MaxPool1d(4)
            self.reshape = Flatten()
            self._add_dense(n_pooled, 164)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        X = self._apply_layers(X, "conv1", "relu1", "bn1", "maxpool1")
        X = self._apply_layers(X, "conv2", "relu2", "bn2", "maxpool2")
        X = self._apply_layers(X, "conv3", "relu3", "bn3", "maxpool3")
        return self._apply_dense(self.reshape(X))


class FactorizedBasset(_BassetLayers):
    """Basset with its wide convolutions split into narrow ones: `(n, n_inputs, seq_len)` to `(n, 1, 1)`.

    Parameters and errors as for `DeepSEA`; `seq_len` is at least 48.

    References
    ----------
    Wnuk et al., "Predicting DNA accessibility in the pan-cancer tumor genome using RNA-seq, WGS, and deep
    learning", bioRxiv 2017.
    """

    def __init__(self, n_inputs: int, seq_len: int | None = None, random_state: int = 0):
        super().__init__()
        _check_sizes(n_inputs=n_inputs)
        n_pooled = _check_length("FactorizedBasset", seq_len, 48) // 48
        with _seeded(self, random_state):
            self._add_conv("11", n_inputs, 48, 3)
            self._add_conv("12", 48, 64, 3)
            self._add_conv("13", 64, 100, 3)
            self._add_conv("14", 100, 150, 7)
            self._add_conv("15", 150, 300, 7)
            self.mp1 = torch.nn.MaxPool1d(3)
            self._add_conv("21", 300, 200, 7)
            self._add_conv("22", 200, 200, 3)
            self._add_conv("23", 200, 200, 3)
            self.mp2 = torch.nn.MaxPool1d(4)
            self._add_conv("3", 200, 200, 7)
            self.mp3 = torch.nn.MaxPool1d(4)
            self.flatten = Flatten()
            self._add_dense(n_pooled, 1)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        for name in ("11", "12", "13", "14", "15", "mp1", "21", "22", "23", "mp2", "3", "mp3"):
            layers = [name] if name.startswith("mp") else [f"conv{name}", f"bn{name}", f"relu{name}"]
            X = self._apply_layers(X, *layers)
        return self._apply_dense(self.flatten(X))


class BPNet(torch.nn.Module):
    """BPNet's dilated convolutions without its residual sums: `(n, n_inputs, L)` to a profile `(n, 1, L)`.

    Parameters
    ----------
    n_inputs : int
        Characters in the alphabet.
    n_filters : int, optional
        Filters in every convolution but the last. Default is 64.
    kernel_size : int, optional
        Width of the first convolution; an even one gives `L + 1` outputs. Default is 21.
    seq_len : int or None, optional
        Not used; there so that all models can be built with the same call.
    n_layers : int, optional
        The first convolution and the dilated ones together: dilated convolution `i = 1 .. n_layers - 1` has
        width 3 and dilation `2 ** i`. The default, 4, is the network of `yuzu-ism` 0.0.1, which took this
        argument and `kernel_size` without using them.
    random_state : int, optional
        Seed of the weights. Default is 0.

    References
    ----------
    Avsec et al., "Base-resolution models of transcription-factor binding reveal soft motif syntax",
    Nature Genetics 2021.
    """

    def __init__(
        self,
        n_inputs: int,
        n_filters: int = 64,
        kernel_size: int = 21,
        seq_len: int | None = None,
        n_layers: int = 4,
        random_state: int = 0,
    ):
        super().__init__()
        _check_sizes(n_inputs=n_inputs, n_filters=n_filters, kernel_size=kernel_size, n_layers=n_layers)
        self.n_layers = n_layers
        with _seeded(self, random_state):
            self.iconv = torch.nn.Conv1d(n_inputs, n_filters, kernel_size, padding=kernel_size // 2)
            self.irelu = torch.nn.ReLU()
            for i in range(1, n_layers):
                dconv = torch.nn.Conv1d(n_filters, n_filters, 3, padding=2**i, dilation=2**i)
                self.add_module(f"dconv{i}", dconv)
                self.add_module(f"drelu{i}", torch.nn.ReLU())
            self.fconv = torch.nn.Conv1d(n_filters, 1, 75, padding=37)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        X = self.irelu(self.iconv(X))
        for i in range(1, self.n_layers):
            X = getattr(self, f"drelu{i}")(getattr(self, f"dconv{i}")(X))
        return self.fconv(X)


class Beluga(torch.nn.Module):
    """DeepSEA "Beluga": `(n, n_inputs, seq_len)` to `(n, n_outputs)` probabilities of chromatin features.

    The convolutions are two-dimensional with `(1, 8)` kernels, as published. The nesting follows the
    published definition too, so that parameters have its names: `model.0.0.weight` to `model.1.4.1.bias`.

    Parameters
    ----------
    n_inputs, n_outputs : int, optional
        Characters in the alphabet, chromatin features. Defaults 4 and 2002.
    seq_len : int, optional
        Length of the sequences, at least 310. Default is 2000.
    random_state : int, optional
        Seed of the weights. Default is 0.
    n_filters : sequence of three ints, optional
        Filters in the three pairs of convolutions. Default is (320, 480, 640).
    n_hidden : int, optional
        Units of the hidden dense layer. Default is 2003, which with the other defaults takes 600 MB.

    Raises
    ------
    YuzuError
        If `seq_len` is too short, `n_filters` does not have three items, or a size is no positive int.

    References
    ----------
    Zhou et al., "Deep learning sequence-based ab initio prediction of variant effects on expression and
    disease risk", Nature Genetics 2018.
    """

    def __init__(
        self,
        n_inputs: int = 4,
        seq_len: int = 2000,
        n_outputs: int = 2002,
        random_state: int = 0,
        n_filters: Sequence[int] = (320, 480, 640),
        n_hidden: int = 2003,
    ):
        super().__init__()
        if not isinstance(n_filters, Sequence) or len(n_filters) != 3:
            raise YuzuError(f"n_filters: got {shown(n_filters)}, want three ints, one per pair of convolutions")
        a, b, c = n_filters
        _check_sizes(
            n_inputs=n_inputs,
            n_outputs=n_outputs,
            n_hidden=n_hidden,
            **{f"n_filters[{i}]": size for i, size in enumerate(n_filters)},
        )
        # Each pair of unpadded convolutions takes 14 positions, each of the two pools leaves a quarter.
        n_pooled = ((_check_length("Beluga", seq_len, 310) - 14) // 4 - 14) // 4 - 14
        with _seeded(self, random_state):
            convs = [
                *self._pair(n_inputs, a),
                torch.nn.Dropout(0.2),
                torch.nn.MaxPool2d((1, 4)),
                *self._pair(a, b),
                torch.nn.Dropout(0.2),
                torch.nn.MaxPool2d((1, 4)),
                *self._pair(b, c),
            ]
            dense = [
                torch.nn.Dropout(0.5),
                torch.nn.Flatten(1),
                torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(n_pooled * c, n_hidden)),
                torch.nn.ReLU(),
                torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(n_hidden, n_outputs)),
            ]
            self.model = torch.nn.Sequential(
                torch.nn.Sequential(*convs), torch.nn.Sequential(*dense), torch.nn.Sigmoid()
            )

    @staticmethod
    def _pair(n_in: int, n_out: int) -> list[torch.nn.Module]:
        return [
            torch.nn.Conv2d(n_in, n_out, (1, 8)),
            torch.nn.ReLU(),
            torch.nn.Conv2d(n_out, n_out, (1, 8)),
            torch.nn.ReLU(),
        ]

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return self.model(X.unsqueeze(2))


class _SkipUnit(torch.nn.Sequential):
    """The 1x1 convolution whose output goes to the running sum that the prediction is made from."""

    def __init__(self, n_filters: int):
        super().__init__(OrderedDict(conv=torch.nn.Conv1d(n_filters, n_filters, 1)))


class _ResidualUnit(torch.nn.Module):
    """`x + conv(act(norm(conv(act(norm(x))))))`, length kept."""

    def __init__(self, n_filters: int, kernel_size: int, dilation: int, negative_slope: float):
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.batchnorm1 = torch.nn.BatchNorm1d(n_filters)
        self.relu1 = torch.nn.LeakyReLU(negative_slope) if negative_slope else torch.nn.ReLU()
        self.conv1 = torch.nn.Conv1d(n_filters, n_filters, kernel_size, dilation=dilation, padding=padding)
        self.batchnorm2 = torch.nn.BatchNorm1d(n_filters)
        self.relu2 = torch.nn.LeakyReLU(negative_slope) if negative_slope else torch.nn.ReLU()
        self.conv2 = torch.nn.Conv1d(n_filters, n_filters, kernel_size, dilation=dilation, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(self.relu1(self.batchnorm1(x)))
        return x + self.conv2(self.relu2(self.batchnorm2(h)))


class SpliceAI(torch.nn.Module):
    """SpliceAI: `(n, n_inputs, L)` to `(n, n_outputs, L - flanking)` probabilities, by default of no splice
    site, acceptor and donor; they sum to 1 over the outputs.

    Four residual units of two convolutions of width 11 make up the network for `flanking=80`; 400 adds four
    of width 11 and dilation 4, 2000 four of width 21 and dilation 10, 10000 four of width 41 and dilation 25.
    An output depends on its own position and `flanking / 2` on either side: `flanking` is twice the sum of
    `dilation * (width - 1)` over the units.

    Parameters
    ----------
    n_inputs, n_filters, n_outputs : int, optional
        Characters in the alphabet, channels between, classes. Defaults 4, 32 and 3.
    flanking : int, optional
        80, 400, 2000 or 10000. Default is 400.
    random_state : int, optional
        Seed of the weights. Default is 0.
    negative_slope : float, optional
        Slope of the activation below zero: 0 is the ReLU of the paper, OpenSpliceAI has 0.1. Default is 0.

    Raises
    ------
    YuzuError
        If `flanking` is another number or a size no positive int; from `forward`, if `L <= flanking`.

    References
    ----------
    Jaganathan et al., "Predicting splicing from primary sequence with deep learning", Cell 2019.
    """

    _GROUPS = {80: (11, 1), 400: (11, 4), 2000: (21, 10), 10000: (41, 25)}

    def __init__(
        self,
        n_inputs: int = 4,
        flanking: int = 400,
        n_filters: int = 32,
        n_outputs: int = 3,
        random_state: int = 0,
        negative_slope: float = 0.0,
    ):
        super().__init__()
        _check_sizes(n_inputs=n_inputs, n_filters=n_filters, n_outputs=n_outputs)
        if flanking not in tuple(self._GROUPS):
            raise YuzuError(f"flanking: got {shown(flanking)}, want 80, 400, 2000 or 10000")
        self.flanking = int(flanking)
        with _seeded(self, random_state):
            self.initial_conv = torch.nn.Conv1d(n_inputs, n_filters, 1)
            self.initial_skip = _SkipUnit(n_filters)
            self.residual_units = torch.nn.ModuleList()
            for group_flanking, (kernel_size, dilation) in self._GROUPS.items():
                if group_flanking > flanking:
                    break
                units = [_ResidualUnit(n_filters, kernel_size, dilation, negative_slope) for _ in range(4)]
                self.residual_units.extend([*units, _SkipUnit(n_filters)])
            self.final_conv = torch.nn.Conv1d(n_filters, n_outputs, 1)
            self.softmax = torch.nn.Softmax(dim=1)

    @classmethod
    def from_openspliceai(cls, state_dict: Mapping[str, torch.Tensor]) -> SpliceAI:
        """The trained network of an OpenSpliceAI (Chao et al., eLife 2025) state dict, in evaluation mode.

        The names of its parameters are those of this class. What the file does not say is that its activation
        is a leaky ReLU of slope 0.1: loaded into a `SpliceAI` with the default slope the weights fit just as
        well and predict something else.

        Parameters
        ----------
        state_dict : mapping of str to torch.Tensor
            As `torch.load(path, weights_only=True, map_location="cpu")` gives it.

        Raises
        ------
        YuzuError
            If the names or shapes are not those of such a network.
        """
        n_units = len({name.split(".")[1] for name in state_dict if name.startswith("residual_units.")})
        n_groups, rest = divmod(n_units, 5)
        try:
            n_filters, n_inputs, _ = state_dict["initial_conv.weight"].shape
            n_outputs = len(state_dict["final_conv.weight"])
            flanking = list(cls._GROUPS)[n_groups - 1]
        except (KeyError, ValueError, IndexError, TypeError):
            rest = 1
        if rest or not n_groups:
            raise YuzuError(
                f"state_dict: got {len(state_dict)} entries, not those of OpenSpliceAI; want "
                "initial_conv, final_conv and 5, 10, 15 or 20 residual_units"
            )
        model = cls(n_inputs, flanking, n_filters, n_outputs, negative_slope=0.1)
        try:
            model.load_state_dict(state_dict)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise YuzuError(f"state_dict: not OpenSpliceAI's for flanking {flanking}; {reason}") from error
        return model.eval()

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        # Symbolic tracing passes a proxy, on whose length one cannot branch.
        if isinstance(X, torch.Tensor) and X.shape[-1] <= self.flanking:
            raise YuzuError(f"X: got {X.shape[-1]} positions, want more than the flanking of {self.flanking}")
        x = self.initial_conv(X)
        skip = self.initial_skip(x)
        for unit in self.residual_units:
            if isinstance(unit, _SkipUnit):
                skip = skip + unit(x)
            else:
                x = unit(x)
        crop = self.flanking // 2
        return self.softmax(self.final_conv(skip[:, :, crop:-crop]))
