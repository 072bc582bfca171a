"""SpliceAI, with random weights or those of OpenSpliceAI."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch

from yuzu.errors import YuzuError, shown
from yuzu.models.layers import check_sizes, seeded


class _SkipUnit(torch.nn.Sequential):
    """A 1x1 convolution, whose output is added to the running sum that the prediction is made from."""

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
        result: torch.Tensor = x + self.conv2(self.relu2(self.batchnorm2(h)))
        return result


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

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import SpliceAI
    >>> SpliceAI(flanking=80).eval()(torch.zeros(2, 4, 100)).shape
    torch.Size([2, 3, 20])

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
        check_sizes(n_inputs=n_inputs, n_filters=n_filters, n_outputs=n_outputs)
        if flanking not in tuple(self._GROUPS):
            raise YuzuError(f"flanking: got {shown(flanking)}, want 80, 400, 2000 or 10000")
        self.flanking = int(flanking)
        with seeded(self, random_state):
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
        """Load the trained network of an OpenSpliceAI (Chao et al., eLife 2025) state dict, in evaluation mode.

        The parameters have the names of this class. The activation is a leaky ReLU of slope 0.1, which the file does
        not say: the weights fit a `SpliceAI` of the default slope, too, and predict something else there.

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
        # Symbolic tracing passes a proxy, whose length is not known.
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
        result: torch.Tensor = self.softmax(self.final_conv(skip[:, :, crop:-crop]))
        return result
