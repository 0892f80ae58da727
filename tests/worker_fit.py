"One of the processes of `test_processes`: it fits Learners together with the others, and writes what it saw as JSON"
import json, os, random, sys, torch
from pathlib import Path
from fastai.callback.core import Callback, CancelEpochException
from fastai.data.core import DataLoaders, TfmdDL
from fastai.distributed import DistributedDL
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.optimizer import SGD
from fastai.test_utils import RegModel
from fastai.torch_core import num_distrib, rank_distrib
from fastai_clr import fit, lr_range, precompute # Patch Learner; chkstyle: ignore
from fastai_clr.cycles import SGDR, CycleScheduler
from fastai_clr.schedules import CosineRestarts, StepDecay, Triangular
from torch import nn
from torch.utils.data import TensorDataset
from learners import Cancel, Watch, quiet

CR,bs = CosineRestarts,16
chain,endless = CR(2, .8, lr_max=.05).warmup(.7, .001),CR(1, .6, lr_max=.05).then(StepDecay(.01, .5, 1))
stop = Cancel('after_batch', CancelEpochException, lambda o: (o.epoch,o.iter)==(0,3), 99)

def sgdr(*args, **kw): return lambda o,cbs: o.fit_sgdr(*args, cbs=cbs, **kw)

# By name: how many items, the schedule of the lr, and the fit
fits = dict(whole=(160, CR(2, 1, 2, .05), sgdr(2, 1, .05)), half=(160, CR(3, .5, 1, .05), sgdr(3, .5, .05, 1)),
    fraction=(160, CR(3, .7, 1.3, .05, 1e-4, .5, .3), sgdr(3, .7, .05, 1.3, lr_min=1e-4, cycle_decay=.5, warmup_pct=.3)),
    odd=(112, CR(2, 1.2, 1, .05), sgdr(2, 1.2, .05, 1)), ragged=(117, CR(2, 1.2, 1, .05), sgdr(2, 1.2, .05, 1)), one=(16, CR(3, 1, 1, .05), sgdr(3, 1, .05, 1)),
    later=(160, CR(3, 1, 1, .05), sgdr(3, 1, .05, 1, start_epoch=1)), patience=(160, CR(9, 1, 1, 1e-9), sgdr(9, 1, 1e-9, 1, patience=2, snapshots='run')),
    cancelled=(160, CR(4, .5, 1, .05), lambda o,cbs: o.fit_sgdr(4, .5, .05, 1, [*cbs, stop])),
    clr=(144, Triangular(2, .4, .05), lambda o,cbs: o.fit_clr(2, .4, .05, cbs=cbs)), schedule=(144, chain, lambda o,cbs: o.fit_schedule(3, cbs, lr=chain)),
    endless=(144, endless, lambda o,cbs: o.fit_schedule(2, cbs, lr=endless)),
    callback=(144, CR(None, .75, 1, .05), lambda o,cbs: o.fit(2, cbs=[SGDR(.05, .75), *cbs])),
    scheduler=(144, CR(2, .75, 1, .05), lambda o,cbs: o.fit(2, cbs=[CycleScheduler(lr=CR(2, .75, 1, .05)), *cbs])))
# The same where incomplete batches are dropped
dropping = dict(all=(128, CR(2, 1.5, 1, .05), sgdr(2, 1.5, .05, 1)), rest=(112, CR(2, 1, 1, .05), sgdr(2, 1, .05, 1)))
# Refused: how many items, whether incomplete batches are dropped, and the fit
errors = dict(length=(160, False, lambda o: o.fit_schedule(2, lr=CR(3))), cycle=(144, False, lambda o: o.fit_sgdr(2, .09)),
    groups=(160, False, lambda o: o.fit_clr(2, lr_max=[.1,.2])), none=(8, True, lambda o: o.fit_sgdr(2)), share=(24, True, lambda o: o.fit_sgdr(2)))

def broadcast(self, t, rank):
    "In place of `DistributedDL._broadcast`, which goes by `.cuda()` as nccl has it; gloo takes tensors where they are"
    t = torch.LongTensor(t)
    torch.distributed.broadcast(t, rank)
    return t.tolist()

def make(n, path, drop_last=False):
    "A regression of two numbers on `n` items; each process would shuffle them its own way, but that rank 0 says how"
    torch.manual_seed(0)
    random.seed(rank_distrib())
    x = torch.randn(n, 1)
    y = 2*x + 3 + .1*torch.randn(n, 1)
    dls = DataLoaders(TfmdDL(TensorDataset(x, y), bs=bs, shuffle=True, drop_last=drop_last, num_workers=0),
        TfmdDL(TensorDataset(x[:32], y[:32]), bs=bs, num_workers=0))
    return quiet(Learner(dls, RegModel(), loss_func=MSELossFlat(), opt_func=SGD, path=path))

class Seen(Watch):
    "And what each batch held, and where in its cycle it was"
    def before_fit(self):
        super().before_fit()
        self.xs,self.ys,self.places = [],[],[]

    def after_loss(self):
        super().after_loss()
        if not self.learn.training: return
        self.xs.append(self.learn.x.flatten().tolist())
        self.ys.append(self.learn.y.flatten().tolist())
        cs = self.learn.cycle_scheduler
        self.places.append([cs.cycle, cs.cycle_batch, cs.is_last_batch])

def numbers(learn): return [p.item() for p in learn.model.parameters()]

def fitted(path, n, f, drop_last=False):
    learn,seen = make(n, path, drop_last),Seen()
    before = numbers(learn)
    with learn.distrib_ctx(sync_bn=False, cpu=True): f(learn, [seen])
    rec = learn.recorder
    return dict({k:getattr(seen, k) for k in ('batches','ends','rows','xs','ys','places')}, lrs=[h[0]['lr'] for h in seen.held], hps=rec.hps['lr'],
        n_epoch=learn.n_epoch, before=before, after=numbers(learn), values=[list(o) for o in rec.values], stopped=getattr(rec, 'stopped', None))

def refused(path, n, drop_last, f):
    "What it says, what is left behind, and how many batches the next fit trains"
    learn,error = make(n, path, drop_last),None
    before,n_cbs = numbers(learn),len(learn.cbs)
    with learn.distrib_ctx(sync_bn=False, cpu=True):
        try: f(learn)
        except ValueError as e: error = str(e)
        left = dict(weights=numbers(learn)!=before, cbs=len(learn.cbs)-n_cbs-1, began=hasattr(learn.recorder, 'values'))
        learn.dls = make(64, path).dls
        learn.fit_sgdr(1, 1, .05)
    return dict(left, error=error, trained=len(learn.recorder.losses))

class Rows(Callback):
    "The activations of each batch trained"
    def before_fit(self): self.xs = []
    def after_loss(self):
        if self.learn.training: self.xs.append(self.learn.x.flatten().tolist())

def head(path):
    "Both ask for the activations at once; one makes them, and both train the head together"
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    random.seed(rank_distrib())
    x = torch.arange(96.)[:,None]
    dls = DataLoaders(*(TfmdDL(TensorDataset(x[:n], x[:n]/96), bs=bs, shuffle=n==96, num_workers=0) for n in (96,32)))
    learn = quiet(Learner(dls, nn.Sequential(nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1))), loss_func=MSELossFlat(), opt_func=SGD, path=path))
    for p,v in zip(learn.model[0].parameters(), (1.,0.)): p.data.fill_(v)
    head,rows = learn.precompute(dtype='float32'),Rows()
    with head.distrib_ctx(sync_bn=False, cpu=True): head.fit(3, 1e-5, cbs=rows)
    stores = sorted(o.name for o in (path/'activations').iterdir() if o.is_dir())
    return dict(xs=rows.xs, after=numbers(learn), values=[list(o) for o in head.recorder.values], stores=stores)

def tested(path, sweep=None):
    "A fit, after sweeps of which nothing is left: what they said, and the weights at the end"
    learn,said = make(160, path),None
    with learn.distrib_ctx(sync_bn=False, cpu=True):
        before = numbers(learn)
        if sweep: said = sweep(learn)
        kept = numbers(learn)==before
        learn.fit_sgdr(2, 1, .05, 1)
    return dict(said=said, kept=kept, after=numbers(learn), losses=[float(o) for o in learn.recorder.losses])

def sweeps(learn):
    r = learn.lr_range_test(every=1, show_plot=False)
    part = learn.lr_range_test(1e-3, .1, every=2, valid_pct=.5, show_plot=False)
    return [list(r[:2]), *(o.curve.fillna(-1).to_dict('list') for o in (r,part)), learn.lr_suggestions(2, 30, show_plot=False).losses[:,:5].tolist(),
        learn.group_lr_find(30, show_plot=False).curves[0][1].tolist()]

def broken_off(learn):
    "Both processes stop at the same batch of the sweep"
    count = iter(range(10**6))
    try:
        with learn.added_cbs(Cancel('after_batch', KeyboardInterrupt, lambda o: next(count)==7)): learn.lr_range_test(lr_max=.1, every=2, show_plot=False)
    except KeyboardInterrupt: return 'stopped'

def main(path, *names):
    "It ends without tidying up, while gloo's threads still run: now and then that aborts a process"
    DistributedDL._broadcast,rank = broadcast,rank_distrib()
    res = {k:fitted(path/k, n, f) for k,(n,_,f) in fits.items() if not names or k in names}
    if not names:
        res['head'] = head(path/'head')
        res['swept'] = [tested(path/'swept', o) for o in (None,sweeps,broken_off)]
        res.update({k:fitted(path/k, n, f, True) for k,(n,_,f) in dropping.items()})
        res.update({k:refused(path/k, *o) for k,o in errors.items()})
    (path/f'{rank}.json').write_text(json.dumps(dict(res, how=[num_distrib(),torch.distributed.get_backend()])), encoding='utf-8')
    torch.distributed.barrier()
    os._exit(0)

if __name__=='__main__': main(Path(sys.argv[1]), *sys.argv[2:])
