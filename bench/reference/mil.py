"""PyTorch's values for mil: what each model makes of one bag, its loss, and the gradient of every parameter.

    python bench/reference/mil.py > mil/testdata/models.json    (requirements.txt)

Written from the papers and, for CLAM, DSMIL and TransMIL, from how their authors' modules are described there
(linear layers, topk, Conv2d with groups, the lucidrains form of Nyström attention), in float64. Weights are drawn
here and stand in the file. There is no dropout.
"""

import json
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
DIM, WIDTH, ATTEND, CLASSES, TILES, CLUSTER = 4, 6, 3, 3, 7, 2
LANDMARKS, HEADS, PINV, RESIDUAL = 4, 2, 6, 5
TRUTH = 1
rng = np.random.default_rng(20261127)


class Params(dict):
    def draw(self, name, rows, cols, scale=0.7):
        self[name] = torch.tensor(np.round(rng.normal(0, scale, (rows, cols)), 4), requires_grad=True)

    def dense(self, name, n, m, bias=True):
        self.draw(name + ".weight", n, m)
        if bias:
            self.draw(name + ".bias", 1, m)

    def apply(self, name, x):
        bias = self[name + ".bias"].reshape(-1) if name + ".bias" in self else None
        return F.linear(x, self[name + ".weight"].T, bias)

    def norm(self, name, d):
        self[name + ".weight"] = torch.tensor(np.round(rng.uniform(0.5, 1.5, (1, d)), 4), requires_grad=True)
        self.draw(name + ".bias", 1, d)

    def layer_norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self[name + ".weight"].reshape(-1), self[name + ".bias"].reshape(-1))


def cross_entropy(logits):
    return F.cross_entropy(logits.reshape(1, -1), torch.tensor([TRUTH]))


def embed(p, x):
    p.dense("hidden.0", DIM, WIDTH)
    return torch.relu(p.apply("hidden.0", x))


def attention(p, h, gated, heads):
    p.dense("attention.gate", WIDTH, ATTEND * (2 if gated else 1))
    p.dense("attention.score", ATTEND, heads)
    a = p.apply("attention.gate", h)
    a = torch.tanh(a[:, :ATTEND]) * torch.sigmoid(a[:, ATTEND:]) if gated else torch.tanh(a)
    return torch.softmax(p.apply("attention.score", a), 0)  # [n,heads]


def pooled(kind):
    def model(p, x, coords):
        h = embed(p, x)
        p.dense("classifier", WIDTH, CLASSES)
        if kind == "mean-instance":
            logits = torch.log(torch.softmax(p.apply("classifier", h), 1).mean(0))
        elif kind == "max-instance":
            logits = p.apply("classifier", h).max(0).values
        else:
            logits = p.apply("classifier", (h.mean(0) if kind == "mean" else h.max(0).values).reshape(1, -1))[0]
        return logits, cross_entropy(logits), None
    return model


def abmil(gated):
    def model(p, x, coords):
        h = embed(p, x)
        a = attention(p, h, gated, 1)
        p.dense("classifier", WIDTH, CLASSES)
        logits = p.apply("classifier", a.T @ h)[0]
        return logits, cross_entropy(logits), a
    return model


def smooth_top1(scores, truth):  # Berrada et al., k = 1, temperature 1, margin 1
    delta = 1 - F.one_hot(truth, scores.shape[1])
    return (torch.logsumexp(scores + delta, 1) - scores.gather(1, truth[:, None])[:, 0]).mean()


def clam(branches, exclusive, svm):
    def model(p, x, coords):
        h = embed(p, x)
        a = attention(p, h, True, CLASSES if branches else 1)
        p.dense("classifier", WIDTH, CLASSES)
        z = a.T @ h
        if branches:
            logits = torch.stack([(z[c] * p["classifier.weight"][:, c]).sum() + p["classifier.bias"][0, c] for c in range(CLASSES)])
        else:
            logits = p.apply("classifier", z)[0]
        p.dense("cluster", WIDTH, 2 * CLASSES)
        criterion = smooth_top1 if svm else F.cross_entropy
        total = 0
        for c in range(CLASSES):
            column = a[:, c if branches else 0]
            top = column.topk(CLUSTER).indices
            if c == TRUTH:
                ids = torch.cat([top, (-column).topk(CLUSTER).indices])
                truth = torch.tensor([1] * CLUSTER + [0] * CLUSTER)
            elif exclusive:
                ids, truth = top, torch.zeros(CLUSTER, dtype=torch.long)
            else:
                continue
            scores = p.apply("cluster", h[ids])[:, 2 * c:2 * c + 2]
            total = total + criterion(scores, truth)
        if exclusive:
            total = total / CLASSES
        return logits, 0.7 * cross_entropy(logits) + 0.3 * total, a
    return model


def dsmil(p, x, coords):
    h = embed(p, x)
    p.dense("instance", WIDTH, CLASSES)
    c = p.apply("instance", h)
    p.dense("query.0", WIDTH, ATTEND)
    p.dense("query.1", ATTEND, ATTEND)
    q = torch.tanh(p.apply("query.1", torch.relu(p.apply("query.0", h))))
    order = torch.sort(c, 0, descending=True).indices
    q_max = q[order[0]]
    a = torch.softmax(q @ q_max.T / math.sqrt(ATTEND), 0)
    b = a.T @ h  # [classes,width]
    p.dense("classifier", CLASSES * WIDTH, CLASSES)
    # a Conv1d over [classes,width] of that width is a linear layer of all of it
    kernel = p["classifier.weight"].T.reshape(CLASSES, CLASSES, WIDTH)
    bag = F.conv1d(b[None], kernel, p["classifier.bias"].reshape(-1)).reshape(-1)
    top = c.max(0).values
    logits = torch.log((torch.softmax(bag, 0) + torch.softmax(top, 0)) / 2)
    return logits, (cross_entropy(bag) + cross_entropy(top)) / 2, a


def pseudo_inverse(x):  # [heads,m,m]
    col, row = x.abs().sum(-1), x.abs().sum(-2)
    z = x.transpose(-1, -2) / (col.max() * row.max())
    eye = torch.eye(x.shape[-1])
    for _ in range(PINV):
        xz = x @ z
        z = 0.25 * z @ (13 * eye - xz @ (15 * eye - xz @ (7 * eye - xz)))
    return z


def nystrom(p, name, x):  # [1,n,width]; returns the attention matrix of each head, too
    p.norm(name + ".norm", WIDTH)
    p.dense(name + ".qkv", WIDTH, 3 * WIDTH, bias=False)
    p.draw(name + ".conv", RESIDUAL, HEADS)
    p.dense(name + ".out", WIDTH, WIDTH)
    n, dh = x.shape[0], WIDTH // HEADS
    y = p.layer_norm(name + ".norm", x)
    pad = (LANDMARKS - n % LANDMARKS) % LANDMARKS
    y = F.pad(y, (0, 0, pad, 0))
    q, k, v = [t.reshape(-1, HEADS, dh).transpose(0, 1) for t in p.apply(name + ".qkv", y).chunk(3, -1)]
    q = q * dh ** -0.5
    stretch = math.ceil(n / LANDMARKS)
    ql, kl = [t.reshape(HEADS, LANDMARKS, stretch, dh).sum(2) / stretch for t in (q, k)]
    to, among, fro = torch.softmax(q @ kl.transpose(1, 2), -1), torch.softmax(ql @ kl.transpose(1, 2), -1), torch.softmax(ql @ k.transpose(1, 2), -1)
    inverse = pseudo_inverse(among)
    out = (to @ inverse) @ (fro @ v)
    taps = p[name + ".conv"].T.reshape(HEADS, 1, RESIDUAL, 1)
    out = out + F.conv2d(v[None], taps, padding=(RESIDUAL // 2, 0), groups=HEADS)[0]
    out = p.apply(name + ".out", out.transpose(0, 1).reshape(-1, WIDTH))
    return x + out[-n:], (to @ inverse @ fro)[:, pad:, pad:]


def transmil(p, x, coords):
    h = embed(p, x)
    side = math.ceil(math.sqrt(len(h)))
    h = torch.cat([h, h[:side * side - len(h)]])
    p.draw("token", 1, WIDTH)
    h = torch.cat([p["token"], h])
    h, _ = nystrom(p, "layer1", h)
    image = h[1:].T.reshape(1, WIDTH, side, side)
    out = image
    for k in (7, 5, 3):
        p.draw(f"ppeg.{k}.weight", k * k, WIDTH, 0.2)
        p.draw(f"ppeg.{k}.bias", 1, WIDTH)
        taps = p[f"ppeg.{k}.weight"].T.reshape(WIDTH, 1, k, k)
        out = out + F.conv2d(image, taps, p[f"ppeg.{k}.bias"].reshape(-1), padding=k // 2, groups=WIDTH)
    h = torch.cat([h[:1], out.reshape(WIDTH, -1).T])
    h, weights = nystrom(p, "layer2", h)
    p.norm("norm", WIDTH)
    p.dense("classifier", WIDTH, CLASSES)
    logits = p.apply("classifier", p.layer_norm("norm", h[:1]))[0]
    return logits, cross_entropy(logits), weights[:, 0, 1:1 + len(x)].mean(0).reshape(-1, 1)


def odd_size(last):
    size = max(last + 1, 5)
    size += size % 2 == 0
    size += 2 if size // 2 % 2 == 0 else 0
    return size


def sparse(p, x, coords):
    h = embed(p, x)
    site = torch.as_tensor(coords - coords.min(0)) // 100
    w, hgt = odd_size(int(site[:, 0].max())), odd_size(int(site[:, 1].max()))
    index = site[:, 1] * w + site[:, 0]
    total = torch.zeros(hgt * w, WIDTH).index_add(0, index, h)
    count = torch.zeros(hgt * w).index_add(0, index, torch.ones(len(h)))
    dense = (total / count.clamp(min=1)[:, None]).T.reshape(1, WIDTH, hgt, w)
    mask = (count > 0).reshape(1, 1, hgt, w).double()
    down = (F.max_pool2d(mask, 3, 2) > 0).double()

    def taps(name):
        p.draw(name, 9 * WIDTH, WIDTH, 0.3)
        return p[name].reshape(3, 3, WIDTH, WIDTH).permute(3, 2, 0, 1)

    def norm(name, m, mask):
        p.norm(name, WIDTH)
        return p.layer_norm(name, m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * mask

    y = torch.relu(norm("block1.conv1.norm", F.conv2d(dense, taps("block1.conv1.weight"), stride=2), down))
    y = norm("block1.conv2.norm", F.conv2d(y, taps("block1.conv2.weight"), padding=1) * down, down)
    p.dense("block1.shortcut", WIDTH, WIDTH, bias=False)
    short = F.avg_pool2d(dense, 3, 2)
    short = F.conv2d(short, p["block1.shortcut.weight"].T[:, :, None, None])
    y = torch.relu(y + norm("block1.shortcut.norm", short, down))
    z = torch.relu(norm("block2.conv1.norm", F.conv2d(y, taps("block2.conv1.weight"), padding=1) * down, down))
    z = norm("block2.conv2.norm", F.conv2d(z, taps("block2.conv2.weight"), padding=1) * down, down)
    y = torch.relu(z + y)
    p.dense("classifier", WIDTH, CLASSES)
    logits = p.apply("classifier", (y.sum((2, 3)) / down.sum()).reshape(1, -1))[0]
    return logits, cross_entropy(logits), None


cases = []
for name, model, settings in [
    ("mean", pooled("mean"), {}), ("max", pooled("max"), {}), ("mean-instance", pooled("mean-instance"), {}), ("max-instance", pooled("max-instance"), {}),
    ("abmil", abmil(False), {}), ("gated", abmil(True), {}),
    ("clam-sb", clam(False, False, True), {"exclusive": False, "svm": True}), ("clam-sb", clam(False, True, False), {"exclusive": True, "svm": False}),
    ("clam-mb", clam(True, True, True), {"exclusive": True, "svm": True}),
    ("dsmil", dsmil, {}), ("transmil", transmil, {}), ("sparse", sparse, {}),
]:
    x = np.round(rng.normal(0, 1, (TILES, DIM)), 4)
    places = rng.permutation(20)[:TILES]
    coords = np.stack([places % 5, places // 5], 1) * 100
    coords[0], coords[1] = [0, 0], [100, 100]
    p = Params()
    logits, loss, weights = model(p, torch.as_tensor(x), coords)
    loss.backward()
    cases.append({
        "model": name, **settings, "x": x.ravel().tolist(), "coords": coords.ravel().tolist(), "loss": loss.item(),
        "p": torch.softmax(logits, 0).tolist(), "attention": None if weights is None else weights.detach().ravel().tolist(),
        "params": {k: v.detach().ravel().tolist() for k, v in p.items()},
        "gradients": {k: [float(f"{g:.9g}") for g in v.grad.ravel().tolist()] for k, v in p.items()},
    })
json.dump({"dim": DIM, "width": WIDTH, "attend": ATTEND, "classes": CLASSES, "truth": TRUTH, "cluster": CLUSTER, "landmarks": LANDMARKS,
           "heads": HEADS, "pinv": PINV, "residual": RESIDUAL, "torch": torch.__version__, "cases": cases}, sys.stdout)
