"""Compares Pick and Draw on the device with their definitions, on logits of whole vocabularies."""

import pytest

torch = pytest.importorskip("torch", reason="no PyTorch")
gpu_oracles = pytest.importorskip("gpu_oracles")

SIZES = [(1, 1), (3, 33), (2, 1025), (16, 32064), (4, 128256), (2, 151937), (64, 152064)]
NAN, INF = float("nan"), float("inf")


def logits_of(library, size, kind):
    if library.device != "cuda":
        pytest.skip("tokens are chosen on CUDA")
    logits = torch.randn(size, device=library.device) * 3
    return (logits.round() if kind == "ties" else logits).contiguous()


def chosen(library, logits, settings=None):
    token = torch.full((len(logits),), -7, dtype=torch.int32, device=logits.device)
    best = torch.zeros(len(logits), device=logits.device)
    if settings is None:
        library.pick(logits, token, best)
    else:
        library.draw(logits, settings, token, best)
    library.wait()
    return token.tolist(), best


@pytest.mark.parametrize("kind", ["plain", "ties"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_pick(library, seed, size, kind):
    logits = logits_of(library, size, kind)
    token, best = chosen(library, logits)
    assert torch.equal(best, logits.amax(1))
    # the lowest id of the largest
    assert token == [int((row == row.max()).nonzero()[0]) for row in logits]


@pytest.mark.parametrize("kind", ["plain", "ties"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_draw(library, seed, size, kind):
    logits = logits_of(library, size, kind)
    batch, vocab = size
    settings = torch.rand(batch, 4, dtype=torch.float64)
    settings[:, 0] = settings[:, 0] * 2 + 0.1
    settings[:, 1] = torch.tensor([0, 1, 50, vocab // 2, vocab])[torch.randint(0, 5, (batch,))]
    settings[:, 2][torch.rand(batch) < 0.3] = 1
    token, best = chosen(library, logits, settings.to(logits.device))
    assert torch.equal(best, logits.amax(1))
    for row in range(batch):
        first, last = gpu_oracles.draw(logits[row], *settings[row].tolist())
        assert first <= token[row] <= last, (row, settings[row].tolist())
    assert chosen(library, logits, settings.to(logits.device))[0] == token


def test_damaged_logits(library, seed):
    logits = logits_of(library, (4, 5000), "plain")
    logits[1, 7], logits[2, 4000], logits[3] = NAN, INF, -INF
    settings = torch.tensor([[1, 0, 1, 0.5]], dtype=torch.float64, device=logits.device).repeat(4, 1)
    for given in (None, settings):
        token, best = chosen(library, logits, given)
        assert token[1:] == [7, 4000, 0]
        assert torch.isnan(best[1])
        assert best[2:].tolist() == [INF, -INF]


def test_draw_captured_into_a_graph(library, seed):
    logits = logits_of(library, (4, 32064), "plain")
    settings = torch.tensor([[0.7, 50, 0.9, 0.3]], dtype=torch.float64, device=logits.device).repeat(4, 1)
    token = torch.zeros(4, dtype=torch.int32, device=logits.device)
    best = torch.zeros(4, device=logits.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        library.draw(logits, settings, token, best)
    for uniform in (0.1, 0.6, 0.95):
        settings[:, 3] = uniform
        graph.replay()
        library.wait()
        assert token.tolist() == chosen(library, logits, settings)[0]
