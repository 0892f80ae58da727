"""What a schedule costs a batch: ours, fastai's, torch's and timm's, for three parameter groups, lr only

Each side takes its turn in every round, so that all see the same machine; a figure is the median of the rounds. Targets: `at` below
every peer, and the whole callback at most a quarter of fastai's ParamScheduler. The result goes to RESULTS.md.
"""
import argparse, numpy as np, time, torch
from functools import partial
from statistics import median
from fastai.callback.core import _inner_loop
from fastai.callback.schedule import ParamScheduler, SchedCos, combine_scheds
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.optimizer import SGD
from fastai.test_utils import synth_learner
from fastai_clr.cycles import CycleScheduler
from fastai_clr.schedules import CosineRestarts, Triangular
from results import met, write_section
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR

LRS,N_ITER = (1e-4,1e-3,1e-2),100
COSINE,TRIANGLE = CosineRestarts(None, 10, 2, LRS),Triangular(None, 2, LRS)
MOST = .25 # The whole callback, as a part of ParamScheduler

def torch_opt(): return torch.optim.SGD([dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=o) for o in LRS], lr=LRS[-1], momentum=.9)

def peers():
    "Functions of the batch number, each one step of a peer's scheduler: cosine restarts, then triangles"
    cosine = CosineAnnealingWarmRestarts(torch_opt(), 10*N_ITER, 2)
    cyclic = CyclicLR(torch_opt(), [o/4 for o in LRS], list(LRS), 2*N_ITER, cycle_momentum=False)
    timm = CosineLRScheduler(torch_opt(), 10*N_ITER, cycle_mul=2, cycle_limit=1000, t_in_epochs=False)
    return {'torch CosineAnnealingWarmRestarts.step': lambda b: cosine.step(), 'torch CyclicLR.step': lambda b: cyclic.step(),
        'timm CosineLRScheduler.step_update': timm.step_update}

def in_training(cb, events):
    "A function of the batch number that sends `events` to callback `cb`, attached to a Learner of three groups that is in a fit"
    model = torch.nn.Sequential(*[torch.nn.Linear(1, 1, bias=False) for _ in LRS])
    learn = Learner(synth_learner().dls, model, loss_func=MSELossFlat(), opt_func=SGD, splitter=lambda m: [list(o.parameters()) for o in m], cbs=cb)
    learn.dls.train.n = N_ITER*learn.dls.train.bs
    learn.create_opt()
    learn.n_epoch,learn.training = 10**6,True
    cb('before_fit')
    def step(b):
        learn.epoch,learn.iter = divmod(b, N_ITER)
        learn.pct_train = b*1e-5%1
        for o in events: cb(o)
    return step

def param_scheduler():
    "fastai's own fit_sgdr schedules the lr so"
    return ParamScheduler({'lr': combine_scheds([.125,.25,.625], [SchedCos(np.array(LRS), 0) for _ in range(3)])})

def measure(sides, rounds, calls):
    "Median µs a call of each side; a round times each of them once, in turn"
    secs = {k:[] for k in sides}
    for r in range(rounds):
        for k,f in sides.items():
            start = time.perf_counter()
            for b in range(r*calls, (r+1)*calls): f(b)
            secs[k].append(time.perf_counter()-start)
    return {k: median(v)/calls*1e6 for k,v in secs.items()}

def table(us, ours):
    return '\n'.join(['| a batch | µs, median | times ours |', '|---|---|---|'] + [f'| {k} | {v:.2f} | {v/us[ours]:.2f} |' for k,v in us.items()])

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=21)
    p.add_argument('--calls', type=int, default=5000, help='calls a round')
    o = p.parse_args()
    torch.set_num_threads(1)
    ats = measure({'CosineRestarts.at': lambda b: COSINE.at(b, N_ITER), 'Triangular.at': lambda b: TRIANGLE.at(b, N_ITER), **peers()}, o.rounds, o.calls)
    both,every = ('before_batch','after_batch'),[e for e in _inner_loop if 'cancel' not in e]
    cbs = {f'{name}, {what}': in_training(cb(), events) for what,events in [('the two events it uses',both), ('all events of a batch',every)]
        for name,cb in [('CycleScheduler',partial(CycleScheduler, lr=COSINE)), ('ParamScheduler',param_scheduler)]}
    cbs = measure(cbs, o.rounds, o.calls//5)
    slowest,names = max(list(ats.values())[:2]),list(cbs)
    part = [cbs[a]/cbs[b] for a,b in (names[:2],names[2:])]
    ok = all(slowest<v for v in list(ats.values())[2:]),all(o<=MOST for o in part)
    write_section('The cost of a schedule', 'bench_schedules.py', f"""Three parameter groups, lr only, one thread, {o.rounds} rounds.

`at` below every peer: {met(ok[0])}. The peers' steps write the lrs into a torch optimizer besides; ours does that in the callback, below.

{table(ats, 'CosineRestarts.at')}

The whole callback at most {MOST} of ParamScheduler: {met(ok[1])} ({part[0]:.3f} of it for the two events, {part[1]:.3f} for all {len(every)} that fastai sends in a batch).

{table(cbs, names[0])}""")
