"""A step of slide-level self-supervision in PyTorch on this CPU, one thread, to measure Coverslip against.

    python pretrain_peer.py SITES.json

The aggregator of Giga-SSL (two blocks of sparse convolutions, 256 to 512) with projector and NT-Xent, Adam. There
is no sparse convolution in PyTorch: rows are gathered, multiplied and added by index, as people write it. SITES
holds the sites of the input, of the halved maps, and for every offset of the kernel which rows meet.

Waits for a line before every run, takes STEPS steps, prints {"images": steps, "cpu_seconds": …, "values": [loss]}.
"""

import json
import resource
import sys

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
what = json.load(open(sys.argv[1]))
IN, WIDTH, STEPS = 256, 512, what["steps"]


def cpu_seconds():
    u = resource.getrusage(resource.RUSAGE_SELF)
    return u.ru_utime + u.ru_stime


def rules(pairs):
    return [(torch.tensor(i), torch.tensor(o)) for i, o in pairs]


half, same = rules(what["half"]), rules(what["same"])
sites, halved = what["sites"], what["halved"]
bag = torch.tensor(what["bag"])  # of each halved site
bags = int(bag.max()) + 1
counts = torch.bincount(bag, minlength=bags)[:, None]


class Conv(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, cin, cout) / (9 * cin) ** 0.5)

    def forward(self, x, book, rows):
        out = x.new_zeros(rows, self.weight.shape[2])
        for k, (i, o) in enumerate(book):
            if len(i) == rows == len(x):  # the centre of a kernel that keeps its sites
                out = out + x @ self.weight[k]
            elif len(i):
                out = out.index_add(0, o, x[i] @ self.weight[k])
        return out


class Block(nn.Module):
    def __init__(self, cin, halves):
        super().__init__()
        self.halves = halves
        self.conv1, self.conv2 = Conv(cin, WIDTH), Conv(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH)
        if halves:
            self.short, self.norm = nn.Linear(cin, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)

    def forward(self, x):
        rest = x
        if self.halves:
            pooled = x.new_zeros(halved, x.shape[1])
            for i, o in half:
                pooled = pooled.index_add(0, o, x[i] / 9)
            rest = self.norm(self.short(pooled))
        y = torch.relu(self.norm1(self.conv1(x, half if self.halves else same, halved)))
        return torch.relu(self.norm2(self.conv2(y, same, halved)) + rest)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(IN, True), Block(WIDTH, False))
        self.projector = nn.Sequential(nn.Linear(WIDTH, 512), nn.ReLU(), nn.BatchNorm1d(512), nn.Linear(512, 512), nn.ReLU(), nn.BatchNorm1d(512), nn.Linear(512, 256))

    def forward(self, x):
        h = self.blocks(x)
        return self.projector(h.new_zeros(bags, WIDTH).index_add(0, bag, h) / counts)


net = Network()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
x = torch.randn(sites, IN)


def step():
    u = F.normalize(net(x), dim=1)
    s = u @ u.T / 0.05
    s.fill_diagonal_(float("-inf"))
    loss = F.cross_entropy(s, (torch.arange(bags) + bags // 2) % bags)
    adam.zero_grad()
    loss.backward()
    adam.step()
    return loss.item()


step()
print(json.dumps({"images": 0}), flush=True)
for _ in sys.stdin:
    before = cpu_seconds()
    losses = [step() for _ in range(STEPS)]
    print(json.dumps({"images": STEPS, "cpu_seconds": cpu_seconds() - before, "values": losses[-1:]}), flush=True)
