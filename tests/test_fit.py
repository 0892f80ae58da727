"`fit`: the Learner methods, and that fastai's own do what they did"
import inspect, json, math, matplotlib.pyplot as plt, numpy as np, pytest, re, signal, sys, torch
from contextlib import contextmanager
from conftest import run
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.optimizer import SGD, Adam, OptimWrapper, even_mults, ranger
from fastai_clr.cycles import SGDR, CycleScheduler
from fastai_clr.fit import Learner
from fastai_clr.schedules import CosineRestarts, ExpDecay, InverseTimeDecay, Linear, StepDecay, Triangular
from fastcore.basics import partial
from hypothesis import HealthCheck, given, settings, strategies as st
from learners import Script, Watch, adamw, cases, learner, same, two_groups, weights

optimizers = dict(sgd=partial(SGD, mom=.9), adam=Adam, ranger=ranger, adamw=adamw)

# fastai without this package

work = '''
import hashlib, inspect, json, random, sys, tempfile, torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.learner import Learner
from fastai.test_utils import synth_learner
from fastcore.basics import noop
from torch import nn

folder = tempfile.TemporaryDirectory()
def params(m): return list(m.parameters())
def make(groups=False):
    torch.manual_seed(0)
    random.seed(0)
    kw = dict(model=nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1)), splitter=lambda m: [params(m[0]), params(m[1])]) if groups else {}
    learn = synth_learner(n_trn=8, path=tempfile.mkdtemp(dir=folder.name), **kw)
    learn.logger,learn.create_mbar = noop,False
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn

fits = dict(fit=lambda o: o.fit(2, .01), fit_one_cycle=lambda o: o.fit_one_cycle(2, .1), fit_flat_cos=lambda o: o.fit_flat_cos(2, .1),
    slices=lambda o: o.fit_one_cycle(2, slice(1e-3, .1), moms=(.9,.8,.9)), lr_find=lambda o: (o.lr_find(num_it=20, show_plot=False), o.fit(1)),
    fine_tune=lambda o: o.fine_tune(1, freeze_epochs=1), twice=lambda o: (o.fit_one_cycle(1), o.fit_one_cycle(1, reset_opt=True, wd=.1)))

def state(name):
    learn = make(True)
    fits[name](learn)
    rec = learn.recorder
    return [hashlib.sha256(b''.join(p.detach().numpy().tobytes() for p in params(learn.model))).hexdigest(), rec.lrs, rec.hps['mom'] if name=='fit_one_cycle' else 0]

states = {k: state(k) for k in fits}
'''
sgdr = [(1,1,2), (2,1,2), (3,1,2), (4,1,2), (6,1,2), (2,2,2), (2,1,3), (3,1,3), (2,3,4)]
bare_work = work + f'''
def sgdr(n_cycles, cycle_len, mult, groups=False, **kw):
    learn = make(groups)
    try: learn.fit_sgdr(n_cycles, cycle_len, slice(1e-3,1e-2) if groups else 1e-2, mult, **kw)
    except Exception as e: return type(e).__name__
    return learn.recorder.lrs

f = Learner.fit_sgdr
assert 'fastai_clr' not in sys.modules and f.__module__=='fastai.callback.schedule'
print('RESULT'+json.dumps(dict(states=states, sgdr=[sgdr(*o) for o in {sgdr}], mult1=sgdr(2, 1, 1), mult15=sgdr(2, 1, 1.5), half=sgdr(2, .5, 2),
    groups=sgdr(2, 1, 2, True), start_epoch=sgdr(2, 1, 2, start_epoch=1),
    params=[(p.name, repr(p.default), p.kind.name) for p in inspect.signature(f).parameters.values()],
    one_cycle=str(inspect.signature(Learner.fit_one_cycle)))))
'''

@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    "What fastai does in a process of its own, in which this package is not imported"
    out = run(sys.executable, '-W', 'ignore', '-c', bare_work, cwd=tmp_path_factory.mktemp('bare'))
    return json.loads(out[out.index('RESULT')+6:])

def test_other_fits_are_bitwise_the_same(bare):
    "The same weights, lrs and momenta, with this package imported as without"
    ns = {}
    exec(work, ns)
    assert json.loads(json.dumps(ns['states']))==bare['states'] and bare['states'].keys()==ns['fits'].keys()

def late(lrs, sched):
    "Batches at which a cycle begins with a lr of almost 0"
    return [b for b in sched.bounds(8)[1:-1] if lrs[b]<sched.at(b, 8)*1e-3]

@pytest.mark.parametrize('i', range(len(sgdr)), ids=map(str, sgdr))
def test_curve_is_fastais(bare, i):
    "Batch for batch, but for the first batch of a cycle, where fastai's may be late"
    n,l,m = sgdr[i]
    learn,sched,theirs = learner(8),CosineRestarts(n, l, m, 1e-2),np.array(bare['sgdr'][i])
    watch = Watch()
    learn.fit_sgdr(n, l, 1e-2, m, cbs=watch)
    ours = watch.curve()
    keep = np.setdiff1d(np.arange(len(ours)), late(theirs, sched))
    assert len(theirs)==len(ours) and ours[keep]==pytest.approx(theirs[keep], rel=1e-4, abs=1e-7)

def test_where_fastai_restarts_late(bare):
    n_late = {o: len(late(bare['sgdr'][i], CosineRestarts(*o, 1e-2))) for i,o in enumerate(sgdr)}
    assert {k for k,v in n_late.items() if not v}>={(1,1,2), (2,1,2)}, 'here fastai is right'
    assert all(n_late[o] for o in [(3,1,2), (4,1,2), (6,1,2)]), 'here it restarts late'

def test_curve_of_groups_is_fastais(bare):
    learn = two_groups(8)
    learn.fit_sgdr(2, 1, slice(1e-3,1e-2), 2)
    assert np.array(learn.recorder.lrs)==pytest.approx(np.array(bare['groups']), rel=1e-4, abs=1e-7)

def test_start_epoch_is_fastais(bare):
    learn = learner(8)
    learn.fit_sgdr(2, 1, 1e-2, 2, start_epoch=1)
    ours,theirs = np.array(learn.recorder.lrs),np.array(bare['start_epoch'])
    assert len(ours)==len(theirs)==16 and ours==pytest.approx(theirs, rel=1e-4, abs=1e-7)

def test_where_fastai_crashes(bare):
    assert (bare['mult1'],bare['mult15'],bare['half'])==('ZeroDivisionError','AssertionError','AssertionError')
    for kw in dict(cycle_mult=1), dict(cycle_mult=1.5), dict(cycle_len=.5):
        learn,sched = learner(8),CosineRestarts(2, **{**dict(cycle_mult=2), **kw}, lr_max=.01)
        learn.fit_sgdr(2, lr_max=.01, **kw)
        assert np.array_equal(learn.recorder.lrs, sched.values(8))

def test_parameters_are_fastais(bare):
    "The same names, order and defaults for positional arguments; what is new is by keyword only, and cycle_len has a default"
    ours = inspect.signature(Learner.fit_sgdr).parameters
    theirs = {n: d for n,d,_ in bare['params']}
    positional = [o for o in ours.values() if o.kind.name=='POSITIONAL_OR_KEYWORD']
    assert [o.name for o in positional]==list(theirs) and all(k=='POSITIONAL_OR_KEYWORD' for *_,k in bare['params'])
    assert {o.name: repr(o.default) for o in positional if o.name!='cycle_len'}=={k:v for k,v in theirs.items() if k!='cycle_len'}
    assert all(o.kind.name=='KEYWORD_ONLY' for o in list(ours.values())[len(positional):])
    assert str(inspect.signature(Learner.fit_one_cycle))==bare['one_cycle']

# What the optimizer holds

@pytest.mark.parametrize('opt', optimizers)
@pytest.mark.parametrize('fit,sched', [
    (lambda o,**kw: o.fit_sgdr(2, lr_max=slice(1e-3,1e-2), **kw), CosineRestarts(2, 1, 2, (1e-3,1e-2))),
    (lambda o,**kw: o.fit_sgdr(3, .7, [1e-3,1e-2], 1.3, lr_min=1e-5, cycle_decay=.5, warmup_pct=.2, **kw),
        CosineRestarts(3, .7, 1.3, (1e-3,1e-2), 1e-5, .5, .2)),
    (lambda o,**kw: o.fit_clr(2, 1, slice(1e-3,1e-2), **kw), Triangular(2, 1, (1e-3,1e-2))),
    (lambda o,**kw: o.fit_clr(2, .6, (1e-3,1e-2), (1e-4,1e-5), 'exp_range', .99, **kw), Triangular(2, .6, (1e-3,1e-2), (1e-4,1e-5), 'exp_range', .99)),
    (lambda o,**kw: o.fit_schedule(3, lr=StepDecay((1e-3,1e-2), .5, 1, 3), **kw), StepDecay((1e-3,1e-2), .5, 1, 3)),
    (lambda o,**kw: o.fit_schedule(2, lr=ExpDecay((1e-3,1e-2), .5, 1.5), **kw), ExpDecay((1e-3,1e-2), .5, 1.5)),
    (lambda o,**kw: o.fit_sgdr(2, 1, slice(1e-3,1e-2), 1, lr_min=slice(1e-5,1e-4), **kw), CosineRestarts(2, 1, 1, (1e-3,1e-2), (1e-5,1e-4))),
    (lambda o,**kw: o.fit_clr(2, .5, [1e-3,1e-2], np.array([1e-5,1e-4]), **kw), Triangular(2, .5, (1e-3,1e-2), (1e-5,1e-4))),
    (lambda o,**kw: o.fit_schedule(3, lr=CosineRestarts(2, .8, 1, (1e-3,1e-2)).warmup(.6), **kw), CosineRestarts(2, .8, 1, (1e-3,1e-2)).warmup(.6)),
    (lambda o,**kw: o.fit_schedule(2, lr=Linear((0,1e-3), 1e-2, .5).then(StepDecay((1e-2,1e-3), .5, 1, 1.3)), **kw),
        Linear((0,1e-3), 1e-2, .5).then(StepDecay((1e-2,1e-3), .5, 1, 1.3)))],
    ids=['sgdr','sgdr_all','clr','clr_all','step','exp','sgdr_min','clr_min','warmup','then'])
def test_held(opt, fit, sched):
    learn,watch = two_groups(7, optimizers[opt]),Watch()
    fit(learn, cbs=watch)
    assert watch.curve()==pytest.approx(sched.values(7), rel=1e-15) and watch.ends==sched.bounds(7)[1:]

def test_defaults():
    learn,watch = learner(6, lr=3e-3),Watch()
    learn.fit_sgdr(3, cbs=watch)
    assert np.array_equal(watch.curve(), CosineRestarts(3, 1, 2, 3e-3).values(6)), 'the Learner\'s lr, and cycle_mult=2 as in fastai'
    learn.fit_clr(1, cbs=watch)
    assert np.array_equal(watch.curve(), Triangular(1, 2, 3e-3).values(6))
    learn.fit_schedule(2, lr=InverseTimeDecay(.1, 1), cbs=watch)
    assert watch.curve()[6]==.05

@pytest.mark.parametrize('fit', [lambda o,**kw: o.fit_sgdr(2, 1, .01, **kw), lambda o,**kw: o.fit_clr(2, .75, .01, lr_min=0, **kw)])
def test_moms(fit):
    "Highest where the lr is lowest"
    learn,watch = learner(8),Watch()
    fit(learn, cbs=watch, moms=(.8,.95))
    assert watch.curve('mom')==pytest.approx(.95 - .15*watch.curve()/.01)
    fit(learn, cbs=watch)
    assert len(set(watch.curve('mom')))==1, 'without `moms` it is left alone'

@pytest.mark.parametrize('mode,scale', [('triangular',1), ('triangular2',.5)])
def test_moms_of_clr_have_its_mode(mode, scale):
    learn,watch = learner(4),Watch()
    learn.fit_clr(2, .5, .01, 0., mode, cbs=watch, moms=(.8,.9))
    assert watch.curve('mom')[[2,6]]==pytest.approx([.8, .9-.1*scale])

def test_scale_fn():
    learn,watch = learner(4),Watch()
    learn.fit_clr(2, .5, .01, 0., scale_fn=lambda b: 1/(1+b), scale_mode='iterations', cbs=watch)
    assert watch.curve()[[2,6]]==pytest.approx([.01/3, .01/7])

def test_wd():
    learn,watch = learner(5),Watch()
    learn.fit_sgdr(1, wd=.3, cbs=watch)
    assert set(watch.curve('wd'))=={.3}
    learn.fit_schedule(2, wd=ExpDecay(.1, 1.), cbs=watch)
    assert watch.curve('wd')==pytest.approx(.1*np.exp(-np.arange(10)/5)) and set(watch.curve())=={learn.lr}
    learn.fit_schedule(2, lr=ExpDecay(.1, 1.), wd=.2, cbs=watch)
    assert set(watch.curve('wd'))=={.2}

def test_several_hyper_parameters():
    learn,watch = two_groups(5, Adam),Watch()
    scheds = dict(lr=CosineRestarts(2, lr_max=.01), mom=Triangular(1, 1, .8, .95), wd=StepDecay(.1, .5, 1), sqr_mom=ExpDecay(.99, .01), eps=StepDecay(1e-5))
    learn.fit_schedule(2, cbs=watch, **scheds)
    for k,s in scheds.items(): assert np.array_equal(watch.curve(k)[:,0], s.values(5, 10)), k
    assert learn.recorder.hps.keys()==scheds.keys() and watch.ends==[5,10]
    learn.recorder.plot_sched()
    assert {o.get_ylabel() for o in plt.gcf().axes if o.lines}==scheds.keys()
    plt.close('all')

@pytest.mark.parametrize('fit', [lambda o,**kw: o.fit_sgdr(2, **kw), lambda o,**kw: o.fit_clr(1, **kw), lambda o,**kw: o.fit_schedule(2, lr=ExpDecay(.1, 1), **kw)])
def test_reset_opt(fit):
    learn = learner(4)
    fit(learn)
    opt = learn.opt
    fit(learn)
    assert learn.opt is opt, 'one optimizer, so that its state goes on'
    fit(learn, reset_opt=True)
    assert learn.opt is not opt

def test_one_optimizer_for_the_whole_fit():
    learn,states = learner(4),[]
    class Avg(Watch):
        def after_cycle(self): states.append([self.opt.state[p]['grad_avg'].clone() for p in self.model.parameters()])
        def before_epoch(self):
            if self.epoch: assert all((self.opt.state[p]['grad_avg']==s).all() for p,s in zip(self.model.parameters(), states[-1]))
    learn.fit_sgdr(2, cycle_mult=1, cbs=Avg())
    assert len(states)==2

def test_cbs_are_gone_afterwards():
    learn,watch = learner(3),Watch()
    n = len(learn.cbs)
    learn.fit_sgdr(1, cbs=[watch], patience=1)
    assert len(learn.cbs)==n and not hasattr(learn, 'cycle_scheduler')
    with pytest.raises(ValueError): learn.fit_sgdr(1, patience=1, monitor='none')
    assert len(learn.cbs)==n

# How long

@pytest.mark.parametrize('kw,n,ends', [(dict(n_cycles=2, cycle_mult=1), 20, [10,20]), (dict(n_cycles=3, cycle_len=.5, cycle_mult=1), 15, [5,10,15]),
    (dict(n_cycles=2, cycle_len=.3), 9, [3,9]), (dict(n_cycles=3, cycle_len=1, cycle_mult=1.5), 48, [10,25,48])])
def test_length(kw, n, ends):
    "The last cycle may end inside an epoch: the fit ends there, the recorder's row is whole"
    learn,watch = learner(10),Watch()
    learn.fit_sgdr(lr_max=.01, cbs=watch, **kw)
    assert watch.batches==list(range(n)) and watch.ends==ends and len(learn.recorder.losses)==n
    assert [len(o) for o in learn.recorder.values]==[2]*-(-n//10)

def test_one_batch():
    learn,watch = learner(1),Watch()
    learn.fit_sgdr(3, lr_max=.01, cbs=watch)
    assert len(watch.batches)==7 and watch.ends==[1,3,7]

@pytest.mark.parametrize('fit,n_epochs', [(dict(n_cycles=5, cycle_mult=1, max_epochs=3), 3), (dict(n_cycles=5, max_epochs=6), 3), (dict(n_cycles=5, max_epochs=7), 7),
    (dict(n_cycles=2, max_epochs=100), 3), (dict(n_cycles=None, patience=9, max_epochs=7.5), 7),
    (dict(n_cycles=None, cycle_len=2, cycle_mult=1, patience=9, max_epochs=5), 4),
    (dict(n_cycles=9, cycle_len=1.5, cycle_mult=1, max_epochs=4), 3), (dict(n_cycles=1, cycle_len=2, max_epochs=2), 2)])
def test_max_epochs(fit, n_epochs):
    "Whole cycles only"
    learn,watch = learner(4),Watch()
    learn.fit_sgdr(lr_max=1e-3, cbs=watch, **fit)
    assert len(watch.batches)==4*n_epochs and getattr(learn.recorder, 'stopped', None) is None

def test_max_epochs_of_clr():
    learn,watch = learner(4),Watch()
    learn.fit_clr(None, 1, 1e-3, cbs=watch, patience=9, max_epochs=5)
    assert len(watch.batches)==16 and watch.ends==[8,16]

def test_until_over_fitting():
    "`n_cycles=None` goes on until then; the cycle's peak lr that makes it worse is one too high"
    learn,watch = learner(4),Watch()
    learn.fit_sgdr(None, lr_max=1., cycle_mult=1, cbs=watch, patience=2, max_epochs=50)
    vals = [o[1] for o in learn.recorder.values]
    best = int(np.nanargmin(vals))
    assert len(vals)<50 and len(vals)==best+3 and learn.recorder.best_epoch==best and learn.recorder.stopped
    assert same(weights(learn), watch.states[best])

@pytest.mark.parametrize('kw', [{}, dict(patience=1), dict(max_epochs=5)])
@pytest.mark.parametrize('fit', [Learner.fit_sgdr, Learner.fit_clr])
def test_endless_needs_an_end(fit, kw):
    with pytest.raises(ValueError, match='`n_cycles=None` trains until over-fitting: it needs `patience` and `max_epochs`'): fit(learner(3), None, **kw)

@pytest.mark.parametrize('v', [0, -1, 1.5, float('nan')])
def test_bad_max_epochs(v):
    with pytest.raises(ValueError, match='`max_epochs` must leave room for the first cycle of 2 epochs, got'): learner(3).fit_sgdr(3, 2, max_epochs=v)

def test_max_epochs_of_fractions():
    learn,watch = learner(10),Watch()
    learn.fit_sgdr(5, .1, 1e-3, 1, cbs=watch, max_epochs=.3)
    assert len(watch.batches)==3

@contextmanager
def in_time(seconds):
    "Fail what takes longer"
    def hung(*_): pytest.fail('it hangs')
    old = signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)

@pytest.mark.parametrize('mult', [1,2])
def test_max_epochs_without_end(mult):
    with in_time(10), pytest.raises(ValueError, match='`max_epochs`'): learner(3).fit_sgdr(None, cycle_mult=mult, patience=1, max_epochs=float('inf'))

def test_max_epochs_that_is_no_limit():
    with in_time(60): learner(2).fit_sgdr(None, lr_max=100., cycle_mult=1, patience=1, max_epochs=10**8)

def test_max_epochs_of_another_type():
    with pytest.raises(TypeError, match='`max_epochs` must'): learner(3).fit_sgdr(3, max_epochs='5')

# Errors

def state(learn):
    "All that a call which is refused must leave as it was"
    opt,rec = learn.opt,learn.recorder
    held = [{k:v.tolist() if isinstance(v, torch.Tensor) else v for k,v in opt.state[p].items()} for o in opt.param_lists for p in o]
    seen = {k:list(getattr(rec, k)) for k in ('lrs','losses','iters','values')}
    return dict(weights=[p.tolist() for p in learn.model.parameters()], opt=id(opt), state=held, hypers=[dict(o) for o in opt.hypers],
        cbs=[id(o) for o in learn.cbs], recorded=seen, hps={k:list(v) for k,v in rec.hps.items()}, attrs=set(vars(learn)),
        counts=(learn.n_epoch,learn.epoch,learn.train_iter), lr=learn.lr, wd=learn.wd)

@pytest.fixture(scope='module')
def fitted():
    "A Learner of two groups that has been trained; tests of what is refused may share it"
    learn = two_groups(4, Adam)
    learn.fit_sgdr(1, lr_max=slice(1e-3,1e-2), wd=.02, moms=(.8,.9))
    return learn

@contextmanager
def untouched(learn):
    before = state(learn)
    yield
    assert state(learn)==before

inf,nan = math.inf,math.nan
no_number,no_length = ['1', None, True, [1], 1j, abs],[0, -1, nan, inf]
lrs = ['x', True, 1j, [], (), [.1]*3, np.ones(3), np.array([]), np.ones((2,2)), [[.1],[.2]], -1, nan, inf, [.1,nan], [.1,-1], [.1,'x'], [True,.1], slice(-.1,.1),
    slice(.1,inf), {'a': 1}]
# By argument: what is a TypeError, and what is a ValueError
any_fit = dict(cbs=(['x', 5, [Watch,None], [Watch,object()], learner, [SGDR(.1),.1]],[]), start_epoch=(['1', None, True, 1.5, [1], nan, inf],[-1, 99]),
    wd=(['x', True, 1j, [.1,'x'], [True,.1], slice('a'), slice(None), {'a': 1}],[-1, nan, inf, [.1,-1], (nan,.1), slice(-.1,.1), slice(.1,inf), np.array([.1,-.1])]),
    patience=([],['1', True, [1], 1.5, nan, 0, -1]), comp=([],['less', min, max, True]))
any_cycles = dict(any_fit, n_cycles=(['1', True, 1.5, [1], 1j, nan, inf, 2.],[0, -1, None, 10**13]), max_epochs=(['5', True, [5], 1j],[0, -1, .01, nan, inf]),
    moms=([.9, 'ab', (None,.9), ('a','b'), {.8,.9}],[(.9,), (), (.8,.9,.8), (.8,1), (-.1,.9), (nan,.9), (.8,inf)]))
wrong = dict(fit_sgdr=dict(any_cycles, cycle_len=(no_number,no_length), cycle_mult=(no_number,no_length), cycle_decay=(no_number,no_length),
        warmup_pct=(no_number,[1, -.1, nan, inf]), lr_max=([],lrs), lr_min=([],lrs)),
    fit_clr=dict(any_cycles, step_size=(no_number,no_length), mode=([],['up', None, 1, ['triangular']]), gamma=(['1', True, [1], 1j],[0, -1, 1.1, nan, inf]),
        scale_fn=([1, 'x', .5, [abs], lambda c: 'x', lambda c: None, lambda: 1],[lambda c: nan, lambda c: -1., lambda c: inf]), scale_mode=([],['batch', None, 1]),
        lr_max=([],lrs), lr_min=([],lrs)),
    fit_schedule=dict(any_fit, n_epoch=(['1', None, True, 1.5, [1], nan, inf, 2.],[0, -1, 1, 3])))
valid = dict(fit_sgdr=dict(n_cycles=2, lr_max=.01), fit_clr=dict(n_cycles=2, step_size=.5, lr_max=.01),
    fit_schedule=dict(n_epoch=2, lr=CosineRestarts(2, lr_max=.01)))
calls = [(f,k,err,v) for f,d in wrong.items() for k,both in d.items() for err,vals in zip((TypeError,ValueError), both) for v in vals]

@pytest.mark.parametrize('fit,name,err,v', calls, ids=[f'{f}-{k}={getattr(v, "__name__", repr(v)):.30}' for f,k,_,v in calls])
def test_wrong_arguments(fitted, fit, name, err, v):
    "Each of them is refused by name, and leaves the weights, the optimizer, the callbacks and what was recorded alone"
    names = dict(n_epoch='`n_epoch`|fit [13]:', scale_fn='`scale_fn|takes 0 positional', lr_min='`lr_min`|parameter groups').get(name, f'`{name}')
    kw = {**valid[fit], **(dict(patience=1) if name=='comp' else {}), name:v}
    with untouched(fitted), pytest.raises((TypeError,ValueError) if name in ('lr_max','lr_min') else err, match=names): getattr(fitted, fit)(**kw)

@pytest.mark.parametrize('fit', ['fit_sgdr','fit_clr'])
@pytest.mark.parametrize('kw', [dict(lr_max=0), dict(lr_max=[.1,0]), dict(lr_min=.01), dict(lr_min=[1e-3,.02]), dict(lr_max=slice(1e-3,1e-2), lr_min=5e-3),
    dict(lr_min=slice(.1,.2)), dict(lr_max=np.float32(0))])
def test_bounds_of_the_lr(fitted, fit, kw):
    with untouched(fitted), pytest.raises(ValueError, match='`lr_max`'): getattr(fitted, fit)(**{**valid[fit], **kw})

@pytest.mark.parametrize('kw,err,match', [({},ValueError,'pass at least one schedule'), (dict(lr=.1),TypeError,'`lr` must be a schedule'),
    (dict(lr=nan),TypeError,'`lr` must be a schedule'), (dict(lr=None),TypeError,'`lr` must be a schedule'), (dict(mom=(.8,.9)),TypeError,'`mom` must be a schedule'),
    (dict(lr=[StepDecay(.1)]*2),TypeError,'`lr` must be a schedule'), (dict(lr=StepDecay),TypeError,'`lr` must be a schedule'),
    (dict(max_epochs=3),TypeError,'`max_epochs` must be a schedule'), (dict(foo=StepDecay(.1)),ValueError,'`foo` is not a hyper-parameter'),
    (dict(lr=StepDecay((.1,.2,.3))),ValueError,'3 parameter groups, the optimizer has 2'), (dict(lr=StepDecay(-.1)),ValueError,'`lr` must be above 0'),
    (dict(lr=Linear(-1, 1, 2)),ValueError,'`start` and `end`'), (dict(lr=CosineRestarts(1).warmup(1.5)),ValueError,'`lr` lasts 2.5 epochs, the fit 2'),
    (dict(lr=StepDecay(.1), mom=CosineRestarts(3)),ValueError,'the schedule of `mom` lasts 3 epochs'), (dict(wd=CosineRestarts(3)),ValueError,'the schedule of `wd` lasts 3'),
    (dict(lr=CosineRestarts(2, lr_max=.1, lr_min=.2)),ValueError,'`lr_max` must be above'), (dict(lr=CosineRestarts(20, .1)),ValueError,'each cycle needs at least one batch')])
def test_wrong_schedules(fitted, kw, err, match):
    with untouched(fitted), pytest.raises(err, match=match): fitted.fit_schedule(2, **kw)

def test_refused_without_an_optimizer():
    "An optimizer is made, and nothing else"
    learn = two_groups(4)
    before,n_cbs = weights(learn),len(learn.cbs)
    with pytest.raises(ValueError, match='lr_max'): learn.fit_sgdr(2, lr_max=-1)
    assert same(before, weights(learn)) and len(learn.cbs)==n_cbs and not hasattr(learn.recorder, 'values') and [o['lr'] for o in learn.opt.hypers]==[learn.lr]*2

begun = [(dict(patience=1, monitor='none', comp=np.less), '`monitor` must be one of'), (dict(snapshots='a/b'), '`snapshots` must be a plain name'),
    (dict(snapshots=''), '`snapshots` must be a plain name'), (dict(cycle_len=.5, patience=1), '`patience` needs cycles that end with an epoch'), (dict(cbs=SGDR(.1)), '`lr`'),
    (dict(cbs=CycleScheduler(lr=CosineRestarts(3))), '`lr`'), (dict(cbs=ParamScheduler({'lr': lambda o: .1})), '`lr`'), (dict(reset_opt=True, cbs=SGDR(.1)), '`lr`')]

@pytest.mark.parametrize('kw,says', begun, ids=map(str, range(len(begun))))
def test_wrong_for_a_callback(kw, says):
    "What only the callbacks of the fit know is found before it begins too"
    learn = two_groups(4, Adam)
    learn.fit_sgdr(1)
    with untouched(learn), pytest.raises(ValueError, match=says): learn.fit_sgdr(**{**valid['fit_sgdr'], **kw})

def test_callback_that_cannot_be_made():
    learn = two_groups(4, Adam)
    learn.fit_sgdr(1)
    with untouched(learn), pytest.raises(TypeError): learn.fit_sgdr(1, cbs=SGDR)

@pytest.mark.parametrize('opt,wd', [(Adam,[.1]*3), (Adam,[]), (Adam,slice(None,None,.1)), (partial(OptimWrapper, opt=torch.optim.Rprop),.1)])
def test_wd_that_does_not_fit(opt, wd):
    with pytest.raises((TypeError,ValueError), match='`wd`'): two_groups(4, opt).fit_sgdr(1, wd=wd)

@pytest.mark.parametrize('name,kw', [('lr_max', dict(lr_max=10**400)), ('lr_min', dict(lr_min=10**400)), ('max_epochs', dict(max_epochs=10**400)),
    ('cycle_decay', dict(n_cycles=60, cycle_len=.5, cycle_mult=1, cycle_decay=10.))], ids=['lr_max','lr_min','max_epochs','cycle_decay'])
def test_beyond_floats(name, kw):
    with pytest.raises(ValueError, match=f'`{name}`'): learner(4).fit_sgdr(**{**valid['fit_sgdr'], **kw})

@pytest.mark.parametrize('wd', [np.float32(.1), np.array(.1)])
def test_wd_of_numpy(wd):
    learn,watch = learner(4),Watch()
    learn.fit_sgdr(1, wd=wd, cbs=watch)
    assert watch.curve('wd')==pytest.approx([.1]*4)

def test_reset_of_a_built_optimizer():
    learn = two_groups(4)
    learn.opt_func = OptimWrapper(opt=torch.optim.AdamW(learn.model.parameters()))
    learn.fit_sgdr(1)
    n = len(learn.opt.opt.state)
    with pytest.raises(ValueError, match='`lr_max`'): learn.fit_sgdr(1, lr_max=-1, reset_opt=True)
    assert n and len(learn.opt.opt.state)==n

def test_max_epochs_of_numpy():
    learn,watch = learner(4),Watch()
    learn.fit_sgdr(np.int64(5), np.int64(1), 1e-3, np.int64(1), cbs=watch, max_epochs=np.int64(3))
    assert len(watch.batches)==12

@pytest.mark.parametrize('old,new,kw', [(SGD,Adam,dict(moms=(.8,.9))), (Adam,SGD,dict(moms=(.8,.9)))])
def test_reset_opt_to_another_one(old, new, kw):
    "The new one has momentum where the old one had not: a fit. The other way round: refused, before there is a new one"
    learn = two_groups(4, old)
    learn.fit_sgdr(1)
    made,learn.opt_func = learn.opt,new
    if new is SGD:
        with pytest.raises(ValueError, match='`mom`'): learn.fit_sgdr(1, reset_opt=True, **kw)
        assert learn.opt is made
    else: learn.fit_sgdr(1, reset_opt=True, **kw)

def test_reset_opt_to_other_groups():
    learn,watch = two_groups(4),Watch()
    by_layer,learn.splitter = learn.splitter,lambda m: [list(m.parameters())]
    learn.create_opt()
    learn.splitter = by_layer
    learn.fit_sgdr(1, 1, slice(1e-3,1e-2), reset_opt=True, cbs=watch)
    assert watch.curve()[0]==pytest.approx([1e-3,1e-2])

# Any arguments

def half(x): return x/2
def falling(x): return 1/(1+x)
def negative(x): return -x

junk = st.sampled_from([None, True, nan, inf, -inf, 0, -1, -.5, 1.5, 'x', [], [1], (), 1j, {}, object, (.1,.2,.3)])
def lrs_of(x): return x | st.tuples(x, x) | st.tuples(x, x).map(list) | st.tuples(x, x).map(np.array) | st.builds(slice, x, x) | st.builds(slice, x)
lengths,mults = st.integers(1, 3) | st.floats(.5, 3),st.sampled_from([1,2]) | st.floats(.7, 2)
fit_args = dict(reset_opt=st.booleans(), wd=st.floats(0, .1) | st.tuples(st.floats(0, .1), st.floats(0, .1)), start_epoch=st.integers(0, 2))
cycle_args = dict(fit_args, n_cycles=st.integers(1, 4) | st.none(), lr_max=lrs_of(st.floats(1e-4, .1)) | st.none(), patience=st.integers(1, 3),
    lr_min=lrs_of(st.floats(1e-9, 1e-5)) | st.floats(0, .01), moms=st.tuples(st.floats(0, .99), st.floats(0, .99)) | st.none(), max_epochs=st.integers(1, 12))
size = st.floats(1e-4, .1) | st.tuples(st.floats(1e-4, .1), st.floats(1e-4, .1))
scheds = st.one_of(st.builds(CosineRestarts, st.integers(1, 3), lengths, mults, size), st.builds(Triangular, st.integers(1, 2), lengths, size),
    st.builds(StepDecay, size, st.floats(.1, 1), st.integers(1, 3)), st.builds(ExpDecay, size, st.floats(0, 2), st.none() | lengths),
    st.builds(Linear, size, size, lengths))
good = dict(fit_sgdr=dict(cycle_args, cycle_len=lengths, cycle_mult=mults, cycle_decay=st.floats(.5, 1.2), warmup_pct=st.floats(0, .99)),
    fit_clr=dict(cycle_args, step_size=st.sampled_from([.5,1,1.5]), mode=st.sampled_from(['triangular','triangular2','exp_range']), gamma=st.floats(.5, 1),
        scale_fn=st.sampled_from([half, falling, negative]), scale_mode=st.sampled_from(['cycle','iterations'])),
    fit_schedule=dict(fit_args, n_epoch=st.integers(1, 8), lr=scheds | st.builds(lambda s,n,start: s.warmup(n, start), scheds, lengths, st.floats(0, .1)),
        mom=st.builds(StepDecay, st.floats(.1, .9), st.floats(.5, 1)) | st.builds(Linear, st.floats(0, .9), st.floats(0, .9), st.integers(1, 8))))
needed = dict(fit_sgdr=['n_cycles'], fit_clr=['n_cycles'], fit_schedule=['n_epoch','lr'])

@st.composite
def any_call(draw):
    "A method and its arguments: some left out, most of them fit each other, and one may make no sense"
    fit,odd = draw(st.sampled_from(sorted(good))),draw(st.integers(0, 5))
    kw = {k:draw(v) for k,v in good[fit].items() if k in needed[fit] or draw(st.booleans())}
    if odd>1 and kw.get('n_cycles', 1) is None: kw.update(patience=2, max_epochs=9)
    if odd>1 and kw.get('mode')=='exp_range': kw.setdefault('gamma', .9)
    if odd>1 and fit=='fit_schedule' and kw['lr'].n_epochs: kw['n_epoch'] = kw['lr'].n_batches(1)
    if odd>1 and isinstance(kw.get('mom'), Linear): kw['mom'] = Linear(.9, .5, kw['n_epoch'])
    if odd==0: kw[draw(st.sampled_from(sorted(good[fit])))] = draw(junk)
    return fit,kw

def of_groups(learn, v):
    "What fastai makes of `v`, a lr for each of the two groups"
    if v is None: v = learn.lr
    if isinstance(v, slice): v = even_mults(v.start, v.stop, 2) if v.start else [v.stop/10,v.stop]
    return tuple(float(o) for o in np.broadcast_to(v, 2))

def sched_of(learn, fit, lr_max=None, lr_min=None, n_cycles=None, max_epochs=None, lr=None, cycle_mult=2, **kw):
    "The schedule that the lr is to follow, as long as `max_epochs` allows"
    if fit=='fit_schedule': return lr
    kw = {k:v for k,v in kw.items() if k not in (*fit_args,'moms','patience')}
    if fit=='fit_sgdr': make = partial(CosineRestarts, cycle_mult=cycle_mult, lr_min=of_groups(learn, 0. if lr_min is None else lr_min), **kw)
    else: make = partial(Triangular, lr_min=None if lr_min is None else of_groups(learn, lr_min), **kw)
    n = 1 if max_epochs else n_cycles
    while max_epochs and n!=n_cycles and make(n+1).n_epochs<=max_epochs*(1+1e-9): n += 1
    return make(n, lr_max=of_groups(learn, lr_max))

@settings(max_examples=cases(700), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(any_call())
def test_any_arguments(call):
    "It trains by just the schedule that was asked for, or says by name what is wrong and touches nothing; nothing else, and it does not hang"
    fit,kw = call
    learn,watch = two_groups(1, Adam),Watch()
    learn.fit_sgdr(1)
    before,raised = state(learn),None
    with in_time(10):
        try: getattr(learn, fit)(**kw, cbs=watch)
        except (TypeError,ValueError) as e: raised = str(e)
    if raised is not None:
        assert re.search(r'`\w+|each cycle|epochs, the fit', raised), raised
        assert state(learn)==before
        return
    sched,start = sched_of(learn, fit, **kw),kw.get('start_epoch', 0)
    want = sched.values(1, None if sched.n_epochs else kw['n_epoch'])
    want = (want if want.ndim==2 else np.stack([want]*2, 1))[start:]
    if kw.get('patience'): want = want[:len(watch.held)]
    assert np.array_equal(np.array([[h['lr'] for h in o] for o in watch.held]).reshape(-1, 2), want)
    assert np.array_equal(learn.recorder.hps['lr'], want[:,-1]) and np.array_equal(learn.recorder.lrs, want[:,-1])
    ends = [o for o in sched.bounds(1, start+len(want) if sched.n_epochs is None else None)[1:] if start<o]
    if sched.n_epochs and not kw.get('patience'): assert watch.ends==ends
    if 'mom' in kw: assert [o[0]['mom'] for o in watch.held]==list(kw['mom'].values(1, start+len(want))[start:])

@pytest.mark.parametrize('kw,err,name', [(dict(n_cycles=0),ValueError,'n_cycles'), (dict(n_cycles=1.5),TypeError,'n_cycles'), (dict(cycle_len=0),ValueError,'cycle_len'),
    (dict(cycle_len='1'),TypeError,'cycle_len'), (dict(cycle_mult=0),ValueError,'cycle_mult'), (dict(lr_max=0),ValueError,'lr_max'), (dict(lr_max=-1),ValueError,'lr_max'),
    (dict(lr_max='x'),ValueError,'lr_max'), (dict(lr_max=[1,2,3]),ValueError,'lr_max'), (dict(lr_min=float('nan')),ValueError,'lr_min'), (dict(lr_min=1.),ValueError,'lr_max'),
    (dict(lr_min=-1.),ValueError,'lr_min'), (dict(lr_min=(1e-5,1e-4,1e-3)),ValueError,'parameter groups'), (dict(cycle_decay=0),ValueError,'cycle_decay'),
    (dict(warmup_pct=1),ValueError,'warmup_pct'), (dict(moms=(.9,)),ValueError,'moms'), (dict(moms=(1,.9)),ValueError,'moms'), (dict(snapshots='a/b'),ValueError,'snapshots'),
    (dict(patience=0),ValueError,'patience'), (dict(patience=1, monitor='loss'),ValueError,'comp'), (dict(patience=1, comp=max),ValueError,'comp'), (dict(cycle_len=.01),ValueError,'cycle'),
    (dict(momentum=.9),TypeError,'momentum')])
def test_errors_of_fit_sgdr(kw, err, name):
    "Nothing is trained, and the learner works afterwards"
    learn = learner(5)
    before = weights(learn)
    with pytest.raises(err, match=name): learn.fit_sgdr(**{**dict(n_cycles=2, lr_max=.01), **kw})
    assert same(before, weights(learn))
    learn.fit_sgdr(1)
    assert learn.recorder.lrs[0]==learn.lr

def test_exp_range_without_gamma():
    with pytest.raises(ValueError, match='`gamma`'): learner(5).fit_clr(2, lr_max=.01, mode='exp_range')

@pytest.mark.parametrize('kw', [{}, dict(wd=.1)], ids=['none','wd'])
def test_no_schedule(kw):
    with pytest.raises(ValueError, match='pass at least one schedule by the name of its hyper-parameter'): learner(5).fit_schedule(2, **kw)

@pytest.mark.parametrize('call', [lambda l,n,**kw: l.fit_sgdr(n, 1, .02, 1, **kw), lambda l,n,**kw: l.fit_clr(n, .5, .02, **kw),
    lambda l,n,**kw: l.fit_schedule(n, lr=CosineRestarts(n, lr_max=.02), **kw)], ids=['sgdr','clr','schedule'])
def test_each_fit_takes_what_is_done_at_cycle_ends(tmp_path, call):
    learn = learner(3, path=tmp_path)
    call(learn, 3, snapshots='s', keep=2)
    assert list(learn.snapshots('s')['cycle'])==[1,2]
    call(learn, 1, snapshots='s', overwrite=True)
    assert list(learn.snapshots('s')['cycle'])==[0]
    call(learn, 4, patience=1, monitor='train_loss', comp=np.greater, cbs=Script([1,2,1,3], 0))
    assert learn.recorder.best_epoch==1 and len(learn.recorder.values)==3 and 'train_loss was 1' in learn.recorder.stopped

def test_momentum_on_an_optimizer_without():
    for f in Learner.fit_sgdr, Learner.fit_clr:
        with pytest.raises(ValueError, match='`mom` is not a hyper-parameter that this optimizer uses: it uses lr'): f(two_groups(5, SGD), 2, moms=(.8,.9))

# Beside other callbacks

def test_fastais_trackers(tmp_path):
    learn,watch = learner(5, path=tmp_path),Watch()
    learn.fit_sgdr(3, lr_max=.05, cbs=[watch, SaveModelCallback(), ReduceLROnPlateau(min_delta=9e9), EarlyStoppingCallback(patience=6)])
    assert np.array_equal(watch.curve(), CosineRestarts(3, 1, 2, .05).values(5)[:len(watch.batches)])
    best = min(o[1] for o in learn.recorder.values)
    assert (tmp_path/'models/model.pth').is_file() and learn.validate()[0]==pytest.approx(best)

def test_early_stopping_ends_it():
    learn,watch = learner(5),Watch()
    learn.fit_sgdr(6, lr_max=1e-9, cycle_mult=1, cbs=[watch, EarlyStoppingCallback(min_delta=1., patience=2)])
    assert len(learn.recorder.values)==3 and watch.ends==[5,10,15]

def test_two_schedulers():
    for cb in CycleScheduler(lr=CosineRestarts(3)), ParamScheduler({'lr': lambda o: .1}):
        with pytest.raises(ValueError, match='only one scheduler may drive `lr`'): learner(5).fit_sgdr(2, cbs=cb)

def test_attached_sgdr():
    with pytest.raises(ValueError, match='only one scheduler may drive `lr`'): learner(5, cbs=SGDR(.01)).fit_sgdr(2)

# plot_schedule

def test_plot_schedule():
    learn = learner(7)
    ax = learn.plot_schedule(CosineRestarts(2, 1, 2))
    assert np.array_equal(ax.lines[0].get_ydata(), CosineRestarts(2, 1, 2).values(7)) and ax.get_title()=='21 batches, 3 epochs of 7'
    assert [o.get_xdata()[0] for o in ax.lines[1:]]==[0,1,3]
    assert learn.plot_schedule(CosineRestarts(1, 2.5)).get_title()=='18 batches, 2.57143 epochs of 7'
    with pytest.raises(ValueError, match='is endless'): learn.plot_schedule(ExpDecay(.1, 1))
    assert learn.opt is None, 'nothing is touched'
    plt.close('all')

def test_plot_schedule_on_an_axis():
    ax = plt.subplots()[1]
    ax.plot([1,2,3])
    assert learner(7).plot_schedule(ExpDecay(.1, 1), 2, ax=ax) is ax and ax.get_title()=='14 batches, 2 epochs of 7'
    plt.close('all')

def test_plot_schedule_of_groups():
    "They are named by what is in them, with the optimizer and without"
    learn,sched = two_groups(4),CosineRestarts(2, lr_max=(.01,.1)).warmup(.5)
    for _ in range(2):
        ax = learn.plot_schedule(sched)
        assert [o.get_text() for o in ax.get_legend().get_texts()]==['0: 0','1: 1']
        assert np.array_equal([o.get_ydata() for o in ax.lines[:2]], sched.values(4).T) and ax.get_title()=='10 batches, 2.5 epochs of 4'
        assert [o.get_xdata()[0] for o in ax.lines[2:]]==[0,1.5,2.5]
        plt.close('all')
        learn.create_opt()
    assert learn.plot_schedule(CosineRestarts(1)).get_legend() is None, 'one curve for all groups needs no names'
    plt.close('all')

@pytest.mark.parametrize('splitter,names', [(lambda m: [list(m[0].parameters()),[*m[1].parameters(),*m[2].parameters()]], ['0: 0','1: 1 … 2']),
    (lambda m: [{'params': list(m[0].parameters())},{'params': [m[2].bias]}], ['0: 0','1: 2']), (lambda m: [[m[0].weight],[]], ['0: 0','1: no parameters'])])
def test_names_of_groups(splitter, names):
    learn = two_groups(3)
    learn.splitter = splitter
    learn.model.append(torch.nn.Linear(1, 1))
    texts = learn.plot_schedule(StepDecay((.1,.2), n_epochs=1)).get_legend().get_texts()
    assert [o.get_text() for o in texts]==names and learn.opt is None
    plt.close('all')

@pytest.mark.parametrize('v', [.1, None, 'cosine', CosineRestarts, nan, [CosineRestarts(1)], abs])
def test_plot_of_no_schedule(v):
    with pytest.raises(TypeError, match='`sched` must be a schedule such as'): learner(3).plot_schedule(v)

@pytest.mark.parametrize('sched,n_epoch,match', [(CosineRestarts(1, lr_max=(1,2,3)),None,'`sched` has values for 3 parameter groups, the Learner has 2'),
    (StepDecay((.1,.2,.3)),2,'`sched` has values for 3 parameter groups'), (CosineRestarts(None),None,'is endless'), (CosineRestarts(1).then(StepDecay(.1)),None,'is endless'),
    (CosineRestarts(20, .1),None,'each cycle needs at least one batch'), (CosineRestarts(1),2,'`n_epoch` must be a whole number of epochs from 1 to 1, got 2')])
def test_plot_refuses(sched, n_epoch, match):
    "No figure is opened, and no optimizer is made"
    learn = two_groups(3)
    with pytest.raises(ValueError, match=match): learn.plot_schedule(sched, n_epoch)
    assert not plt.get_fignums() and learn.opt is None

@pytest.mark.parametrize('n_epoch,err', [(0,ValueError), (-1,ValueError), (nan,ValueError), (inf,ValueError), (.1,ValueError), ('2',TypeError), (True,TypeError),
    ([],TypeError), (3,ValueError)])
def test_plot_of_wrong_epochs(n_epoch, err):
    with pytest.raises(err, match='`n_epoch`'): learner(3).plot_schedule(CosineRestarts(2), n_epoch)
