"""Heads by the hundred: `fit_grid` with one head against a bare PyTorch loop, and with 16 and 256 against one, and one after the other

Sides take turns in one run; figures are medians. On a GPU the bare loop is recorded as a CUDA graph, as ours is. Each part's result goes to RESULTS.md
by itself; `--only` picks one of them.
"""
import argparse, io, tempfile, warnings
from contextlib import redirect_stdout
import numpy as np, torch, torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai_clr.heads import _adam_hypers, _Data, _InTurn, _new_head, _order_of, _Setting, _Together, _train
from fastai_clr.schedules import CosineRestarts
from results import met, table, timed, turns, write_section
from torch import nn
from torch.utils.data import TensorDataset

LOOP = {64: 1.10, 256: 1.10, 1024: 1.10}
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
HEADS = {'linear 1,024→10': lambda: nn.Linear(1024, 10), '1,024→512→10': lambda: nn.Sequential(nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))}

def head_learner(tmp, make, n, bs):
    "The Learner of a head over `n` rows of 1,024 random numbers, as float32"
    g = torch.Generator().manual_seed(0)
    x,y = torch.randn(n+64, 1024, generator=g),torch.randint(10, (n+64,), generator=g)
    dls = DataLoaders.from_dsets(TensorDataset(x[:n], y[:n]), TensorDataset(x[n:], y[n:]), bs=bs, num_workers=0, device=DEVICE)
    learn = Learner(dls, nn.Sequential(nn.Identity(), nn.Sequential(make())), loss_func=CrossEntropyLossFlat(), path=tmp)
    with redirect_stdout(io.StringIO()): return learn.precompute(dtype='float32', check=False)

# One head against a bare loop

def bare_loop(head, bs, n_epoch):
    "Epochs on the same rows by as little code as they take"
    rows = head.dls.train.dataset
    x,y = rows.batch(torch.arange(len(rows), device=rows.y.device), True)
    def fit():
        model = _new_head(head.model, _Setting(1e-3, 0, None, None, 0)).to(DEVICE)
        opt = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=.01, fused=True)
        for epoch in range(n_epoch):
            idx = _order_of(len(x), 0, epoch)
            for i in range(0, len(x)//bs*bs, bs):
                b = idx[i:i+bs]
                F.cross_entropy(model(x.index_select(0, b)), y.index_select(0, b)).backward()
                opt.step()
                opt.zero_grad()
    return fit

def graphed_loop(head, bs, n_epoch):
    "The same, a step recorded as a CUDA graph"
    rows = head.dls.train.dataset
    x,y = rows.batch(torch.arange(len(rows), device=rows.y.device), True)
    def fit():
        model = _new_head(head.model, _Setting(1e-3, 0, None, None, 0)).to(DEVICE)
        opt = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3, device=DEVICE), weight_decay=.01, fused=True, capturable=True)
        b = torch.zeros(bs, dtype=torch.long, device=DEVICE)
        def step():
            F.cross_entropy(model(x.index_select(0, b)), y.index_select(0, b)).backward()
            opt.step()
            opt.zero_grad(set_to_none=False)
        side,graph = torch.cuda.Stream(),torch.cuda.CUDAGraph()
        with torch.cuda.stream(side):
            for _ in range(3): step()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph): step()
        for epoch in range(n_epoch):
            idx = _order_of(len(x), 0, epoch).to(DEVICE)
            for i in range(0, len(x)//bs*bs, bs):
                b.copy_(idx[i:i+bs])
                graph.replay()
    return fit

def our_loop(head, bs, n_epoch):
    "The loop of `fit_grid`, with one head"
    settings,adam = [_Setting(1e-3, .01, None, CosineRestarts(1, n_epoch), 0)],_adam_hypers(head)
    def fit():
        data = _Data(head, np.arange(len(head.dls.train.dataset)), bs)
        lrs = settings[0].lrs(data.n_iter, n_epoch*data.n_iter)[:,None]
        engine = (_Together if data.on_gpu else _InTurn)(head, [_new_head(head.model, settings[0])], settings, adam, lrs)
        _train(engine, data, n_epoch, warnings.warn, iter(()), ['one'])
    return fit

def bench_loop(o):
    res,n_epoch = [],10 if DEVICE=='cuda' else 1
    for what,make in HEADS.items():
        for bs,most in LOOP.items():
            with tempfile.TemporaryDirectory() as tmp:
                head = head_learner(tmp, make, o.rows//bs*bs, bs)
                sides = our_loop(head, bs, n_epoch),(graphed_loop if DEVICE=='cuda' else bare_loop)(head, bs, n_epoch)
                turns(1, *sides)
                a,b = turns(o.rounds, *sides)
                share = {'GB/s read': f'{2*4*1024*len(head.dls.train.dataset)*n_epoch/a/1e9:.0f}'} if DEVICE=='cuda' else {}
            res.append({'head': what, 'batch size': bs, 'ours, s': f'{a:.3f}', 'bare loop, s': f'{b:.3f}', 'ratio': f'{a/b:.3f}', 'at most': most, '': met(a/b<=most), **share})
            print(res[-1], flush=True)
    how = 'a step recorded as a CUDA graph on both sides; the rows are read, and written as a batch, in float32' if DEVICE=='cuda' else 'rows by `index_select` on both sides'
    write_section(f'One head without waiting, {DEVICE}', f'bench_heads.py --only loop --rows {o.rows} --rounds {o.rounds}', f"""The loop of `fit_grid` with one head and a schedule, against a bare PyTorch loop with a constant lr: {n_epoch} epoch{'s' if n_epoch>1 else ''} over {o.rows:,} rows of 1,024 numbers, torch's fused AdamW in the bare loop, {how}; {o.rounds} rounds. The validation set has no part in it.

{table(res)}""")

def bench_sync(o):
    "How often an epoch makes the host wait for the GPU, by torch's profiler"
    if DEVICE!='cuda': return print('the profile of waiting needs a GPU')
    res = []
    for n in (o.rows//4,o.rows):
        with tempfile.TemporaryDirectory() as tmp:
            fit = our_loop(head_learner(tmp, HEADS['linear 1,024→10'], n//o.bs*o.bs, o.bs), o.bs, 2)
            fit()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as prof: fit()
        counts = {e.key: e.count for e in prof.key_averages()}
        waits = {k: v for k,v in counts.items() if 'Synchronize' in k or k=='aten::_local_scalar_dense'}
        res.append({'batches': 2*(n//o.bs), 'replays of the recorded step': counts.get('cudaGraphLaunch', 0), 'waits of the host': sum(waits.values()), 'which': ', '.join(f'{k} {v}' for k,v in waits.items())})
        print(res[-1], flush=True)
    write_section('Waiting for the GPU', f'bench_heads.py --only sync --rows {o.rows}', f"""Two epochs of one linear head at batch size {o.bs}, from new weights to the losses, by torch's profiler: what waits must not grow with the batches: {met(res[0]['waits of the host']==res[1]['waits of the host'])}.

{table(res)}""")

# Many heads

def bench_grid(o):
    res = []
    for what,make in HEADS.items():
        with tempfile.TemporaryDirectory() as tmp:
            head = head_learner(tmp, make, o.rows, o.bs)
            def fit(k):
                with head.no_bar(), head.no_logging(): head.fit_grid(o.epochs, lr=np.geomspace(1e-4, 1e-2, k).tolist(), bs=o.bs)
            for k in o.heads:
                for f in (lambda: fit(1)),(lambda: fit(k)): timed(f)
                one,many = turns(o.rounds, lambda: fit(1), lambda: fit(k))
                most = {('cpu',16): 3, ('cuda',16): 1.5, ('cuda',256): 8}.get((DEVICE,k)) if DEVICE=='cuda' or what.startswith('linear') else None
                res.append({'head': what, 'heads': k, 'one, s': f'{one:.3f}', 'all, s': f'{many:.3f}', 'all ÷ one': f'{many/one:.2f}', 'at most': most or '',
                    '': met(many/one<=most) if most else '', 'one after the other ÷ all': f'{k*one/many:.1f}'})
                print(res[-1], flush=True)
    write_section(f'Many heads, {DEVICE}', f"bench_heads.py --only grid --rows {o.rows} --heads {' '.join(map(str, o.heads))} --rounds {o.rounds}", f"""The whole of `fit_grid`, with what it takes to choose the way, to score on the rows held out and to train the best again on all rows: {o.epochs} epochs over {o.rows:,} rows of 1,024 numbers, batch size {o.bs}, {o.rounds} rounds. *One after the other* is so many times the whole of a `fit_grid` with one head.

{table(res)}""")

PARTS = dict(loop=bench_loop, sync=bench_sync, grid=bench_grid)

if __name__=='__main__':
    warnings.simplefilter('ignore')
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', choices=PARTS)
    p.add_argument('--rows', type=int, default=40_000 if DEVICE=='cuda' else 20_000)
    p.add_argument('--bs', type=int, default=256)
    p.add_argument('--epochs', type=int, default=5 if DEVICE=='cuda' else 1)
    p.add_argument('--heads', type=int, nargs='+', default=[16,256])
    p.add_argument('--rounds', type=int, default=5)
    o = p.parse_args()
    for k,f in PARTS.items():
        if o.only in (None,k): f(o)
