"""Writes the golden values of slidessl/objective: losses and gradients of PyTorch, in float64, of small random
networks with the projectors, averages, queues and centres of each method.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python objectives.py > ../../slidessl/objective/testdata/golden.json

Weights stand as [in,out]. Each loss is written from its paper with PyTorch's own functions.
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
rng = np.random.default_rng(20261127)
DIM, HIDDEN, OUT = 6, 7, 5


def draw(*shape, scale=1.0, shift=0.0):
    """Numbers that float32 and the file hold alike."""
    return torch.tensor(np.round(rng.normal(shift, scale, shape), 3).astype(np.float32).astype(np.float64))


class Net:
    """Parameters by name, and layers that use them."""

    def __init__(self):
        self.learned, self.kept = {}, {}

    def mlp(self, name, widths, kept=False):
        to = self.kept if kept else self.learned
        for i in range(1, len(widths)):
            layer = f"{name}.{i}"
            to[layer + ".weight"] = draw(widths[i - 1], widths[i], scale=0.6)
            to[layer + ".bias"] = draw(1, widths[i], scale=0.3)
            if i < len(widths) - 1:
                to[layer + ".norm.weight"] = draw(1, widths[i], scale=0.2, shift=1)
                to[layer + ".norm.bias"] = draw(1, widths[i], scale=0.2)
                to[layer + ".norm.running_mean"] = draw(1, widths[i], scale=0.2)
                to[layer + ".norm.running_var"] = draw(1, widths[i], scale=0.1, shift=1).abs()

    def get(self, name):
        return self.learned[name] if name in self.learned else self.kept[name]

    def run(self, name, x, layers, norm_first=False):
        for i in range(1, layers + 1):
            layer = f"{name}.{i}"
            x = F.linear(x, self.get(layer + ".weight").t(), self.get(layer + ".bias").flatten())
            if i < layers:
                norm = lambda x: F.batch_norm(x, self.get(layer + ".norm.running_mean").view(-1), self.get(layer + ".norm.running_var").view(-1),
                                              self.get(layer + ".norm.weight").flatten(), self.get(layer + ".norm.bias").flatten(), training=True)
                x = F.relu(norm(x)) if norm_first else norm(F.relu(x))
        return x


def unit(x):
    return F.normalize(x, dim=1)


def sizes(b, x):
    """Views of one size pass the norms together."""
    parts = [x[: b["global"] * b["slides"]], x[b["global"] * b["slides"] :]]
    return [p for p in parts if len(p)]


def apart(b, x):
    return list(x.split(b["slides"]))


def split(b, z):
    return list(z.split(b["slides"]))


def ordered(b):
    return [(w, v) for w in range(b["views"]) for v in range(b["global"]) if v != w]


def unordered(b):
    return [(v, w) for v in range(b["global"]) for w in range(v + 1, b["views"])]


def project(net, parts, name="projector"):
    return torch.cat([net.run(name, p, 3) for p in parts])


def large(b, x):
    return x[: b["global"] * b["slides"]]


def growing(b, m):
    return 1 - (1 - m) * (math.cos(math.pi * b["step"] / b["steps"]) + 1) / 2


def follow(net, m):
    """Averages after the step; running statistics are their own."""
    for name, p in list(net.kept.items()):
        of = name.removeprefix("average.")
        if of != name and "running" not in name:
            net.kept[name] = m * p + (1 - m) * net.learned[of].detach()


def average(net, widths):
    net.mlp("average.projector", widths, kept=True)


def simclr(net, b, h, t):
    z = split(b, project(net, sizes(b, h)))
    losses = []
    for v, w in unordered(b):
        u = unit(torch.cat([z[v], z[w]]))
        s = (u @ u.t() / 0.05).fill_diagonal_(-math.inf)
        n = b["slides"]
        losses.append(F.cross_entropy(s, torch.cat([torch.arange(n, 2 * n), torch.arange(n)])))
    return torch.stack(losses).mean(), None


def moco(net, b, h, t):
    q = [unit(z) for z in split(b, project(net, apart(b, h)))]
    with torch.no_grad():
        k = [unit(z) for z in split(b, project(net, apart(b, large(b, t)), "average.projector"))]
    queue, of = net.kept["queue.keys"], net.kept["queue.of"].flatten()
    losses = []
    for w, v in ordered(b):
        negative = q[w] @ queue.t()
        if b["ids"] is not None:
            negative = negative.masked_fill(torch.tensor(b["ids"])[:, None] == of[None], -math.inf)
        logits = torch.cat([(q[w] * k[v]).sum(1, keepdim=True), negative], 1) / 0.2
        losses.append(F.cross_entropy(logits, torch.zeros(b["slides"], dtype=torch.long)))

    def after():
        follow(net, 0.999)
        at, n = int(net.kept["queue.at"]), b["slides"]
        net.kept["queue.keys"][at : at + n] = k[0]
        net.kept["queue.of"][0, at : at + n] = torch.tensor(b["ids"] if b["ids"] is not None else [-1] * n)
        net.kept["queue.at"][0, 0] = (at + n) % len(queue)

    return torch.stack(losses).mean(), after


def byol(net, b, h, t):
    z = project(net, apart(b, h))
    p = [net.run("predictor", x, 2, norm_first=True) for x in split(b, z)]
    with torch.no_grad():
        t = split(b, project(net, apart(b, large(b, t)), "average.projector"))
    losses = [(2 - 2 * F.cosine_similarity(p[w], t[v], dim=1)).mean() for w, v in ordered(b)]
    return 2 * torch.stack(losses).mean(), lambda: follow(net, growing(b, 0.996))


def sinkhorn(scores, epsilon=0.05, rounds=3):
    q = torch.exp(scores / epsilon).t()
    k, n = q.shape
    q /= q.sum()
    for _ in range(rounds):
        q /= q.sum(1, keepdim=True)
        q /= k
        q /= q.sum(0, keepdim=True)
        q /= n
    return (q * n).t()


def swav(net, b, h, t):
    z = unit(project(net, sizes(b, h)))
    scores = split(b, z @ net.learned["prototypes"].t())
    total = 0
    for v in range(b["global"]):
        with torch.no_grad():
            q = sinkhorn(scores[v])
        others = [w for w in range(b["views"]) if w != v]
        total = total + sum(-(q * F.log_softmax(scores[w] / 0.1, 1)).sum(1).mean() for w in others) / len(others)

    def after():
        net.learned["prototypes"] = unit(net.learned["prototypes"].detach())

    return total / b["global"], after


def barlow(net, b, h, t):
    z = split(b, project(net, apart(b, h)))
    losses = []
    for v, w in unordered(b):
        norm = lambda x: F.batch_norm(x, None, None, training=True)
        c = norm(z[v]).t() @ norm(z[w]) / b["slides"]
        on = (torch.diagonal(c) - 1).pow(2).sum()
        off = c.pow(2).sum() - torch.diagonal(c).pow(2).sum()
        losses.append(on + 0.005 * off)
    return torch.stack(losses).mean(), None


def vicreg(net, b, h, t):
    z = split(b, project(net, apart(b, h)))

    def variance(x):
        return F.relu(1 - torch.sqrt(x.var(0) + 1e-4)).mean() / 2

    def covariance(x):
        c = torch.cov(x.t())
        return (c - torch.diag(torch.diagonal(c))).pow(2).sum() / x.shape[1]

    losses = [25 * F.mse_loss(z[v], z[w]) + 25 * (variance(z[v]) + variance(z[w])) + covariance(z[v]) + covariance(z[w]) for v, w in unordered(b)]
    return torch.stack(losses).mean(), None


def dino(net, b, h, t):
    student = split(b, unit(project(net, sizes(b, h))) @ unit(net.learned["prototypes"]).t())
    with torch.no_grad():
        scores = unit(project(net, [large(b, t)], "average.projector")) @ unit(net.kept["average.prototypes"]).t()
        warm = b["steps"] // 10
        sharp = np.interp(b["step"], [0, warm], [0.04, 0.07])
        teacher = split(b, F.softmax((scores - net.kept["centre"]) / sharp, 1))
    losses = [-(teacher[v] * F.log_softmax(student[w] / 0.1, 1)).sum(1).mean() for w, v in ordered(b)]

    def after():
        follow(net, growing(b, 0.996))
        net.kept["centre"] = 0.9 * net.kept["centre"] + 0.1 * scores.mean(0, keepdim=True)

    return torch.stack(losses).mean(), after


def relic(net, b, h, t):
    o = [unit(z) for z in split(b, project(net, apart(b, h)))]
    with torch.no_grad():
        t = [unit(z) for z in split(b, project(net, apart(b, large(b, t)), "average.projector"))]
    losses = []
    for w in range(b["views"]):
        for v in range(b["global"]):
            s = o[w] @ t[v].t() / 0.3
            p, q = F.log_softmax(s, 1), F.log_softmax(s.t(), 1)
            losses.append(F.cross_entropy(s, torch.arange(len(s))) + 5 * F.kl_div(q, p.detach(), log_target=True, reduction="batchmean"))
    return torch.stack(losses).mean(), lambda: follow(net, growing(b, 0.996))


def supcon(net, b, h, t):
    u = unit(project(net, sizes(b, h)))
    label = torch.tensor([l if l >= 0 else -1 - i for i, l in enumerate(b["labels"])]).repeat(b["views"])
    self = torch.eye(len(u), dtype=torch.bool)
    positive = (label[:, None] == label[None]) & ~self
    log = F.log_softmax((u @ u.t() / 0.1).masked_fill(self, -math.inf), 1)
    return -(log.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean(), None


def trex(net, b, h, t):
    z = unit(project(net, sizes(b, unit(h))))
    with torch.no_grad():
        k = project(net, [unit(large(b, t))], "average.projector")[: b["slides"]]
    of = net.kept["queue.of"].flatten().long()
    there = sorted(set(of.tolist()) - {-1})
    w = unit(torch.stack([net.kept["queue.keys"][of == c].mean(0) for c in there])) if there else None
    label = torch.tensor(b["labels"]).repeat(b["views"])
    rows = [i for i, l in enumerate(label.tolist()) if l in there]
    loss = F.cross_entropy(z[rows] @ w.t() / 0.1, torch.tensor([there.index(label[i]) for i in rows])) if rows else 0 * z.mean()

    def after():
        follow(net, 0.999)
        for i, l in enumerate(b["labels"]):
            if l >= 0:
                at = int(net.kept["queue.at"])
                net.kept["queue.keys"][at], net.kept["queue.of"][0, at] = k[i], l
                net.kept["queue.at"][0, 0] = (at + 1) % len(of)

    return loss, after


def case(name, loss, slides, views, large, ids=None, labels=None, step=3, steps=200, options=None, predictor=False, averaged=False, prototypes=0,
         queue=0, filled=None, at=0):
    net, widths = Net(), [DIM, HIDDEN, HIDDEN, OUT]
    net.mlp("projector", widths)
    options = dict(options or {}, Layers=3, Hidden=HIDDEN, Out=OUT)
    if predictor:
        net.mlp("predictor", [OUT, HIDDEN, OUT])
        options["Predictor"] = HIDDEN
    if averaged:
        average(net, widths)
    if prototypes:
        net.learned["prototypes"] = draw(prototypes, OUT)
        options["Prototypes"] = prototypes
    if name == "dino":
        net.kept["average.prototypes"] = draw(prototypes, OUT)
        net.kept["centre"] = draw(1, prototypes, scale=0.1)
    if queue:
        net.kept["queue.keys"] = draw(queue, OUT)
        net.kept["queue.of"] = torch.tensor([filled], dtype=torch.float64) if filled else -torch.ones(1, queue)
        net.kept["queue.at"] = torch.tensor([[float(at)]])
        options["Queue"] = queue
    b = {"slides": slides, "views": views, "global": large, "ids": ids, "labels": labels, "step": step, "steps": steps}
    h, t = draw(slides * views, DIM), draw(slides * views, DIM)

    def put(d):
        return {k: [float(f"{x:.9g}") for x in v.flatten().tolist()] for k, v in d.items()}

    out = {"objective": name, "options": options, **b, "h": put({"h": h})["h"], "target": put({"t": t})["t"], "params": put(net.learned), "state": put(net.kept)}
    h.requires_grad_()
    learn = [k for k in net.learned if "running" not in k]
    for k in learn:
        net.learned[k].requires_grad_()
    value, after = loss(net, b, h, t)
    grads = torch.autograd.grad(value, [h] + [net.learned[k] for k in learn], allow_unused=True)
    zero = lambda g, p: torch.zeros_like(p) if g is None else g
    out["loss"] = value.item()
    out["grads"] = put({k: zero(g, p) for k, g, p in zip(["h"] + learn, grads, [h] + [net.learned[k] for k in learn])})
    with torch.no_grad():
        if after:
            after()
    # what a step changes: running statistics, and what the method keeps
    out["after"] = put({k: v.detach() for k, v in {**net.learned, **net.kept}.items() if "running" in k or k in net.kept or name == "swav" and k == "prototypes"})
    return out


labels = [0, 1, -1, 0, 2, 1]
print(json.dumps([
    case("simclr", simclr, 6, 2, 2),
    case("simclr", simclr, 5, 4, 2),
    case("moco", moco, 6, 2, 2, averaged=True, queue=12, at=6),
    case("moco", moco, 6, 3, 2, ids=[4, 0, 7, 9, 2, 3], averaged=True, queue=12, filled=[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, -1]),
    case("byol", byol, 6, 2, 2, averaged=True, predictor=True),
    case("byol", byol, 5, 4, 2, averaged=True, predictor=True, step=150),
    case("swav", swav, 6, 2, 2, prototypes=8),
    case("swav", swav, 6, 4, 2, prototypes=4),
    case("barlow", barlow, 6, 2, 2),
    case("barlow", barlow, 6, 3, 2),
    case("vicreg", vicreg, 6, 2, 2),
    case("vicreg", vicreg, 6, 3, 3),
    case("dino", dino, 6, 2, 2, prototypes=9, averaged=True),
    case("dino", dino, 5, 4, 2, prototypes=9, averaged=True, step=120),
    case("relic", relic, 6, 2, 2, averaged=True),
    case("relic", relic, 6, 3, 2, averaged=True, step=150),
    case("supcon", supcon, 6, 2, 2, labels=labels),
    case("supcon", supcon, 6, 3, 2, labels=labels),
    case("trex", trex, 6, 2, 2, labels=labels, averaged=True, queue=12, filled=[0, 0, 1, 2, 1, 1, 0, 2, -1, -1, -1, -1], at=8),
    case("trex", trex, 6, 4, 1, labels=labels, averaged=True, queue=12, filled=[0, 0, 1, 0, 1, 1, -1, -1, -1, -1, -1, -1], at=6),
]))
