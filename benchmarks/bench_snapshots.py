"""Five models for the price of one: a long cosine, SGDR's last model, the ensemble of its snapshots and their average, at the same number of epochs

The demo's digits, and with `--data NAME=PATH` a folder of `train` and `valid`, scored on its `test` folder where there is one. Every network starts
from the same pretrained weights with a head trained on precomputed activations. Each cell (set, method, seed) is saved in `--cells`, and a run
that was broken off goes on where it stopped. `--only cost` measures what saving and resuming take.
"""
import argparse, json, tempfile, time, warnings
from pathlib import Path
from statistics import mean, median, stdev
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.data.transforms import get_image_files, parent_label
from fastai.metrics import error_rate
from fastai.torch_core import set_seed
from fastai_clr.resume import Resumable
from fastai_clr.snapshots import SnapshotSaver
from fastai_clr.all import demo_pictures, demo_weights, picture_dls, picture_learner
from results import met, timed, write_section

ARCH,LR = 'tf_efficientnet_lite0',1e-3

def make_learner(o, tmp, seed):
    "The network with its head trained, all of it to be trained on"
    set_seed(seed, reproducible=True)
    pictures = o.data.partition('=')[2] if o.data else demo_pictures(tmp/'pictures')
    dls = picture_dls(pictures, size=o.size, bs=64, flip=bool(o.data))
    learn = picture_learner(dls, ARCH, path=tmp, weights=demo_weights(tmp), metrics=error_rate, cbs=ChannelsLast())
    with learn.no_bar(), learn.no_logging(): learn.precompute(check=False).fit_sgdr(2, 1, 3e-3)
    learn.unfreeze()
    return learn,pictures

def test_dl(learn, pictures):
    "The set that is scored: `test`, or the validation set where there is none"
    if not Path(pictures, 'test').is_dir(): return learn.dls.valid,None
    files = get_image_files(Path(pictures, 'test'))
    return learn.dls.test_dl(files, num_workers=0),torch.tensor([learn.dls.vocab.o2i[parent_label(f)] for f in files])

def error(preds, targs): return float((preds.argmax(1)!=targs).float().mean())

def cells(o, tmp, seed):
    "Errors of one seed, by method; those that are saved are not trained again"
    res,lrs = {},None
    for method in 'cosine','sgdr':
        file = Path(o.cells)/f'{o.name}-{o.size}-{o.cycles}-{method}-{seed}.json'
        if not file.exists():
            learn,pictures = make_learner(o, tmp, seed)
            lrs = learn.group_lrs(LR, 3)
            set_seed(seed, reproducible=True)
            start = time.time()
            with learn.no_bar():
                if method=='cosine': learn.fit_sgdr(1, o.cycles, lrs)
                else: learn.fit_sgdr(o.cycles, 1, lrs, 1, snapshots=f'{o.name}-{seed}', overwrite=True)
            secs = time.time()-start
            with learn.no_bar(), learn.no_logging(): cell = dict(seconds=secs, **(score_cosine if method=='cosine' else score_sgdr)(learn, pictures, f'{o.name}-{seed}', o.cycles))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(cell))
        cell = json.loads(file.read_text())
        print(o.name, method, seed, cell, flush=True)
        res.update(cell, **{f'seconds of {method}': cell['seconds']})
    return res

def score_cosine(learn, pictures, name, n):
    dl,targs = test_dl(learn, pictures)
    preds,own = learn.get_preds(dl=dl)
    return {'one long cosine': error(preds, own if targs is None else targs)}

def score_sgdr(learn, pictures, name, n):
    "The last model, ensembles of the last so many, and the averages"
    dl,targs = test_dl(learn, pictures)
    preds,own = learn.get_preds(dl=dl)
    targs = own if targs is None else targs
    res = {'last model of SGDR': error(preds, targs)}
    for m in range(2, n+1): res[f'ensemble of the last {m}'] = error(learn.snapshot_preds(name, m, dl=dl)[0], targs)
    for m in range(2, n+1): res[f'mean weights of the last {m}'] = error(learn.average_snapshots(name, m).get_preds(dl=dl)[0], targs)
    return res

def bench_errors(o):
    with tempfile.TemporaryDirectory() as tmp: runs = [cells(o, Path(tmp), s) for s in o.seeds]
    names = [k for k in runs[0] if not k.startswith('seconds')]
    rows = '\n'.join(f"| {k} | {mean(r[k] for r in runs):.4f} | {f'{stdev(r[k] for r in runs):.4f}' if len(runs)>1 else '–'} | {', '.join(f'{r[k]:.4f}' for r in runs)} |" for k in names)
    best = min(names, key=lambda k: mean(r[k] for r in runs))
    ens,one,last = (mean(r[k] for r in runs) for k in (f'ensemble of the last {o.cycles}','one long cosine','last model of SGDR'))
    write_section(f'Snapshots on {o.name}', f"bench_snapshots.py{f' --data {o.name}=PATH' if o.data else ''} --size {o.size} --cycles {o.cycles} --seeds {' '.join(map(str, o.seeds))}",
f"""{ARCH}, {o.size} px, {o.cycles} epochs for each: one cosine of {o.cycles} epochs, against {o.cycles} cycles of one epoch; lr {LR:g} for the head, each group 3 times lower than the next. Error on {'`test`' if o.data and Path(o.data.partition('=')[2], 'test').is_dir() else 'the held-out fifth'}, by seed.

| method | mean error | standard deviation | seeds |
|---|---|---|---|
{rows}

The ensemble of all {o.cycles} snapshots {'beats' if ens<one else 'does not beat'} the one long cosine of the same cost ({ens:.4f} against {one:.4f}), and {'beats' if ens<last else 'does not beat'} SGDR's last model ({last:.4f}). The best on average: {best}.""")

# What it costs

class Clock(Callback):
    "Notes when each batch has come, where no checkpoint takes it along"
    order,times = -20,[]
    def before_batch(self): Clock.times.append(time.perf_counter())

class Halt(Callback):
    order = 99
    def after_batch(self):
        if self.epoch==1: raise KeyboardInterrupt()

def first_batch(learn, **kw):
    "Seconds from the call of a fit to its first batch"
    Clock.times,start = [],time.perf_counter()
    try: learn.fit_sgdr(3, 1, 1e-4, 1, cbs=[Clock(), Halt()], **kw)
    except KeyboardInterrupt: return Clock.times[0]-start

def bench_cost(o):
    with tempfile.TemporaryDirectory() as tmp:
        learn,_ = make_learner(o, Path(tmp), 0)
        saves,checks = timed_saves(SnapshotSaver, '_save'),timed_saves(Resumable, '_save')
        with learn.no_bar(), learn.no_logging():
            epoch = timed(lambda: learn.fit_sgdr(3, 1, 1e-4, 1, snapshots='s'))/3
            plain,_ = first_batch(learn),first_batch(learn, resume='r')
            again = [first_batch(learn, resume='r') for _ in range(5)]
        mb = [sum(f.stat().st_size for f in Path(tmp).rglob(p))/1e6 for p in ('cycle-000.pth','epoch-00000.pth')]
    save,check,go = median(saves),median(checks),median(again)-plain
    write_section(f'Cost of snapshots and checkpoints', f"bench_snapshots.py --only cost{f' --data {o.name}=PATH' if o.data else ''} --size {o.size}", f"""{ARCH}, {o.name}, {o.size} px, {len(learn.dls.train_ds):,} pictures an epoch; the whole network trains.

| | | target | |
|---|---|---|---|
| an epoch with its validation and snapshot | {epoch:.1f} s | | |
| saving a snapshot ({mb[0]:.1f} MB) | {save:.3f} s, {save/epoch:.2%} of the epoch | at most 2% | {met(save/epoch<=.02)} |
| writing a checkpoint ({mb[1]:.1f} MB) | {check:.3f} s, {check/epoch:.2%} of the epoch | | |
| resuming, up to the first batch, beyond a plain fit's first batch | {go:.2f} s | at most 5 s | {met(go<=5)} |""")

def timed_saves(cls, name):
    "A list to which the method's seconds will go"
    res,real = [],getattr(cls, name)
    setattr(cls, name, lambda self, *args: res.append(timed(lambda: real(self, *args))))
    return res

PARTS = dict(errors=bench_errors, cost=bench_cost)

if __name__=='__main__':
    warnings.simplefilter('ignore')
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', choices=PARTS, default='errors')
    p.add_argument('--data', metavar='NAME=PATH', help='a folder with train and valid, and perhaps test')
    p.add_argument('--size', type=int, default=64, help='pixels')
    p.add_argument('--cycles', type=int, default=5, help='of one epoch each')
    p.add_argument('--seeds', type=int, nargs='+', default=[0,1,2])
    p.add_argument('--cells', default='runs/bench_snapshots', help='folder of the results of single runs')
    o = p.parse_args()
    o.name = o.data.partition('=')[0] if o.data else 'digits'
    PARTS[o.only](o)
