"`cycles`: what the optimizer holds at each batch, when a cycle ends, and what is refused"
import copy, math, numpy as np, pickle, pytest, torch
from contextlib import nullcontext
from fastai.callback.core import (Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelStepException, CancelTrainException,
    CancelValidException)
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import ParamScheduler, SchedLin
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, ShortEpochCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.optimizer import SGD, Adam, ranger
from fastai_clr import fit # Patches Learner; chkstyle: ignore
from fastai_clr.cycles import CLR, SGDR, CycleScheduler, batches_per_epoch, check_scheds, cycle_hypers, peak_lrs
from fastai_clr.schedules import CosineRestarts, ExpDecay, InverseTimeDecay, Linear, StepDecay, Triangular
from fastcore.basics import partial
from fastcore.foundation import L
from learners import Cancel, Watch, adamw, learner, same, split, two_groups, weights
from torch.amp import GradScaler, autocast
from torch.utils.data import DataLoader as TorchDL, IterableDataset, SubsetRandomSampler, TensorDataset

optimizers = dict(sgd=partial(SGD, mom=.9), adam=Adam, ranger=ranger, adamw=adamw)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
CR = CosineRestarts
lr2,mom2 = CosineRestarts(2, lr_max=.01, lr_min=1e-3),CosineRestarts(2, lr_max=.8, lr_min=.9)

# What the optimizer holds

@pytest.mark.parametrize('opt', optimizers)
def test_held(opt):
    "Per-group lrs and a momentum the other way round, batch for batch"
    learn,watch = two_groups(7, optimizers[opt]),Watch()
    lr = CosineRestarts(3, .5, 2, (1e-3,1e-2), 1e-5, .5, .25)
    mom = CosineRestarts(3, .5, 2, .85, .95, 1., .25)
    learn.fit(4, cbs=[CycleScheduler(lr=lr, mom=mom), watch])
    assert np.array_equal(watch.curve(), lr.values(7))
    assert np.array_equal(watch.curve('mom')[:,0], mom.values(7)) and np.array_equal(watch.curve('mom')[:,1], mom.values(7))
    assert learn.recorder.hps.keys()=={'lr','mom'}
    assert np.array_equal(learn.recorder.hps['lr'], lr.values(7)[:,-1]) and np.array_equal(learn.recorder.hps['mom'], mom.values(7))
    assert np.array_equal(learn.recorder.lrs, lr.values(7)[:,-1])

@pytest.mark.parametrize('sched', [Triangular(2, 1, 1e-2), Triangular(3, .7, (1e-3,1e-2), mode='triangular2'), ExpDecay(1e-2, .5),
    CosineRestarts(2, 1.3, lr_max=(.1,.2)), StepDecay((1e-2,1e-3), .5, 2, 5)])
def test_held_by_any_schedule(sched):
    learn,watch = two_groups(9),Watch()
    n = int(np.ceil(sched.n_epochs or 3))
    learn.fit(n, cbs=[CycleScheduler(lr=sched), watch])
    assert np.array_equal(np.squeeze(watch.curve()[:,:1]), np.reshape(sched.values(9, None if sched.n_epochs else 27), (len(watch.batches),-1))[:,0])
    assert watch.batches==list(range(len(watch.batches)))

chains = dict(cosine=CosineRestarts(2, .8, 1.5, (1e-3,1e-2)).warmup(1), groups=CosineRestarts(2, lr_max=.01).warmup(.5, (0.,1e-3)),
    triangle=Triangular(1, 1, (.1,.2), mode='triangular2').warmup(.3, .001), cut=CosineRestarts(1, 1.3, lr_max=.01).then(StepDecay((.01,.001), .5, 1, 1.5)),
    between=CosineRestarts(1, lr_max=.01).then(Linear(0., .02, .5)).then(CosineRestarts(1, 1.5, lr_max=.02)), line=Linear((1e-3,0.), (0.,1e-2), 3))

@pytest.mark.parametrize('opt', optimizers)
@pytest.mark.parametrize('name', chains)
def test_held_by_chains(opt, name):
    "Of schedules one after another too, each group has its own at each batch"
    sched,learn,watch = chains[name],two_groups(7, optimizers[opt]),Watch()
    learn.fit(math.ceil(sched.n_epochs), cbs=[CycleScheduler(lr=sched), watch])
    want = sched.values(7)
    assert np.array_equal(watch.curve(), want if want.ndim==2 else np.stack([want]*2, 1)) and watch.batches==list(range(sched.n_batches(7)))
    assert np.array_equal(learn.recorder.hps['lr'], watch.curve()[:,-1]) and watch.ends==sched.bounds(7)[1:]

def test_warmup_in_numbers():
    learn,watch = learner(4),Watch()
    learn.fit(2, cbs=[CycleScheduler(lr=CosineRestarts(1, lr_max=.4).warmup(1)), watch])
    assert watch.curve()==pytest.approx([0,.1,.2,.3, .4, .4*(2+math.sqrt(2))/4, .2, .4*(2-math.sqrt(2))/4])

everything = dict(lr=CosineRestarts(2, 1, 1, (1e-3,1e-2)).warmup(1), mom=Linear((.95,.8), (.8,.9), 3), wd=StepDecay((.1,.2), .5, 1),
    eps=ExpDecay((1e-5,1e-6), .1), sqr_mom=Linear((.9,.99), (.99,.999), 3))

@pytest.mark.parametrize('opt', ['adam','ranger','adamw'])
def test_held_of_everything(opt):
    "Every hyper-parameter that the optimizer has, per group"
    learn,watch = two_groups(5, optimizers[opt]),Watch()
    learn.fit(3, cbs=[CycleScheduler(**everything), watch])
    assert learn.recorder.hps.keys()==everything.keys() and watch.ends==[10,15]
    for k,s in everything.items():
        assert np.array_equal(watch.curve(k), s.values(5, 15)), k
        assert np.array_equal(learn.recorder.hps[k], s.values(5, 15)[:,-1]), k

def test_torch_has_what_was_set():
    "Under the names that torch has for them"
    learn = two_groups(5, adamw)
    learn.fit(3, cbs=CycleScheduler(**everything))
    for i,g in enumerate(learn.opt.opt.param_groups):
        held = {k:s.at(14, 5)[i] for k,s in everything.items()}
        assert (g['lr'],g['betas'],g['weight_decay'],g['eps'])==(held['lr'], (held['mom'],held['sqr_mom']), held['wd'], held['eps'])

class Keep(Callback):
    "Keep what was trained on"
    run_valid = False
    def before_fit(self): self.bs = []
    def before_batch(self): self.bs.append((*self.xb,*self.yb))

def test_weights_are_those_of_torch_by_hand():
    "AdamW with a warm-up, a lr and a weight decay a group"
    learn,keep,sched = two_groups(5, adamw),Keep(),CosineRestarts(2, 1, 1, (1e-3,1e-2)).warmup(1)
    decay = StepDecay((.1,.2), .5, 1)
    model = pickle.loads(pickle.dumps(learn.model))
    opt = torch.optim.AdamW([{'params': o} for o in split(model)], lr=1.)
    learn.fit(3, cbs=[CycleScheduler(lr=sched, wd=decay), keep])
    assert len(keep.bs)==15
    for b,(x,y) in enumerate(keep.bs):
        for i,g in enumerate(opt.param_groups): g['lr'],g['weight_decay'] = sched.at(b, 5)[i],decay.at(b, 5)[i]
        torch.nn.functional.mse_loss(model(x).view(-1), y.view(-1)).backward()
        opt.step()
        opt.zero_grad()
    for p,q in zip(model.parameters(), learn.model.parameters()): assert torch.allclose(p, q, rtol=1e-5)

def test_weights_are_those_of_a_plain_loop():
    "SGD by hand, with torch's CosineAnnealingWarmRestarts"
    learn = learner(5)
    learn.opt_func = SGD
    model = pickle.loads(pickle.dumps(learn.model))
    opt = torch.optim.SGD(model.parameters(), lr=.05)
    sched = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, 5, 2)
    keep = Keep()
    learn.fit(3, cbs=[CycleScheduler(lr=CosineRestarts(2, 1, 2, .05)), keep])
    for x,y in keep.bs:
        torch.nn.functional.mse_loss(model(x).view(-1), y.view(-1)).backward()
        opt.step()
        opt.zero_grad()
        sched.step()
    assert torch.allclose(model.a, learn.model.a, rtol=1e-5) and torch.allclose(model.b, learn.model.b, rtol=1e-5)

@pytest.mark.parametrize('n_acc', [16,40,1000])
def test_gradient_accumulation(n_acc):
    learn,watch = learner(6),Watch()
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), watch, GradientAccumulation(n_acc)])
    assert np.array_equal(watch.curve(), lr2.values(6)) and watch.ends==[6,12]

@pytest.mark.parametrize('every', [1,2,3])
@pytest.mark.parametrize('cycle_len', [.5,.7])
def test_gradient_accumulation_by_hand(every, cycle_len):
    "Each step has the lr of its own batch, also where cycles end inside epochs"
    learn,keep,watch,sched = learner(10),Keep(),Watch(),CosineRestarts(3, cycle_len, lr_max=.05)
    learn.opt_func = SGD
    model = pickle.loads(pickle.dumps(learn.model))
    opt = torch.optim.SGD(model.parameters(), lr=1.)
    learn.fit(math.ceil(sched.n_epochs), cbs=[CycleScheduler(lr=sched), keep, watch, GradientAccumulation(16*every)])
    for b,(x,y) in enumerate(keep.bs):
        (torch.nn.functional.mse_loss(model(x).view(-1), y.view(-1))/every).backward()
        if (b+1)%every: continue
        opt.param_groups[0]['lr'] = sched.at(b, 10)
        opt.step()
        opt.zero_grad()
    assert watch.ends==sched.bounds(10)[1:] and len(keep.bs)==sched.n_batches(10) and np.array_equal(watch.curve(), sched.values(10))
    assert torch.allclose(model.a, learn.model.a, rtol=1e-5) and torch.allclose(model.b, learn.model.b, rtol=1e-5)

@pytest.mark.parametrize('start_epoch', [1,2,3])
def test_start_epoch(start_epoch):
    learn,watch,sched = learner(4),Watch(),CosineRestarts(2, 1, 2, .01)
    learn.fit(3, cbs=[CycleScheduler(lr=sched), watch], start_epoch=start_epoch)
    assert np.array_equal(watch.curve() if watch.held else [], sched.values(4)[4*start_epoch:])
    assert watch.ends==([] if start_epoch==3 else [12])

def test_one_batch_an_epoch():
    learn,watch,sched = learner(1),Watch(),CosineRestarts(3, 1, 2, .01)
    learn.fit(7, cbs=[CycleScheduler(lr=sched), watch])
    assert np.array_equal(watch.curve(), sched.values(1)) and watch.ends==[1,3,7]

def test_cycle_of_one_batch():
    learn,watch = learner(4),Watch()
    learn.fit(1, cbs=[CycleScheduler(lr=CosineRestarts(4, .25, lr_max=.01)), watch])
    assert watch.curve()==pytest.approx([.01]*4) and watch.ends==[1,2,3,4]

# The end of a cycle

@pytest.mark.parametrize('cycle_len,mult,n_cycles,n_epoch,rows', [(1,1,3,3,[1,2,3]), (2,1,2,4,[2,4]), (1,2,3,7,[1,3,7]), (.5,1,4,2,[0,1,1,2]),
    (1.3,1,2,3,[1,2]), (.1,1,20,2,[0]*9+[1]*10+[2])])
def test_after_cycle(cycle_len, mult, n_cycles, n_epoch, rows):
    "Once a cycle; at the end of an epoch the recorder has its row already"
    learn,watch,sched = learner(10),Watch(),CosineRestarts(n_cycles, cycle_len, mult, .01)
    learn.fit(n_epoch, cbs=[CycleScheduler(lr=sched), watch])
    assert watch.ends==sched.bounds(10)[1:] and watch.rows==rows

up,peak = Linear(0., .01, .5),CR(1, lr_max=.01)

@pytest.mark.parametrize('sched,n_epoch,ends', [(CR(2, lr_max=.01).warmup(1),3,[20,30]), (CR(2, .5, lr_max=.01).warmup(.3),2,[8,13]),
    (CR(None, lr_max=.01).warmup(.5),3,[15,25]), (Triangular(2, .5, .01).warmup(.5, 1e-3),3,[15,25]), (peak.then(up).then(peak),3,[10,25]),
    (Linear(0., .1).then(Linear(.1, .01)).then(peak),3,[30]), (peak.then(StepDecay(.01)),3,[10]), (peak.then(Linear(.01, .001)),2,[10,20]),
    (Linear(0., .1),1,[10]), (Linear(0., .1).then(Linear(.1, .01)),2,[20])])
def test_after_cycle_of_chains(sched, n_epoch, ends):
    "A warm-up is no cycle of its own: it is the beginning of the next one"
    learn,watch,seen = learner(10),Watch(),[]
    def see(self): seen.append((self.learn.cycle_scheduler.cycle, self.learn.cycle_scheduler.cycle_start))
    learn.fit(n_epoch, cbs=[CycleScheduler(lr=sched), watch, Callback(after_cycle=see)])
    assert watch.ends==ends and seen==list(enumerate([0,*ends[:-1]]))

class Places(Callback):
    "What the scheduler says of itself, by event"
    order,run_valid = 99,False
    def before_fit(self): self.got = dict(before_batch=[], after_loss=[], after_batch=[])

    def __call__(self, event_name):
        super().__call__(event_name)
        if not self.learn.training or event_name not in self.got: return
        o = self.learn.cycle_scheduler
        self.got[event_name].append((o.cycle, o.cycle_batch, o.cycle_start, o.cycle_stop, o.is_last_batch))

@pytest.mark.parametrize('sched,n_epoch', [(CR(3, .5, 1, .01),2), (CR(2, .7, 2, .01).warmup(.3),3), (CR(1, .6, 1, .01).then(StepDecay(.01)),2), (ExpDecay(.01, 1),2),
    (Triangular(None, .7, .01),3)])
def test_places(sched, n_epoch):
    "The cycle, the batch in it, its bounds, and whether it is the last: at each batch, from its beginning to its end"
    learn,places = learner(10),Places()
    learn.fit(n_epoch, cbs=[CycleScheduler(lr=sched), places])
    n = sched.n_batches(10) or 10*n_epoch
    want = [(k, b-start, start, stop, b+1==stop) for b,(k,start,stop) in ((b,sched.cycle_at(b, 10)) for b in range(n))]
    ends = places.got['after_batch']
    assert places.got['before_batch']==places.got['after_loss']==want and ends==want[:len(ends)] and len(ends)>=n-1

def test_cycle_without_end():
    learn,places = learner(3),Places()
    learn.fit(2, cbs=[CycleScheduler(lr=StepDecay(.1)), places])
    assert places.got['after_batch'][-1]==(0,5,0,math.inf,False)

def test_last_batch_for_later_callbacks():
    "Where the fit ends inside an epoch, the last batch ends for all callbacks, as each other one does"
    places = Places()
    learner(10).fit_sgdr(1, 1.5, cbs=places)
    assert len(places.got['after_batch'])==15

@pytest.mark.parametrize('cycle_len', [1.3,.25,1.95])
def test_last_cycle_ends_inside_an_epoch(cycle_len):
    "The rest of the epoch is skipped, and it is validated and recorded as a whole one"
    learn,watch,sched = learner(10, metrics=lambda x,y: (x-y).abs().mean()),Watch(),CosineRestarts(1, cycle_len, lr_max=.01)
    n = sched.n_batches(10)
    n_epoch = -(-n//10)
    learn.fit(n_epoch, cbs=[CycleScheduler(lr=sched), watch])
    rec = learn.recorder
    assert watch.batches==list(range(n)) and watch.ends==[n] and len(rec.losses)==n
    assert [len(o) for o in rec.values]==[3]*n_epoch and len(rec.values[-1])==len(rec.metric_names)-2
    assert rec.values[-1][0]==pytest.approx(float(rec.losses[-1])) and rec.values[-1][1]==pytest.approx(learn.validate()[0])

def test_after_cycle_for_callables_and_own_callbacks():
    seen = []
    class Mine(Callback):
        def after_cycle(self): seen.append(self.learn.cycle_scheduler.cycle)
    learner(3).fit(2, cbs=[CycleScheduler(lr=lr2), Mine(), Callback(after_cycle=lambda self: seen.append('f'))])
    assert sorted(map(str, seen))==['0','1','f','f']

def test_after_cycle_may_stop_the_fit():
    learn,watch = learner(4),Watch()
    learn.fit(3, cbs=[CycleScheduler(lr=CosineRestarts(3, lr_max=.01)), watch, Cancel('after_cycle', CancelFitException, lambda o: o.epoch==1, 99)])
    assert watch.ends==[4,8] and len(learn.recorder.values)==2 and len(learn.recorder.hps['lr'])==8

def test_two_schedulers_announce_once():
    "And the lr's cycles are those that count"
    for scheds in [dict(mom=Triangular(1, 1, .8, .9)), dict(lr=lr2)], [dict(lr=lr2), dict(mom=Triangular(1, 1, .8, .9))]:
        learn,watch = learner(6),Watch()
        learn.fit(2, cbs=[*(CycleScheduler(**o) for o in scheds), watch])
        assert len(watch.ends)==2 and learn.recorder.hps.keys()=={'lr','mom'}
        assert np.array_equal(watch.curve('mom'), Triangular(1, 1, .8, .9).values(6)) and np.array_equal(watch.curve(), lr2.values(6))

@pytest.mark.parametrize('first', ['lr', 'mom'])
def test_two_schedulers_show_the_cycles_of_the_lr(first):
    learn,watch = learner(6),Watch()
    cbs = [CycleScheduler(lr=lr2),CycleScheduler(mom=Triangular(1, 1, .8, .9))]
    learn.fit(2, cbs=[*(cbs if first=='lr' else cbs[::-1]), watch])
    assert watch.ends==[6,12]

@pytest.mark.parametrize('cbs', [lambda: [CycleScheduler(mom=mom2), SGDR(1e-2)], lambda: [CycleScheduler(mom=mom2), CLR(1e-2)]])
def test_everyday_form_after_a_scheduler(cbs):
    learn,watch = learner(5),Watch()
    learn.fit(2, cbs=[*cbs(), watch])
    assert learn.recorder.hps.keys()=={'lr','mom'} and np.array_equal(watch.curve('mom'), mom2.values(5))

# Callbacks that cancel

def cancelled(event, ex, when, order, n_iter=10, n_epoch=2, **kw):
    learn,watch,sched = learner(n_iter),Watch(),CosineRestarts(lr_max=.01, **kw)
    learn.fit(n_epoch, cbs=[CycleScheduler(lr=sched), watch, Cancel(event, ex, lambda o: o.training and when(o), order)])
    assert np.array_equal(watch.curve(), sched.values(n_iter)[watch.batches]), 'the lr is exact for the batches that were trained'
    return learn,watch,sched

@pytest.mark.parametrize('event,order', [('before_batch',99), ('after_loss',0), ('before_step',0)])
@pytest.mark.parametrize('at', [(0,0), (0,4), (0,5), (0,9), (1,4), (1,9)])
@pytest.mark.parametrize('cycle_len', [.5,1])
def test_cancel_batch(event, order, at, cycle_len):
    _,watch,sched = cancelled(event, CancelBatchException, lambda o: (o.epoch,o.iter)==at, order, n_cycles=int(2/cycle_len), cycle_len=cycle_len)
    assert watch.ends==sched.bounds(10)[1:]

@pytest.mark.parametrize('at,cycle_len', [((0,0),1), ((0,4),.5), ((0,5),.5), ((1,5),.5)])
def test_cancel_batch_early(at, cycle_len):
    _,watch,sched = cancelled('before_batch', CancelBatchException, lambda o: (o.epoch,o.iter)==at, 0, n_cycles=int(2/cycle_len), cycle_len=cycle_len)
    assert watch.ends==sched.bounds(10)[1:]

def test_cancel_the_last_batch_early():
    learn,watch,_ = cancelled('before_batch', CancelBatchException, lambda o: (o.epoch,o.iter)==(1,4), 0, n_cycles=3, cycle_len=.5)
    assert watch.ends==[5,10,15] and len(learn.recorder.values[-1])==2

@pytest.mark.parametrize('order', [0,99])
@pytest.mark.parametrize('every', [2,3])
def test_cancel_many_batches(order, every):
    _,watch,sched = cancelled('before_batch', CancelBatchException, lambda o: o.iter%every==1, order, n_cycles=2)
    assert watch.ends==[10,20]

@pytest.mark.parametrize('event', ['before_batch','after_batch','after_loss'])
@pytest.mark.parametrize('at', [(0,0), (0,5), (1,9)])
def test_cancel_epoch(event, at):
    "The cycle is over at the end of the epoch all the same"
    order = 99 if event=='before_batch' else 0
    _,watch,_ = cancelled(event, CancelEpochException, lambda o: (o.epoch,o.iter)==at, order, n_cycles=2)
    assert watch.ends==[10,20]

@pytest.mark.parametrize('at', [(0,3), (1,3)])
def test_cancel_epoch_in_a_longer_cycle(at):
    _,watch,_ = cancelled('after_batch', CancelEpochException, lambda o: (o.epoch,o.iter)==at, 0, n_cycles=2, cycle_len=2, n_epoch=4)
    assert watch.ends==[20,40]

@pytest.mark.parametrize('ex', [CancelEpochException, CancelTrainException])
@pytest.mark.parametrize('event,order,at,ends', [('after_batch',0,(0,4),[5,15,20]), ('after_batch',99,(0,4),[5,15,20]), ('after_batch',0,(0,5),[5,10,15,20]),
    ('after_batch',99,(0,5),[5,10,15,20]), ('before_batch',0,(0,5),[5,15,20]), ('before_batch',99,(0,5),[5,10,15,20]), ('before_batch',0,(0,0),[15,20]),
    ('after_loss',0,(0,0),[5,15,20]), ('after_batch',0,(1,4),[5,10,15]), ('after_batch',0,(1,9),[5,10,15,20])])
def test_cancel_inside_an_epoch(ex, event, order, at, ends):
    "At the first or last batch of a cycle: one that has begun ends with its epoch, one that has not is no cycle"
    _,watch,_ = cancelled(event, ex, lambda o: (o.epoch,o.iter)==at, order, n_cycles=4, cycle_len=.5)
    assert watch.ends==ends

@pytest.mark.parametrize('order', [0,99])
@pytest.mark.parametrize('ex', [CancelEpochException, CancelTrainException])
def test_cancel_at_the_last_batch_of_all(order, ex):
    "The fit would have ended there, inside the epoch"
    learn,watch,_ = cancelled('after_loss', ex, lambda o: (o.epoch,o.iter)==(1,4), order, n_cycles=3, cycle_len=.5)
    assert watch.ends==[5,10,15] and len(learn.recorder.values)==2

@pytest.mark.parametrize('order,ends', [(0,[]), (99,[5])])
def test_cancel_fit(order, ends):
    "What had not ended by then does not end"
    learn,watch,_ = cancelled('after_batch', CancelFitException, lambda o: (o.epoch,o.iter)==(0,4), order, n_cycles=4, cycle_len=.5)
    assert watch.ends==ends and len(learn.recorder.hps['lr'])==(4 if order==0 else 5)

@pytest.mark.parametrize('epoch', [0, 1])
@pytest.mark.parametrize('ex', [CancelEpochException, CancelTrainException, CancelValidException])
def test_cancel_before_training(ex, epoch, request):
    "An epoch of which no batch was trained"
    learn,watch = learner(5),Watch()
    sched = CosineRestarts(1, 3, lr_max=.01)
    event = 'before_validate' if ex is CancelValidException else 'before_train'
    learn.fit(3, cbs=[CycleScheduler(lr=sched), watch, Cancel(event, ex, lambda o: o.epoch==epoch)])
    assert watch.ends==[15] and np.array_equal(watch.curve(), sched.values(5)[watch.batches])

def test_cancel_at_the_beginning_of_an_epoch():
    "A cycle that has begun ends with the epoch in which it would have ended"
    learn,watch = learner(10),Watch()
    learn.fit(4, cbs=[CycleScheduler(lr=CosineRestarts(2, 2, lr_max=.01)), watch, Cancel('before_epoch', CancelEpochException, lambda o: o.epoch==1)])
    assert watch.ends==[20,40]

def test_short_epochs():
    learn,watch = learner(10),Watch()
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), watch, ShortEpochCallback(.3)])
    assert watch.ends==[10,20] and np.array_equal(watch.curve(), lr2.values(10)[watch.batches]) and len(watch.batches)==8

# Mixed precision, and steps that are skipped

@pytest.mark.parametrize('mode', ['fp16','bf16'])
@pytest.mark.parametrize('cycle_len', [.7,1])
def test_mixed_precision(mode, cycle_len):
    "Without a GPU torch makes it full precision, with a warning"
    learn,watch,sched = learner(10, cbs=MixedPrecision(mode)),Watch(),CosineRestarts(2, cycle_len, lr_max=.01).warmup(.5)
    with nullcontext() if torch.cuda.is_available() else pytest.warns(UserWarning, match='CUDA is not available'):
        learn.fit(math.ceil(sched.n_epochs), cbs=[CycleScheduler(lr=sched), watch])
    assert np.array_equal(watch.curve(), sched.values(10)) and watch.ends==sched.bounds(10)[1:]

class Overflow(MixedPrecision):
    "With a scaler that works on the CPU, and begins so high that the first steps overflow"
    def before_fit(self):
        self.autocast,self.learn.scaler,self.scales = autocast('cpu', dtype=torch.bfloat16),GradScaler('cpu', init_scale=2.**127),[]
        self.n_skipped = 0

    def after_cancel_step(self): self.n_skipped += 1

def test_a_scaler_that_skips_steps():
    "Its batches count"
    scaled,watch,sched = Overflow(),Watch(),CosineRestarts(3, .5, lr_max=.01)
    learn = learner(10, cbs=scaled)
    learn.fit(2, cbs=[CycleScheduler(lr=sched), watch])
    assert 2<scaled.n_skipped<12 and np.array_equal(watch.curve(), sched.values(10)) and watch.ends==[5,10,15]
    assert np.array_equal(learn.recorder.hps['lr'], sched.values(10)) and same(watch.states[-1], weights(learn))

@pytest.mark.parametrize('skip', [lambda b: b%3==1, lambda b: b in (0,4,5), lambda b: b in (4,9,14), lambda b: b<12])
def test_skipped_steps_by_hand(skip):
    "At the first and last batch of a cycle too"
    learn,keep,watch,sched = learner(10),Keep(),Watch(),CosineRestarts(3, .5, lr_max=.05)
    learn.opt_func = SGD
    a,b = (o.item() for o in learn.model.parameters())
    learn.fit(2, cbs=[CycleScheduler(lr=sched), keep, watch, Cancel('before_step', CancelStepException, lambda o: skip(10*o.epoch+o.iter))])
    for i,(x,y) in enumerate(keep.bs):
        x,y = x.numpy().ravel(),y.numpy().ravel()
        err = 2*(a*x + b - y)/len(x)
        if not skip(i): a,b = a-sched.at(i, 10)*err@x,b-sched.at(i, 10)*err.sum()
    assert [o.item() for o in learn.model.parameters()]==pytest.approx([a,b], rel=1e-4)
    assert np.array_equal(watch.curve(), sched.values(10)) and watch.ends==[5,10,15]

@cuda
@pytest.mark.parametrize('mode,kw', [('fp16',{}), ('fp16',dict(init_scale=2.**125)), ('bf16',{})])
@pytest.mark.parametrize('cycle_len', [.7,1])
def test_mixed_precision_on_a_gpu(mode, kw, cycle_len):
    learn,watch,sched = learner(10, cuda=True, cbs=MixedPrecision(mode, **kw)),Watch(),CosineRestarts(2, cycle_len, lr_max=.01).warmup(.5)
    learn.fit(math.ceil(sched.n_epochs), cbs=[CycleScheduler(lr=sched), watch])
    assert next(learn.model.parameters()).is_cuda and np.array_equal(watch.curve(), sched.values(10)) and watch.ends==sched.bounds(10)[1:]

@cuda
@pytest.mark.parametrize('opt', optimizers)
def test_held_on_a_gpu(opt):
    learn,watch,sched = two_groups(7, optimizers[opt]),Watch(),chains['cosine']
    learn.dls.cuda()
    learn.fit(math.ceil(sched.n_epochs), cbs=[CycleScheduler(lr=sched), watch])
    assert next(learn.model.parameters()).is_cuda and np.array_equal(watch.curve(), sched.values(7)) and watch.ends==sched.bounds(7)[1:]

# Batches an epoch

class Stream(IterableDataset):
    "It has no length"
    def __iter__(self): return iter([(torch.zeros(1),torch.zeros(1))]*9)

def items(n): return TensorDataset(torch.randn(n, 1), torch.randn(n, 1))
def loaded(dl):
    "A Learner with `dl` for training"
    res = learner(2)
    res.dls = DataLoaders(dl, res.dls.valid)
    return res

@pytest.mark.parametrize('kind,bs', [(DataLoader,'bs'), (TorchDL,'batch_size')])
@pytest.mark.parametrize('n,drop_last,want', [(10,False,3), (10,True,2), (3,False,1), (4,True,1)])
def test_batches_per_epoch(kind, bs, n, drop_last, want):
    learn,watch = loaded(kind(items(n), **{bs:4}, drop_last=drop_last)),Watch()
    assert batches_per_epoch(learn)==want
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), watch])
    assert np.array_equal(watch.curve(), lr2.values(want)) and watch.ends==[want,2*want]

fits = dict(everyday=lambda o: o.fit(2, cbs=SGDR(.1)), scheduler=lambda o: o.fit(2, cbs=CycleScheduler(lr=lr2)), sgdr=lambda o: o.fit_sgdr(2),
    clr=lambda o: o.fit_clr(2), schedule=lambda o: o.fit_schedule(2, lr=lr2), plot=lambda o: o.plot_schedule(lr2), count=batches_per_epoch)

def stopped(learn, f, err, match):
    before,n_cbs = weights(learn),len(learn.cbs)
    with pytest.raises(err, match=match): f(learn)
    assert same(before, weights(learn)) and len(learn.cbs)==n_cbs

@pytest.mark.parametrize('name', fits)
def test_no_batch(name):
    stopped(loaded(DataLoader(items(3), bs=4, drop_last=True)), fits[name], ValueError, 'the training DataLoader has no batch: 3 items at `bs` of 4')

def test_no_batch_of_torch(): stopped(loaded(TorchDL(items(3), batch_size=4, drop_last=True)), batches_per_epoch, ValueError, 'the training DataLoader has no batch')

def test_no_batch_by_a_sampler():
    dl = TorchDL(items(100), batch_size=4, drop_last=True, sampler=SubsetRandomSampler(range(3)))
    assert len(dl)==0
    stopped(loaded(dl), batches_per_epoch, ValueError, 'the training DataLoader has no batch')

def test_no_items():
    with pytest.raises(ValueError) as e: batches_per_epoch(loaded(DataLoader(items(0), bs=4)))
    assert 'no batch' in str(e.value) and 'dropped' not in str(e.value)

@pytest.mark.parametrize('name', fits)
@pytest.mark.parametrize('dl', [lambda: DataLoader(Stream(), bs=4), lambda: TorchDL(Stream(), batch_size=4)])
def test_no_length(dl, name): stopped(loaded(dl()), fits[name], TypeError, 'schedules count batches, and the training DataLoader has no length')

class Made(DataLoader):
    "Batches from nowhere"
    def __len__(self): return 3
    def create_batches(self, samps): return ((torch.zeros(4, 1),torch.zeros(4, 1)) for _ in range(3))

def test_batches_without_a_dataset():
    learn,watch = loaded(Made(bs=4)),Watch()
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), watch])
    assert np.array_equal(watch.curve(), lr2.values(3)) and watch.ends==[3,6]

def test_length_that_is_given():
    learn,watch = loaded(DataLoader(Stream(), bs=4, n=9)),Watch()
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), watch])
    assert np.array_equal(watch.curve(), lr2.values(3)) and watch.ends==[3,6]

# Beside fastai's own callbacks

def test_early_stopping():
    "The cycle that ends with the stop is announced still"
    learn,watch = learner(4),Watch()
    learn.fit(6, cbs=[CycleScheduler(lr=CosineRestarts(6, lr_max=1e-9)), watch, EarlyStoppingCallback(min_delta=1., patience=2)])
    assert watch.ends==[4,8,12] and len(learn.recorder.values)==3

def test_save_model(tmp_path):
    learn,watch = learner(4, path=tmp_path),Watch()
    learn.fit(4, cbs=[CycleScheduler(lr=CosineRestarts(2, 2, lr_max=.1)), watch, SaveModelCallback()])
    best = min(o[1] for o in learn.recorder.values)
    assert (tmp_path/'models/model.pth').is_file() and watch.ends==[8,16] and learn.validate()[0]==pytest.approx(best)

def test_reduce_lr_on_plateau():
    "Its lr holds till the next batch: the schedule goes on"
    learn,watch = learner(4),Watch()
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), watch, ReduceLROnPlateau(min_delta=1e9, patience=1)])
    assert np.array_equal(watch.curve(), lr2.values(4))

def test_lr_find_with_an_attached_scheduler(tmp_path):
    for cb in CycleScheduler(lr=lr2), SGDR(.01), CLR(.01):
        learn = learner(10, path=tmp_path, cbs=cb)
        before = weights(learn)
        learn.lr_find(num_it=10, show_plot=False)
        assert np.array(learn.recorder.lrs)==pytest.approx(1e-7*1e8**(np.arange(len(learn.recorder.lrs))/10)) and same(before, weights(learn))
        learn.fit(2)
        assert learn.recorder.hps['lr'][0]==(.0025 if isinstance(cb, CLR) else .01) and len(learn.recorder.hps['lr'])==20

@pytest.mark.parametrize('cb', [SGDR(.01), CLR(.01),
    CycleScheduler(lr=lr2)])
def test_validate_with_an_attached_scheduler(cb):
    learn = learner(5, cbs=cb)
    assert len(learn.validate())==1 and learn.get_preds()[0].shape==(32,1)

def test_validate_keeps_the_recorded_values():
    learn = learner(5, cbs=SGDR(.01))
    learn.fit(2)
    learn.validate()
    assert len(learn.recorder.hps['lr'])==10

def test_validate_leaves_the_optimizer_alone():
    learn = learner(5, cbs=SGDR(.01))
    learn.create_opt()
    learn.validate()
    assert learn.opt.hypers[0]['lr']==learn.lr

@pytest.mark.parametrize('cb', [CycleScheduler(lr=lr2, mom=mom2), SGDR(.01, moms=(.8,.9)), CLR(slice(.01))])
@pytest.mark.parametrize('fitted', [False,True])
def test_pickle_a_learner(cb, fitted):
    learn = learner(4, cbs=pickle.loads(pickle.dumps(cb)))
    if fitted: learn.fit(2)
    new,watch = pickle.loads(pickle.dumps(learn)),Watch()
    torch.manual_seed(1)
    new.fit(2, cbs=watch)
    torch.manual_seed(1)
    learn.fit(2)
    assert len(watch.batches)==8 and same(weights(learn), weights(new))

class Pickled(Callback):
    "A pickle of the Learner, made inside the fit at the end of cycle `k`"
    order = 91
    def __init__(self, k): self.k = k
    def after_cycle(self):
        if self.learn.cycle_scheduler.cycle==self.k: self.made = pickle.dumps(self.learn)

cycling = [lambda: CycleScheduler(lr=CosineRestarts(3, .7, 1, .01).warmup(.2), mom=Linear(.9, .8, 2.3)), lambda: SGDR(.01, .7, moms=(.8,.9)),
    lambda: CLR(.01, step_size=.35, lr_min=slice(1e-3))]

@pytest.mark.parametrize('cb', cycling)
@pytest.mark.parametrize('k', [0,1])
def test_pickle_inside_a_fit(cb, k):
    "It knows where it is, and fits anew from the first batch"
    learn,watch,pickled = learner(10, cbs=cb()),Watch(),Pickled(k)
    learn.fit(3, cbs=[watch, pickled])
    new,again = pickle.loads(pickled.made),Watch()
    assert new.cycle_scheduler.cycle==k and new.cycle_scheduler.cycle_stop==watch.ends[k] and new.cycle_scheduler.is_last_batch
    assert same(weights(new), watch.states[k]) and new.cycle_scheduler.learn is new
    new.remove_cbs([Watch,Pickled])
    new.fit(3, cbs=again)
    assert np.array_equal(again.curve(), watch.curve()) and np.array_equal(again.curve('mom'), watch.curve('mom')) and again.ends==watch.ends

@pytest.mark.parametrize('cb', cycling)
def test_copy_of_a_fit_that_was_broken_off(cb):
    "Inside the third cycle"
    learn,watch = learner(10, cbs=cb()),Watch()
    learn.fit(3, cbs=[watch, Cancel('after_epoch', CancelFitException, lambda o: o.epoch==1, 99)])
    for new in copy.deepcopy(learn),pickle.loads(pickle.dumps(learn)):
        again,cs = Watch(),new.cycle_scheduler
        assert cs is not learn.cycle_scheduler and cs.learn is new and (cs.cycle,cs.cycle_start+cs.cycle_batch)==(2,19)
        new.fit(3, cbs=again)
        assert np.array_equal(again.curve()[:20], watch.curve()) and len(again.batches)>=23 and again.ends[:2]==watch.ends and len(again.ends)>2

def test_deep_copy_trains_alone():
    learn = learner(4, cbs=SGDR(.05))
    learn.fit(1)
    new,before,n = copy.deepcopy(learn),weights(learn),len(learn.recorder.hps['lr'])
    new.fit(2)
    assert same(before, weights(learn)) and not same(before, weights(new)) and (n,len(new.recorder.hps['lr']))==(4,8)

def test_plot_sched():
    import matplotlib.pyplot as plt
    learn = learner(5)
    learn.fit(2, cbs=CycleScheduler(lr=lr2, mom=mom2))
    learn.recorder.plot_sched()
    assert [ax.get_ylabel() for ax in plt.gcf().axes]==['lr','mom']
    assert np.array_equal(plt.gcf().axes[0].lines[0].get_ydata(), lr2.values(5))
    plt.close('all')

def test_hps_beside_a_param_scheduler():
    learn = learner(5)
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), ParamScheduler({'mom': SchedLin(.9, .8)})])
    assert learn.recorder.hps.keys()=={'lr','mom'} and learn.recorder.hps['mom'][0]==.9

def test_one_cycle_beside_a_weight_decay():
    "fastai's lr and momentum are what they are without it, and all three are recorded"
    alone,learn,watches = learner(5),learner(5),[Watch(),Watch()]
    alone.fit_one_cycle(3, .05, cbs=watches[0])
    learn.fit_one_cycle(3, .05, cbs=[CycleScheduler(wd=CosineRestarts(3, lr_max=.1, lr_min=.01)), watches[1]])
    for k in 'lr','mom': assert np.array_equal(*(o.curve(k) for o in watches)) and learn.recorder.hps[k]==alone.recorder.hps[k]
    assert np.array_equal(watches[1].curve('wd'), CosineRestarts(3, lr_max=.1, lr_min=.01).values(5)) and watches[1].ends==[5,10,15]
    assert learn.recorder.hps.keys()=={'lr','mom','wd'} and np.array_equal(learn.recorder.hps['wd'], watches[1].curve('wd'))

def test_without_a_recorder():
    learn,sched = learner(10),CosineRestarts(2, .7, lr_max=.01)
    learn.remove_cb(learn.recorder)
    seen = []
    learn.fit(2, cbs=[CycleScheduler(lr=sched), Callback(after_loss=lambda self: seen.append(self.opt.hypers[0]['lr']) if self.training else None)])
    assert np.array_equal(seen, sched.values(10)) and np.array_equal(learn.opt.hypers[0]['lr'], sched.at(13, 10))

def test_validate_after_each_cycle():
    "Where the cycle ends with an epoch"
    learn,watch,rows = learner(5),Watch(),[]
    learn.fit(3, cbs=[CycleScheduler(lr=CosineRestarts(3, lr_max=.01)), Callback(after_cycle=lambda self: rows.append(self.learn.get_preds()[0].shape)),
        Callback(after_loss=lambda self: rows.append(self.opt.hypers[0]['lr']) if self.training else None)])
    assert [o for o in rows if o==(32,1)]==[(32,1)]*3
    assert np.array_equal([o for o in rows if o!=(32,1)], CosineRestarts(3, lr_max=.01).values(5))

def test_validate_after_each_epoch():
    "By a callback whose turn is before the scheduler's"
    ends = []
    def check(self):
        if not self.learn.lock.locked(): self.learn.validate()
    learner(5).fit(3, cbs=[SGDR(.01), Callback(after_epoch=check), Callback(after_cycle=lambda self: ends.append(self.cycle_scheduler.cycle_stop))])
    assert ends==[5,10,15]

def test_switched_off():
    "As any callback of fastai's, for one fit"
    learn,watch,cb = learner(4, lr=1e-3),Watch(),SGDR(.01)
    cb.run = False
    learn.fit(1, cbs=[cb, watch])
    assert set(watch.curve())=={1e-3}

# Events

own = sorted(set(Callback._methods) - {o for o in Callback._methods if hasattr(CycleScheduler, o)})

def counter(kind):
    "A `kind` of callback that takes down all the events that a scheduler has no use for itself"
    def take(name):
        def f(self): self.seen.append((name, self.learn.training))
        return f
    return type('Counter', (kind,), {o:take(o) for o in own})

@pytest.mark.parametrize('make', [lambda kind: kind(.01), lambda kind: kind(slice(1e-3,1e-2), moms=(.8,.9))])
@pytest.mark.parametrize('kind', [SGDR, CLR])
def test_subclass_gets_its_events(kind, make):
    "As often, in the same order, and in the same mode as a callback of fastai's own"
    a,b = make(counter(kind)),counter(Callback)()
    b.run_valid,b.order = False,a.order
    for o in a,b: o.seen = []
    learn = learner(4)
    learn.fit(2, cbs=[a, b, GradientAccumulation(32)])
    assert a.seen==b.seen and {'after_pred','after_loss','before_step','after_cancel_batch','after_train','after_validate'}<={k for k,_ in a.seen}
    assert [k for k,_ in a.seen].count('after_cycle')==(2 if kind is SGDR else 0)

def test_undefined_events_go_nowhere(monkeypatch):
    plain,seen = Callback.__call__,set()
    def call(self, event_name):
        if isinstance(self, CycleScheduler): seen.add(event_name)
        return plain(self, event_name)
    monkeypatch.setattr(Callback, '__call__', call)
    learner(3).fit(2, cbs=SGDR(.01))
    assert seen=={'before_fit','before_epoch','before_batch','after_batch','after_epoch','after_fit'}

@pytest.mark.parametrize('cb', [lambda seen: Callback(after_cycle=lambda self: seen.append(self.cycle_scheduler.cycle)),
    lambda seen: type('Mine', (Callback,), dict(after_cycle=lambda self: seen.append(self.cycle_scheduler.cycle)))()])
@pytest.mark.parametrize('fit', [lambda o,cb: o.fit(3, cbs=[SGDR(.01), cb]), lambda o,cb: o.fit_sgdr(3, cycle_mult=1, cbs=cb)])
def test_any_callback_may_have_after_cycle(cb, fit):
    seen = []
    fit(learner(3), cb(seen))
    assert seen==[0,1,2]

def test_after_cycle_never_fires_without_cycles():
    def no(self): pytest.fail('there is no cycle')
    learn = learner(3)
    learn.fit(1, cbs=Callback(after_cycle=no))
    learn.fit_one_cycle(1, cbs=Callback(after_cycle=no))
    learn.fit(2, cbs=[CycleScheduler(wd=StepDecay(.1)), Callback(after_cycle=no)])

# What is refused

def refused(match, *cbs, n_epoch=2, make=learner, err=ValueError, **kw):
    "Neither the weights nor the optimizer's state change, and the callbacks are gone"
    learn = make(5, **kw)
    learn.fit(1, 1e-3)
    before,opt,state = weights(learn),learn.opt,pickle.dumps(list(learn.opt.state.values()))
    with pytest.raises(err, match=match): learn.fit(n_epoch, cbs=list(cbs))
    assert same(before, weights(learn)) and learn.opt is opt and pickle.dumps(list(opt.state.values()))==state
    assert not [o for o in learn.cbs if isinstance(o, CycleScheduler)] and not hasattr(learn, 'cycle_scheduler')
    learn.fit(1)
    assert not same(before, weights(learn))

def test_two_schedulers_of_one():
    both = 'only one scheduler may drive `lr` in a fit'
    refused(f'{both}, got CycleScheduler and CycleScheduler', CycleScheduler(lr=lr2), CycleScheduler(lr=lr2))
    refused(f'{both}, got CycleScheduler and ParamScheduler', CycleScheduler(lr=lr2), ParamScheduler({'lr': SchedLin(1, 2)}))
    refused(both, SGDR(.01), CycleScheduler(lr=lr2))
    refused('may drive `mom`', CycleScheduler(lr=lr2, mom=mom2), ParamScheduler({'mom': SchedLin(.8, .9)}))

@pytest.mark.parametrize('cbs', [lambda: [SGDR(.01), CLR(.01)], lambda: [SGDR(.01), SGDR(.02)], lambda: [CycleScheduler(lr=lr2), SGDR(.01)]])
def test_two_everyday_forms(cbs): refused('only one scheduler may drive `lr`', *cbs())

@pytest.mark.parametrize('cb', [SGDR(.01), CycleScheduler(lr=lr2)])
def test_attached_scheduler_and_other_fits(cb):
    learn = learner(5, cbs=cb)
    for f in learn.fit_one_cycle, learn.fit_flat_cos:
        with pytest.raises(ValueError, match='only one scheduler may drive `lr`'): f(2)
    if isinstance(cb, SGDR): return
    with pytest.raises(ValueError, match='only one scheduler may drive `lr`'): learn.fit_sgdr(2, cycle_mult=1)

def test_unknown_hyper_parameter():
    refused('`foo` is not a hyper-parameter that this optimizer uses: it uses lr, mom, wd', CycleScheduler(foo=mom2))

@pytest.mark.parametrize('opt,name', [(SGD,'mom'), (SGD,'sqr_mom'), (partial(SGD, mom=.9),'eps'), (partial(adamw, opt=torch.optim.SGD),'sqr_mom')])
def test_hyper_parameter_that_no_step_reads(opt, name):
    learn = two_groups(5, opt)
    with pytest.raises(ValueError, match=f'`{name}` is not a hyper-parameter that this optimizer uses: it uses .*lr'):
        learn.fit(2, cbs=CycleScheduler(**{name: mom2}))

def test_moms_without_momentum():
    learn = two_groups(5, SGD)
    with pytest.raises(ValueError, match='`mom` is not a hyper-parameter'): learn.fit(2, cbs=SGDR(.01, moms=(.8,.9)))

@pytest.mark.parametrize('n_epoch', [1,3])
def test_length(n_epoch):
    refused(f'the schedule of `lr` lasts 2 epochs, the fit {n_epoch}: they must be equal', CycleScheduler(lr=lr2), n_epoch=n_epoch)

def test_length_of_the_others():
    refused('the schedule of `mom` lasts 2 epochs, the fit 3', CycleScheduler(lr=CosineRestarts(3, lr_max=.1), mom=mom2), n_epoch=3)
    refused('the schedule of `mom` lasts 1.5 epochs', CycleScheduler(lr=lr2, mom=CosineRestarts(1, 1.5, lr_max=.8, lr_min=.9)))

def test_length_beside_an_endless_one():
    refused('the schedule of `lr` lasts 3 epochs, the fit 2', CycleScheduler(mom=CosineRestarts(None, lr_max=.8, lr_min=.9), lr=CosineRestarts(3, lr_max=.1)))

@pytest.mark.parametrize('sched,match', [(CosineRestarts(2, lr_max=1e-3, lr_min=1e-2), '`lr_max` must be above `lr_min`'),
    (CosineRestarts(2, lr_max=(.1,.01), lr_min=.05), '`lr_max` must be above `lr_min`'), (CosineRestarts(2, lr_max=.1, lr_min=.1), 'above `lr_min`'),
    (CosineRestarts(2, lr_max=.1, lr_min=-.1), '`lr_min` must be at least 0'), (Triangular(1, 1, .1, .2), 'above `lr_min`'), (StepDecay(-1.), 'lr')])
def test_bounds_of_the_lr(sched, match): refused(match, CycleScheduler(lr=sched), make=two_groups)

def test_peak_that_decays_below_the_minimum():
    refused('lr_min', CycleScheduler(lr=CosineRestarts(3, lr_max=.01, lr_min=.005, cycle_decay=.4)), n_epoch=3)

def test_groups():
    refused('the schedule of `lr` has values for 3 parameter groups, the optimizer has 2', CycleScheduler(lr=CosineRestarts(2, lr_max=(1,2,3))), make=two_groups)

@pytest.mark.parametrize('sched,match', [(Linear(-.1, .1, 2), '`start` and `end` must be at least 0 where they drive the lr'),
    (Linear((0,0), (.1,-1e-9), 2), '`start` and `end` must be at least 0'), (CosineRestarts(1, lr_max=.1).warmup(1, -.1), '`start` and `end` must be at least 0'),
    (CosineRestarts(1, lr_max=.1, lr_min=.2).warmup(1), '`lr_max` must be above `lr_min`'), (ExpDecay(0., 1), '`lr` must be above 0'),
    (StepDecay(.1, n_epochs=1).then(InverseTimeDecay((.1,-.1), 1)), '`lr` must be above 0'), (CosineRestarts(1, lr_max=.1).warmup(1.5), 'lasts 2.5 epochs, the fit 2'),
    (CosineRestarts(3, .5, lr_max=.01, lr_min=.005, cycle_decay=.4).warmup(.5), '`cycle_decay` of 0.4 takes the peak of cycle 2'),
    (CosineRestarts(1, lr_max=(1,2,3)).warmup(1), 'has values for 3 parameter groups'), (CosineRestarts(1, 1.99, lr_max=.1).warmup(.01), 'each cycle needs at least one batch'),
    (Triangular(1, 1, .1, scale_fn=lambda c: -1.), '`scale_fn` takes the lr below 0 at batch'), (Triangular(1, 1, .1, scale_fn=lambda c: math.nan), 'scale_fn'),
    (Triangular(2, .5, .1, 0., scale_fn=lambda b: 5.-b, scale_mode='iterations'), '`scale_fn` takes the lr below 0 at batch')])
def test_shapes_that_the_lr_cannot_have(sched, match): refused(match, CycleScheduler(lr=sched), make=two_groups)

@pytest.mark.parametrize('sched,match', [(Linear(.9, 1.2, 2), 'takes the momentum to 1.02 at batch 4'), (ExpDecay(1., 1), 'to 1 at batch 0'),
    (CosineRestarts(2, lr_max=(.5,-.1), lr_min=.9), 'to -0.1 at batch 0'), (StepDecay(.6, 2., 1, 2), 'to 1.2 at batch 5'),
    (Triangular(2, .5, .8, .9, scale_fn=lambda c: 10*c), 'takes the momentum to -0.7 at batch 7')])
def test_shapes_that_the_momentum_cannot_have(sched, match): refused(match, CycleScheduler(mom=sched), make=two_groups, opt_func=Adam)

def test_scale_that_is_no_number(): refused('scale_fn', CycleScheduler(lr=Triangular(1, 1, .1, scale_fn=lambda c: 'x')), err=TypeError)

@pytest.mark.parametrize('n_epoch,err', [(0,ValueError), (-1,ValueError), (True,TypeError), (2.,TypeError), ('2',TypeError), (None,TypeError), (math.nan,TypeError)])
def test_number_of_epochs(n_epoch, err):
    learn = learner(4)
    learn.create_opt()
    with pytest.raises(err, match='`n_epoch` must be a whole number of epochs above 0, got'): check_scheds(learn.opt, {'lr': lr2}, n_epoch, 4)
    check_scheds(learn.opt, {'lr': lr2}, np.int64(2), 4)

@pytest.mark.parametrize('n_iter,err', [(0,ValueError), (-1,ValueError), (1.5,ValueError), (True,TypeError)])
def test_number_of_batches(n_iter, err):
    learn = learner(4)
    learn.create_opt()
    with pytest.raises(err, match='`n_iter` must be a whole number of batches an epoch'): check_scheds(learn.opt, {'lr': lr2}, 2, n_iter)

@pytest.mark.parametrize('scheds', [dict(lr=ExpDecay(.01, 1), mom=CosineRestarts(1, 1.5, lr_max=.8, lr_min=.9)),
    dict(mom=ExpDecay(.9, .1), wd=CosineRestarts(1, 1.5, lr_max=.8, lr_min=.9))])
def test_a_part_of_an_epoch_beside_an_endless_one(scheds): refused('lasts 1.5 epochs', CycleScheduler(**scheds))

def part(): return CycleScheduler(mom=CosineRestarts(1, 1.5, lr_max=.8, lr_min=.9))

@pytest.mark.parametrize('order', [1,-1])
def test_a_part_of_an_epoch_in_another_scheduler(order):
    "Refused, as where one scheduler has both"
    refused('the schedule of `mom` lasts 1.5 epochs', *[CycleScheduler(lr=lr2), part()][::order])

@pytest.mark.parametrize('order', [1,-1])
@pytest.mark.parametrize('lead', [lambda: SGDR(.01), lambda: CLR(.01), lambda: CycleScheduler(lr=ExpDecay(.01, 1))])
def test_a_part_of_an_epoch_beside_an_endless_scheduler(lead, order): refused('the schedule of `mom` lasts 1.5 epochs', *[lead(), part()][::order])

def test_no_schedule_at_all():
    with pytest.raises(ValueError, match='pass at least one schedule by the name of its hyper-parameter'): CycleScheduler()

def test_check_of_no_schedule():
    learn = learner(4)
    learn.create_opt()
    with pytest.raises(ValueError, match='schedule'): check_scheds(learn.opt, {}, 2, 4)

def test_empty_cycles(): refused('each cycle needs at least one batch', CycleScheduler(lr=CosineRestarts(20, .1, lr_max=.1)))

@pytest.mark.parametrize('v', [.1, None, 'cosine', CosineRestarts, lambda x: x, math.nan, [lr2], {'lr': lr2}, SchedLin(1, 2)])
def test_not_a_schedule(v):
    with pytest.raises(TypeError, match='`lr` must be a schedule such as'): CycleScheduler(lr=v)

# SGDR and CLR

@pytest.mark.parametrize('cb,sched', [
    (SGDR(.01), CosineRestarts(None, lr_max=.01)),
    (SGDR(slice(1e-3,1e-2), 1, 2, 1e-4, .5, .1), CosineRestarts(None, 1, 2, (1e-3,1e-2), 1e-4, .5, .1)),
    (CLR(.01), Triangular(None, 2, .01)),
    (CLR([1e-3,1e-2], (1e-4,1e-3), .7, 'triangular2'), Triangular(None, .7, (1e-3,1e-2), (1e-4,1e-3), 'triangular2')),
    (CLR(.01, step_size=1, mode='exp_range', gamma=.99), Triangular(None, 1, .01, mode='exp_range', gamma=.99))])
@pytest.mark.parametrize('n_epoch', [1,5])
def test_everyday(cb, sched, n_epoch):
    "They cycle for as long as the fit lasts; a second fit begins anew"
    learn = two_groups(6)
    for _ in range(2):
        watch = Watch()
        learn.fit(n_epoch, cbs=[cb, watch])
        want = sched.values(6, 6*n_epoch)
        assert np.array_equal(watch.curve(), want if want.ndim==2 else np.stack([want]*2, 1))
    ends = [o for o in sched.bounds(6, 6*n_epoch+1)[1:-1] if o<=6*n_epoch]
    assert watch.ends==ends

def test_clr_of_ten_epochs():
    "Smith's formula, with the step size in batches; the last cycle does not end, and isn't announced"
    learn,watch = learner(5),Watch()
    learn.fit(10, cbs=[CLR(1e-2), watch])
    step,lo,hi = 2*5,1e-2/4,1e-2
    x = [abs(b/step - 2*math.floor(1 + b/(2*step)) + 1) for b in range(50)]
    assert watch.curve()==pytest.approx([lo + (hi-lo)*max(0, 1-o) for o in x]) and watch.ends==[20,40]

@pytest.mark.parametrize('mult,ends', [(1,range(5, 51, 5)), (2,[5,15,35]), (1.5,[5,13,24,41])])
def test_sgdr_of_ten_epochs(mult, ends):
    "Loshchilov & Hutter's formula, from restart to restart"
    learn,watch = learner(5),Watch()
    learn.fit(10, cbs=[SGDR(1e-2, cycle_mult=mult), watch])
    bounds,n,start = [0,*ends],5.,0.
    while (start:=start+n)<50: n *= mult
    if bounds[-1]<50: bounds.append(round(start))
    want = [(1 + math.cos(math.pi*(b-lo)/(hi-lo)))/2*1e-2 for lo,hi in zip(bounds, bounds[1:]) for b in range(lo, min(hi, 50))]
    assert watch.curve()==pytest.approx(want) and watch.ends==list(ends)

@pytest.mark.parametrize('lr_min', [slice(1e-5,1e-4), slice(1e-4), [1e-5,1e-4], (1e-5,1e-4), np.array([1e-5,1e-4]), 1e-5, 0, [0,1e-4], np.float32(1e-5)])
@pytest.mark.parametrize('lr_max', [slice(1e-3,1e-2), .01])
@pytest.mark.parametrize('kind', [SGDR, CLR])
def test_lowest_lrs(kind, lr_max, lr_min):
    "All forms that fastai has for a lr; each fit makes the same of them"
    learn,hi = two_groups(4, Adam),(1e-3,1e-2) if isinstance(lr_max, slice) else .01
    lo = (1e-5,1e-4) if isinstance(lr_min, slice) else np.asarray(lr_min).tolist()
    want = (CosineRestarts(None, 1, 1, hi, lo) if kind is SGDR else Triangular(None, 2, hi, lo)).values(4, 12)
    cb = kind(lr_max, lr_min=lr_min)
    for _ in range(2):
        watch = Watch()
        learn.fit(3, cbs=[cb, watch])
        assert watch.curve()==pytest.approx(want if want.ndim==2 else np.stack([want]*2, 1), rel=1e-9)

@pytest.mark.parametrize('lr_min,match', [(-1e-9,'`lr_min` must be finite and at least 0'), (math.nan,'lr_min'), (math.inf,'lr_min'), (slice(1e-5,math.inf),'`lr_min` must be finite'),
    ([.1]*3,'parameter groups'), (np.ones(3),'parameter groups'), (.01,'`lr_max` must be above `lr_min`'), ([1e-3,.2],'`lr_max` must be above `lr_min`'), (slice(.1,.2),'above `lr_min`')])
@pytest.mark.parametrize('kind', [SGDR, CLR])
def test_lowest_lrs_refused(kind, lr_min, match):
    learn = two_groups(5)
    before = weights(learn)
    with pytest.raises(ValueError, match=match): learn.fit(2, cbs=kind(.01, lr_min=lr_min))
    assert same(before, weights(learn))

def test_everyday_of_one_unfinished_cycle():
    learn,watch = learner(5),Watch()
    learn.fit(3, cbs=[SGDR(.01, 4), watch])
    assert watch.ends==[] and np.array_equal(watch.curve(), CosineRestarts(1, 4, lr_max=.01).values(5)[:15])

def test_fit_after_fit_on_other_data():
    "Nothing is left of the first one's cycles"
    learn,watch = learner(10, cbs=SGDR(.01)),Watch()
    learn.fit(1)
    learn.dls = learner(4).dls
    learn.fit(3, cbs=watch)
    assert watch.ends==[4,8,12] and np.array_equal(watch.curve(), CosineRestarts(3, lr_max=.01).values(4))

def test_fit_after_one_that_was_broken_off():
    "Its open cycle is not the next fit's, which skips an epoch"
    learn,watch = learner(10, cbs=SGDR(.01)),Watch()
    learn.fit(1, cbs=Cancel('after_loss', CancelFitException, lambda o: o.training and o.iter==3))
    learn.fit(2, cbs=watch, start_epoch=1)
    assert watch.ends==[20]

@pytest.mark.parametrize('cb', [SGDR(None), CLR(None)])
def test_everyday_default_lr(cb):
    learn,watch = learner(4, lr=3e-3),Watch()
    learn.fit(2, cbs=[cb, watch])
    assert watch.curve().max()<=3e-3 and watch.curve()[0]==(3e-3 if isinstance(cb, SGDR) else 3e-3/4)

@pytest.mark.parametrize('cb', [SGDR(.01, moms=(.8,.95)), CLR(.01, moms=(.8,.95), step_size=1)])
def test_moms(cb):
    "Momentum is the first value where the lr is highest, the other where it is lowest"
    learn,watch = learner(8),Watch()
    learn.fit(2, cbs=[cb, watch])
    lr,mom = watch.curve(),watch.curve('mom')
    lo = 0. if isinstance(cb, SGDR) else .01/4
    assert mom==pytest.approx(.95 + (.8-.95)*(lr-lo)/(.01-lo))

@pytest.mark.parametrize('f,err', [
    (lambda: SGDR(.1, cycle_len=0),ValueError), (lambda: SGDR(.1, cycle_mult=.5),ValueError), (lambda: SGDR(.1, warmup_pct=1),ValueError),
    (lambda: CLR(.1, step_size='2'),TypeError), (lambda: CLR(.1, mode='up'),ValueError), (lambda: CLR(.1, mode='exp_range'),ValueError)])
def test_everyday_errors_come_at_the_call(f, err):
    with pytest.raises(err, match='`'): f()

nonsense = dict(number=['1', None, True, [1], 1j, 0, -1, math.nan, math.inf], fraction=['0', None, True, [.1], 1, -.1, math.nan, math.inf],
    lr_min=['x', None, True, 1j, math.nan, math.inf, [.1,'x'], [.1,math.nan], []], mode=['up', None, 1, ['triangular']], gamma=['1', True, [1], 0, -1, 1.1, math.nan],
    scale_fn=[1, 'x', .5], scale_mode=['batch', None, 1])

@pytest.mark.parametrize('kind,name,values', [(SGDR,'cycle_len','number'), (SGDR,'cycle_mult','number'), (SGDR,'cycle_decay','number'), (SGDR,'warmup_pct','fraction'),
    (SGDR,'lr_min','lr_min'), (CLR,'step_size','number'), (CLR,'mode','mode'), (CLR,'gamma','gamma'), (CLR,'scale_fn','scale_fn'), (CLR,'scale_mode','scale_mode')])
def test_everyday_nonsense(kind, name, values):
    "TypeError for what is no such thing, ValueError for one that is out of bounds; both name the argument"
    for v in nonsense[values]:
        with pytest.raises((TypeError,ValueError), match=f'`{name}`') as e: kind(.1, **{name:v})
        number = isinstance(v, (int,float)) and not isinstance(v, bool)
        if values in ('number','fraction','gamma'): assert e.type is (ValueError if number else TypeError), v

@pytest.mark.parametrize('lr_max', [0, -1, math.nan, math.inf, 'x', True, 1j, [], [.1]*3, [.1,0], [.1,'x'], (), np.array([]), slice(.1,math.inf), slice(-.1,.1), {'a': 1}])
@pytest.mark.parametrize('kind', [SGDR, CLR])
def test_everyday_nonsense_as_lr(kind, lr_max):
    "Found before the first batch"
    learn = two_groups(5)
    before = weights(learn)
    with pytest.raises((TypeError,ValueError), match='`lr_max`'): learn.fit(2, cbs=kind(lr_max))
    assert same(before, weights(learn)) and not hasattr(learn, 'cycle_scheduler')

@pytest.mark.parametrize('moms', [.9, 'ab', (.9,), (), (.8,1), (-.1,.9), (math.nan,.9), (None,.9), (.8,.9,.8)])
@pytest.mark.parametrize('kind', [SGDR, CLR])
def test_everyday_nonsense_as_moms(kind, moms):
    learn = learner(5)
    before = weights(learn)
    with pytest.raises((TypeError,ValueError), match='`moms` must be two momenta'): learn.fit(2, cbs=kind(.1, moms=moms))
    assert same(before, weights(learn))

# Lrs per group

@pytest.mark.parametrize('lr,want', [(None,1e-3), (.1,.1), (slice(.1),(.01,.1)), (slice(1e-3,1e-1),(1e-3,1e-1)), ([.1,.2],(.1,.2)), (np.array([.1,.2]),(.1,.2)),
    ((.1,.1),.1), ([.1],.1), (1,1)])
def test_peak_lrs(lr, want):
    learn = two_groups(3, lr=1e-3)
    assert peak_lrs(learn, lr)==(pytest.approx(want) if isinstance(want, tuple) else want)

@pytest.mark.parametrize('opt', optimizers)
@pytest.mark.parametrize('lr', [.5, slice(.1,.5), [.1,.5], None, 'x', -1, [.1]*3])
def test_peak_lrs_leave_the_optimizer_alone(opt, lr):
    "Whether it knows what to make of them or not"
    learn = two_groups(3, optimizers[opt], lr=1e-3)
    learn.create_opt()
    learn.opt.set_hyper('lr', [.01,.02])
    before,made = [dict(o) for o in learn.opt.hypers],learn.opt
    for name in 'lr_max','lr_min':
        if lr in ('x',-1) or lr==[.1]*3:
            with pytest.raises(ValueError, match=f'`{name}`'): peak_lrs(learn, lr, name)
        else: assert np.max(peak_lrs(learn, lr, name))==(1e-3 if lr is None else .5)
        assert [dict(o) for o in learn.opt.hypers]==before and learn.opt is made

def test_peak_lrs_of_fastcore(): assert peak_lrs(two_groups(3), L(.1, .2))==(.1,.2)

def test_lowest_lr_may_be_0(): assert peak_lrs(two_groups(3), [0,.1], 'lr_min')==(0,.1) and peak_lrs(two_groups(3), 0, 'lr_min')==0

@pytest.mark.parametrize('lr', [range(1, 4), {.1,.2,.3}, slice(None), slice(1e-3,None), slice('a','b'), 10**400, torch.tensor(.1)],
    ids=['range','set','slice','open','letters','big','tensor'])
def test_peak_lrs_of_other_types(lr):
    with pytest.raises((TypeError,ValueError), match='`lr_max`'): peak_lrs(two_groups(3), lr)

def test_peak_lrs_default_slice(): assert peak_lrs(two_groups(3, lr=slice(1e-4,1e-2)), None)==pytest.approx((1e-4,1e-2))

@pytest.mark.parametrize('lr', [0, -1, np.nan, np.inf, 'high', [.1,0]])
def test_bad_peak_lrs(lr):
    with pytest.raises(ValueError, match='`lr_max` must be finite and above 0, got'): peak_lrs(two_groups(3), lr)

@pytest.mark.parametrize('lr', [[.1,.2,.3], ()])
def test_peak_lrs_of_other_groups(lr):
    with pytest.raises(ValueError, match=f'`lr_max` must have one value, or one for each of the 2 parameter groups, got {len(lr)}'): peak_lrs(two_groups(3), lr)

@pytest.mark.parametrize('lr', [np.float32(.01), np.array([.01,.02], dtype=np.float32)])
def test_peak_lrs_float32(lr): assert np.array(peak_lrs(two_groups(3), lr))==pytest.approx(lr)

def test_group_lrs():
    learn = two_groups(3)
    assert learn.group_lrs(.09)==pytest.approx([.03,.09]) and learn.group_lrs(1., 10)==pytest.approx([.1,1])
    assert learn.group_lrs(.1, .5)==pytest.approx([.2,.1])
    for v in 0,-1,math.nan,math.inf,'1',None,True,[1],1j:
        err = TypeError if v is True or not isinstance(v, (int,float)) else ValueError
        with pytest.raises(err, match='`ratio` must be a number above 0, got'): learn.group_lrs(.1, v)
        with pytest.raises(err, match='`lr_max` must be a number above 0, got'): learn.group_lrs(v)
    watch = Watch()
    learn.fit(1, cbs=[SGDR(learn.group_lrs(.09)), watch])
    assert watch.curve()[0]==pytest.approx([.03,.09])

@pytest.mark.parametrize('args', [(10**400,), (.1,10**400), (100,1e-308), (1e-20,1e308)], ids=['lr_max','ratio','low','high'])
def test_group_lrs_beyond_floats(args):
    with pytest.raises(ValueError, match='`lr_max`|`ratio`'): two_groups(3).group_lrs(*args)

def test_cycle_hypers():
    learn = two_groups(3)
    got = cycle_hypers(learn, CosineRestarts, .1, (.8,.9), n_cycles=2, lr_min=.01, cycle_decay=.5, warmup_pct=.1)
    assert got==dict(lr=CosineRestarts(2, lr_max=.1, lr_min=.01, cycle_decay=.5, warmup_pct=.1), mom=CosineRestarts(2, lr_max=.8, lr_min=.9, warmup_pct=.1))
    assert list(cycle_hypers(learn, Triangular, .1, None, n_cycles=2))==['lr']

@pytest.mark.parametrize('moms', [(.9,), (.8,.9,.8), (.8,1), (-.1,.9), (np.nan,.9)])
def test_bad_moms(moms):
    with pytest.raises(ValueError, match='`moms` must be two momenta from 0 to below 1'): cycle_hypers(learner(3), CosineRestarts, .1, moms, n_cycles=1)

@pytest.mark.parametrize('moms', [.9, ('a','b'), (None,.9)])
def test_moms_of_other_types(moms):
    with pytest.raises((ValueError,TypeError), match='`moms` must be'): cycle_hypers(learner(3), CosineRestarts, .1, moms, n_cycles=1)

def test_split_is_what_the_groups_are(): assert [len(o) for o in split(two_groups(3).model)]==[2,2]
