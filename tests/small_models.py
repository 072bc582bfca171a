"""Sequences and small models that many tests share."""

import torch
import torch.nn.functional as F


def sequences(n, length, n_choices=4, seed=0, dtype=torch.float32):
    """Random one-hot sequences ``(n, C, L)``."""
    letters = torch.randint(n_choices, (n, length), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(letters, n_choices).permute(0, 2, 1).to(dtype)


def randomized(model, seed=0):
    """The model with every parameter and buffer drawn anew from a seed: no bias is zero, no running variance one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                value = 0.5 + noise.abs()
            elif tensor.dim() > 1:
                value = noise / (tensor[0].numel() ** 0.5) * 1.5
            elif name.endswith("weight"):
                value = 1 + 0.3 * noise
            else:
                value = 0.3 * noise
            tensor.copy_(value)
    return model


def one_hot(text, alphabet="ACGT"):
    """``(C, len(text))``, written out by hand."""
    table = torch.zeros(len(alphabet), len(text))
    for i, letter in enumerate(text):
        table[alphabet.index(letter), i] = 1
    return table


class Net(torch.nn.Module):
    """Convolutions, batch norm, pooling, dropout and two linear layers: ``(n, 3)`` or ``(n, n_outputs)``."""

    def __init__(self, length=30, n_choices=4, n_outputs=3, width=6):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(n_choices, width, 5, padding=2)
        self.norm = torch.nn.BatchNorm1d(width)
        self.relu1 = torch.nn.ReLU()
        self.pool = torch.nn.MaxPool1d(2)
        self.conv2 = torch.nn.Conv1d(width, width, 3, padding=1)
        self.relu2 = torch.nn.ReLU()
        self.dropout = torch.nn.Dropout(0.5)
        self.fc1 = torch.nn.Linear(width * (length // 2), 8)
        self.fc2 = torch.nn.Linear(8, n_outputs)

    def forward(self, X):
        X = self.pool(self.relu1(self.norm(self.conv1(X))))
        X = self.dropout(self.relu2(self.conv2(X)))
        return self.fc2(torch.relu(self.fc1(X.flatten(1))))


class Profile(torch.nn.Module):
    """A BPNet in small: a profile ``(n, 2, L)`` and log counts ``(n, 1)``."""

    def __init__(self, n_choices=4, width=5):
        super().__init__()
        self.first = torch.nn.Conv1d(n_choices, width, 5, padding=2)
        self.dilated = torch.nn.Conv1d(width, width, 3, padding=2, dilation=2)
        self.profile = torch.nn.Conv1d(width, 2, 5, padding=2)
        self.counts = torch.nn.Linear(width, 1)

    def forward(self, X):
        X = torch.relu(self.first(X))
        X = X + torch.relu(self.dilated(X))
        return self.profile(X), self.counts(X.mean(2))
