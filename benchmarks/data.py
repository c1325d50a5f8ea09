"""Batches of documents: how long one takes to make and how much of it is learned from, beside torch's DataLoader.

    python -m benchmarks.data

100,000 documents of random bytes with log-normal lengths (204 tokens in the mean, 4,000 at most), rows of up to 2,048, 16 a batch.
Peer: torch.utils.data.DataLoader, shuffled, in this process, its collate function torch.nn.utils.rnn.pad_sequence, documents cut as ours are.
ratio: seconds for a learned token, ours / peer. fill: share of positions that are learned from.
"""

from __future__ import annotations

import itertools

import numpy as np

from benchmarks.timing import compare, save
from ember_ml.data import IGNORED, Documents, Packed, Padded, Windows

LENGTH, BATCH, BATCHES = 2048, 16, 20


def documents() -> Documents:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.0, 0.8, 100_000), 2, 4000).astype(np.int64)
    return Documents(rng.integers(0, 256, int(lengths.sum())).astype(np.uint8), lengths)


def loader(docs: Documents):
    import torch
    from torch.nn.utils.rnn import pad_sequence
    pieces = docs.pieces(LENGTH)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(pieces)

        def __getitem__(self, i):
            which, first, count = pieces[i]
            return torch.from_numpy(docs[which][first:first + count + 1].astype(np.int64))

    def collate(rows):
        return (pad_sequence([r[:-1] for r in rows], batch_first=True),
                pad_sequence([r[1:] for r in rows], batch_first=True, padding_value=IGNORED))

    torch.manual_seed(0)
    return torch.utils.data.DataLoader(Rows(), BATCH, shuffle=True, collate_fn=collate)


def share(batches) -> tuple[float, float]:
    """(share of positions that are learned from, such positions a batch)."""
    targets = [np.asarray(b[1]) for b in batches]
    learned = sum(int((y != IGNORED).sum()) for y in targets)
    return learned / sum(y.size for y in targets), learned / len(targets)


def main():
    docs = documents()
    peer = loader(docs)
    endless = itertools.chain.from_iterable(itertools.repeat(peer))          # a new epoch's shuffle is not paid by every round
    peer_fill, peer_learned = share(itertools.islice(endless, 100))
    rows = []
    for layout, source in (("packed", Packed(docs, LENGTH, BATCH)), ("padded", Padded(docs, LENGTH, BATCH)),
                           ("windows", Windows(docs.tokens, LENGTH, BATCH))):
        fill, learned = share(source.batch(i) for i in range(100))
        times = compare(lambda: [source.batch(i) for i in range(BATCHES)], lambda: list(itertools.islice(endless, BATCHES)), 21, 1)
        rows.append({"layout": layout, "ours_ms_a_batch": 1e3 * times["ours_s"] / BATCHES, "peer_ms_a_batch": 1e3 * times["peer_s"] / BATCHES,
                     "ratio": times["ratio"] * peer_learned / learned, "fill": fill, "peer_fill": peer_fill})
    save("data", rows)


if __name__ == "__main__":
    main()
