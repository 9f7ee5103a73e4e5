"""MIL in PyTorch on this CPU, one thread, to measure Coverslip against.

    python mil_peer.py step                  gated attention (Ilse et al., equation 9) on a bag of 2000 x 512,
                                             hidden 128, two classes, Adam
    python mil_peer.py classic DIR FOLDS     the five classic sets: on each the fold of FOLDS.json, gated attention
                                             behind layers of 256, 128 and 64, bags one by one, as people write it

Waits for a line before every run, does it, and prints {"images": steps, "cpu_seconds": …, "values": […]}.
"""

import csv
import gzip
import json
import pathlib
import resource
import sys

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)


def cpu_seconds():
    u = resource.getrusage(resource.RUSAGE_SELF)
    return u.ru_utime + u.ru_stime


class Gated(nn.Module):
    def __init__(self, dim, hidden, attend, dropout, classes=2):
        super().__init__()
        layers, width = [], dim
        for w in hidden:
            layers += [nn.Linear(width, w), nn.ReLU(), nn.Dropout(dropout)]
            width = w
        self.layers = nn.Sequential(*layers)
        self.v, self.u, self.w = nn.Linear(width, attend), nn.Linear(width, attend), nn.Linear(attend, 1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x):
        h = self.layers(x)
        a = torch.softmax(self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h))), 0)
        return self.classifier(a.T @ h)


def step():
    net, loss = Gated(512, [], 128, 0), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    bags = [torch.randn(2000, 512) for _ in range(2)]

    def run(epochs=25):
        for _ in range(epochs):
            for y, x in enumerate(bags):
                optimizer.zero_grad()
                loss(net(x), torch.tensor([y])).backward()
                optimizer.step()
        return epochs * len(bags), []

    run(2)
    return run


def read(path):
    bags, names, labels = [], [], []
    with gzip.open(path, "rt") as f:
        rows = csv.reader(f)
        next(rows)
        for row in rows:
            if not names or names[-1] != row[0]:
                names.append(row[0])
                labels.append(int(row[1]))
                bags.append([])
            bags[-1].append(row[2:])
    return [np.array(b, np.float32) for b in bags], labels


def classic():
    folds = json.load(open(sys.argv[3]))
    sets = {name: read(pathlib.Path(sys.argv[2]) / f"{name}.csv.gz") for name in folds["test"]}

    def run():
        steps, accuracy = 0, []
        for name, test in folds["test"].items():
            bags, labels = sets[name]
            train = [i for i in range(len(bags)) if i not in set(test)]
            rows = np.concatenate([bags[i] for i in train])
            mean, sd = rows.mean(0), rows.std(0)
            sd[sd == 0] = 1
            x = [torch.from_numpy((b - mean) / sd) for b in bags]
            y = [torch.tensor([v]) for v in labels]
            net, loss = Gated(rows.shape[1], [256, 128, 64], 64, folds["dropout"]), nn.CrossEntropyLoss()
            optimizer = torch.optim.SGD(net.parameters(), lr=folds["lr"], momentum=0.9, weight_decay=folds["weight_decay"])
            for _ in range(folds["epochs"]):
                np.random.shuffle(train)
                for i in train:
                    optimizer.zero_grad()
                    loss(net(x[i]), y[i]).backward()
                    optimizer.step()
                    steps += 1
            net.eval()
            with torch.no_grad():
                accuracy.append(float(np.mean([net(x[i]).argmax().item() == labels[i] for i in test])))
        return steps, accuracy

    return run


run = {"step": step, "classic": classic}[sys.argv[1]]()
print(json.dumps({"ready": torch.__version__}), flush=True)
for _ in sys.stdin:
    before = cpu_seconds()
    steps, values = run()
    print(json.dumps({"images": steps, "cpu_seconds": cpu_seconds() - before, "values": values}), flush=True)
