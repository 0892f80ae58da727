"One of the processes of `test_processes` that train a model with `resume`, some of which are killed; it writes what it saw as JSON"
import json, os, random, signal, sys, torch
from pathlib import Path
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, TfmdDL
from fastai.distributed import DistributedDL
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.torch_core import num_distrib, rank_distrib
from fastai_clr import fit # Patches Learner; chkstyle: ignore
from torch import nn
from torch.utils.data import TensorDataset
from learners import quiet
from worker_fit import broadcast

class Tally(Callback):
    "What this process has seen, in order"
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append(float(self.x.sum()))

class Kill(Callback):
    "This process, at a batch of an epoch"
    order,_not_resumed = 90,('at',)
    def __init__(self, at): self.at = at
    def after_step(self):
        if [self.epoch, self.iter]==self.at: os.kill(os.getpid(), signal.SIGKILL)

def make(path):
    "Each process shuffles, and drops, by random numbers of its own"
    torch.manual_seed(0)
    random.seed(rank_distrib())
    x = torch.randn(96, 4)
    dls = DataLoaders(*(TfmdDL(TensorDataset(x[:n], x[:n].sum(1, keepdim=True)), bs=8, shuffle=n==96, num_workers=0) for n in (96,32)))
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.3), nn.Linear(8, 1))
    learn = quiet(Learner(dls, model, loss_func=MSELossFlat(), path=path))
    torch.manual_seed(rank_distrib())
    return learn

def run(path, rank, epoch, batch, n_cycles=3):
    learn = make(path)
    at = [epoch,batch] if rank==rank_distrib() else None
    tally = Tally()
    with learn.distrib_ctx(sync_bn=False, cpu=True):
        try: learn.fit_sgdr(n_cycles, 2, .05, 1, cbs=[tally, Kill(at)], resume='night', snapshots='night')
        except ValueError as e: return dict(error=str(e))
    rec,weights = learn.recorder,[v.flatten().tolist() for v in learn.model.state_dict().values()]
    return dict(error=None, seen=tally.seen, weights=weights, values=[list(o) for o in rec.values], losses=[float(o) for o in rec.losses],
        snapshots=len(learn.snapshots('night')))

def main(path, name, *args):
    DistributedDL._broadcast = broadcast
    res = dict(run(path, *map(int, args)), n=num_distrib())
    (path/f'{name}-{rank_distrib()}.json').write_text(json.dumps(res), encoding='utf-8')
    torch.distributed.barrier()
    os._exit(0)

if __name__=='__main__': main(Path(sys.argv[1]), *sys.argv[2:])
