"""The law for numbers that are picked for each row."""


import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def pick_cases() -> None:
    case = bench("picked for each row", extras=("place", "places", "span"))
    rows = lambda x: torch.arange(len(x), device=x.device)  # noqa: E731
    whole = {"gather": "whole values", "yuzu.index_of_rows": "whole values"}
    for trunk in (0, 3, 5):
        c = CHANNELS if trunk else 4
        case(f"gather a position, trunk {trunk}", fn(lambda x, p, q, s, c=c: x.gather(2, p[:, None, None].expand(-1, c, 1)).squeeze(2)), trunk, **whole)
        case(f"row and position, trunk {trunk}", fn(lambda x, p, q, s: x[rows(x), :, p]), trunk, **whole)
    case("gather several", fn(lambda x, p, q, s: x.gather(2, q[:, None].expand(-1, CHANNELS, -1))), **whole)
    case("gather for each channel", fn(lambda x, p, q, s: x.gather(2, s[:, :, None].expand(-1, -1, 2))), **whole)
    case("gather of some channels", fn(lambda x, p, q, s: x.gather(2, s[:, :4, None])), **whole)
    case("gather a span", fn(lambda x, p, q, s: x.gather(2, (p[:, None] // 2 + torch.arange(3))[:, None].expand(-1, CHANNELS, -1)).relu()), **whole, relu="whole values|elementwise")
    case("gather channels", fn(lambda x, p, q, s: x.gather(1, (p % CHANNELS)[:, None, None].expand(-1, 2, 13)).relu()))
    case("gather channels at each position", fn(lambda m, x, p, q, s: x.gather(1, m.i + (p % 2)[:, None, None]), i=lambda: torch.arange(13)[None, None] % 5))
    case("gather channels at some positions", fn(lambda x, p, q, s: x.gather(1, (p % CHANNELS)[:, None, None].expand(-1, 2, 4))), **whole)
    case("gather by a constant", fn(lambda m, x, p, q, s: x.gather(2, m.i.expand(len(x), CHANNELS, -1)) + x.gather(1, m.i.expand(len(x), 13, -1).transpose(1, 2))[:, :, :3].relu()[:, :1],
         i=lambda: torch.tensor([[[1, 4, 3]]])), gather="whole values|view")  # fmt: skip
    case("gather of rows", fn(lambda x, p, q, s: x.mean(2).gather(1, s[:, :3] % CHANNELS)), **whole)
    case("gather of flattened", fn(lambda x, p, q, s: x.flatten(1).gather(1, q)), **whole)
    case("gather of a mask", fn(lambda x, p, q, s: (x > 0).gather(2, q[:, None].expand(-1, CHANNELS, -1)).double()), only_double=True, _to_copy="whole values|elementwise", **whole)
    case("gather of n,L,C", fn(lambda x, p, q, s: x.transpose(1, 2).gather(1, q[:, :, None].expand(-1, -1, CHANNELS))), **whole)
    case("take along", fn(lambda x, p, q, s: torch.take_along_dim(x, p[:, None, None], 2)), **whole)
    case("places made of the sequence", fn(lambda x, p, q, s: x.gather(2, x.mean(2).argmax(1)[:, None, None].expand(-1, CHANNELS, 1))), gather="whole values", any="whole values")
    case("channels made of the sequence", fn(lambda x, p, q, s: x.gather(1, x.argmax(1, keepdim=True))), gather="elementwise")
    case("row and place of the sequence", fn(lambda x, p, q, s: x[rows(x), :, x.mean(2).argmax(1)]), any="whole values")
    case("row and several positions", fn(lambda x, p, q, s: x[rows(x)[:, None], :, q]), **whole)
    case("row and a span from behind", fn(lambda x, p, q, s: x[rows(x)[:, None], :, -p[:, None] // 2 + torch.arange(-3, 0)]), **whole)
    case("row, channel and position", fn(lambda x, p, q, s: x[rows(x), p % CHANNELS - 2, p]), **whole)
    case("row, some channels and a position", fn(lambda x, p, q, s: x[rows(x)[:, None], torch.tensor([3, -1]), p[:, None]]), **whole)
    case("row, channel and a constant position", fn(lambda x, p, q, s: x[rows(x), p % CHANNELS, 7] + x[rows(x), p % CHANNELS, torch.tensor(-2)]), **whole, select="view|whole values")
    case("row and channel", fn(lambda x, p, q, s: x[rows(x), p % CHANNELS].relu()))
    case("row and two channels", fn(lambda x, p, q, s: x[rows(x)[:, None], q[:, :2] % CHANNELS].relu()))
    case("row and channel behind the positions", fn(lambda x, p, q, s: x.transpose(1, 2)[rows(x), :, p % CHANNELS].relu()))
    case("row and position of a line", fn(lambda x, p, q, s: x[:, 2][rows(x), p]), **whole)
    case("row and place of flattened", fn(lambda x, p, q, s: x.flatten(1)[rows(x), p * 2]), **whole)
    case("row and position of a mask", fn(lambda x, p, q, s: (x > 0)[rows(x), :, p].double()), only_double=True, _to_copy="whole values|elementwise", **whole)
    case("row and position of four axes", fn(lambda x, p, q, s: x.unflatten(1, (2, 3))[rows(x), 1, :, p]), **whole)
    case("row of whole values", fn(lambda x, p, q, s: x.softmax(2)[rows(x), :, p]), softmax="whole values", _softmax="whole values", **whole)
    case("after a pool", fn(lambda x, p, q, s: F.max_pool1d(x, 2)[rows(x), :, p // 3]), **whole)
    case("then a linear layer", fn(lambda m, x, p, q, s: m.fc(x.relu()[rows(x), :, p]), fc=lambda: nn.Linear(CHANNELS, 3)), **whole)


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(pick_cases)
