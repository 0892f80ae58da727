"A fit with checkpoints and snapshots, for processes that are killed"
import os, random, resource, signal, warnings
import numpy as np, torch
from pathlib import Path
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastcore.basics import noop
from torch import nn
from fastai_clr import fit # Patches Learner; chkstyle: ignore

EPOCHS = 6

class Items:
    def __len__(self): return 60
    def __getitem__(self, i): return torch.tensor([i/60, random.random(), np.random.rand(), torch.rand(1).item()]),torch.tensor(i%3)

def make(path, seed):
    "A Learner as a script makes it, with its seed; one that goes on from a checkpoint needs none"
    torch.set_num_threads(1)
    for f in (torch.manual_seed,random.seed,np.random.seed): f(0)
    dls = DataLoaders(DataLoader(Items(), bs=6, shuffle=True, num_workers=0), DataLoader(Items(), bs=20, num_workers=0))
    model = nn.Sequential(nn.Linear(4, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Dropout(.3), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=path)
    learn.logger,learn.create_mbar = noop,False
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    if any(path.rglob('epoch-*.json')):
        for f in (torch.manual_seed,random.seed,np.random.seed): f(seed)
    return learn

def kill_me(): os.kill(os.getpid(), signal.SIGKILL)

def half_written(n):
    "`torch.save` that dies in the middle of the `n`th file"
    real,count = torch.save,[0]
    def save(o, f, *args, **kw):
        count[0] += 1
        real(o, f, *args, **kw)
        if count[0]<n: return
        b = Path(f).read_bytes()
        Path(f).write_bytes(b[:len(b)//2])
        kill_me()
    torch.save = save

def work(path, pipe, seed, at=None, limit=None):
    "Train, or go on training; tell of each epoch, and what comes out. `limit`: the largest file that the system lets it write, in bytes"
    warnings.simplefilter('ignore')
    learn = make(Path(path), seed)
    if at is not None: half_written(at)
    if limit is not None: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    real = learn._do_epoch
    def epoch():
        real()
        pipe.send(('epoch', learn.epoch))
    learn._do_epoch = epoch
    pipe.send(('start', 0))
    learn.fit_sgdr(EPOCHS, 1, 1e-2, 1, cbs=GradientAccumulation(13), resume='r', snapshots='s', keep=3)
    pipe.send(('end', result(learn)))

def result(learn):
    "All of it as bytes and numbers"
    rec = learn.recorder
    ws = {k: v.numpy().tobytes() for k,v in learn.model.state_dict().items()}
    return ws,str(learn.opt.state_dict()),[list(map(float, o)) for o in rec.values],[float(o) for o in rec.losses],torch.rand(1).item()
