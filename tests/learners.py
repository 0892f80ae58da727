"Small quiet Learners, and a callback that watches them: what the tests of training share"
import os
import numpy as np, random, torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.optimizer import SGD, OptimWrapper
from fastai.test_utils import synth_learner
from fastai.torch_core import params
from fastcore.basics import noop, partial
from torch import nn

def cases(n):
    "How many cases hypothesis tries: `n`, and a hundred times as many with STRESS=1"
    return 100*n if os.environ.get('STRESS') else n

def quiet(learn):
    "`learn` without output"
    learn.logger,learn.create_mbar = noop,False
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn

def learner(n_iter=10, **kw):
    "A regression of two numbers, `n_iter` batches an epoch, always the same"
    torch.manual_seed(0)
    random.seed(0) # fastai shuffles by it
    return quiet(synth_learner(n_trn=n_iter, **kw))

def split(m): return [params(m[0]), params(m[1])]

def two_groups(n_iter=10, opt_func=SGD, **kw):
    "A net with two parameter groups"
    dls = learner(n_iter).dls
    return quiet(Learner(dls, nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1)), loss_func=MSELossFlat(), opt_func=opt_func, splitter=split, **kw))

adamw = partial(OptimWrapper, opt=torch.optim.AdamW)

def weights(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}

def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k].cpu(), b[k].cpu()) for k in a)

class Watch(Callback):
    "What the optimizer held at each batch trained, and what was there at each end of a cycle"
    order = 90
    def before_fit(self): self.batches,self.held,self.ends,self.rows,self.states = [],[],[],[],[]

    def after_loss(self):
        if not self.learn.training: return
        self.batches.append(self.learn.epoch*len(self.learn.dls.train) + self.learn.iter)
        self.held.append([dict(h) for h in self.learn.opt.hypers])

    def after_cycle(self):
        self.ends.append(self.learn.cycle_scheduler.cycle_stop)
        self.rows.append(len(self.learn.recorder.values))
        self.states.append(weights(self.learn))

    def curve(self, name='lr'):
        "Shape (batches, groups), or (batches,) for one group"
        res = np.array([[h[name] for h in o] for o in self.held])
        return res[:,0] if res.shape[1]==1 else res

class Cancel(Callback):
    "Raise `ex` in `event`, whenever `when(learn)` is true"
    def __init__(self, event, ex, when, order=0): self.at,self.ex,self.when,self.order = event,ex,when,order

    def __call__(self, event_name):
        if event_name==self.at and self.when(self.learn): raise self.ex()

class Script(Callback):
    "Overwrite a value of each epoch's row by what it is to be"
    order = 51
    def __init__(self, values, col=1): self.vals,self.col = values,col
    def after_epoch(self): self.learn.recorder.values[-1][self.col] = self.vals[self.learn.epoch]
