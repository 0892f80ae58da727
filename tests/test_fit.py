"`fit`: the Learner methods, and that fastai's own do what they did"
import inspect, json, matplotlib.pyplot as plt, numpy as np, pytest, signal, sys
from conftest import run
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.optimizer import SGD, Adam, ranger
from fastai_clr.cycles import SGDR, CycleScheduler
from fastai_clr.fit import Learner
from fastai_clr.schedules import CosineRestarts, ExpDecay, InverseTimeDecay, StepDecay, Triangular
from fastcore.basics import partial
from learners import Watch, adamw, learner, same, two_groups, weights

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

def params(m): return list(m.parameters())
def make(groups=False):
    torch.manual_seed(0)
    random.seed(0)
    kw = dict(model=nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1)), splitter=lambda m: [params(m[0]), params(m[1])]) if groups else {}
    learn = synth_learner(n_trn=8, path=tempfile.mkdtemp(), **kw)
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
    (lambda o,**kw: o.fit_schedule(2, lr=ExpDecay((1e-3,1e-2), .5, 1.5), **kw), ExpDecay((1e-3,1e-2), .5, 1.5))],
    ids=['sgdr','sgdr_all','clr','clr_all','step','exp'])
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

@pytest.mark.parametrize('mult', [1,2])
def test_max_epochs_without_end(mult):
    def hung(*_): pytest.fail('it hangs')
    old = signal.signal(signal.SIGALRM, hung)
    signal.alarm(1)
    try:
        with pytest.raises(ValueError, match='`max_epochs`'): learner(3).fit_sgdr(None, cycle_mult=mult, patience=1, max_epochs=float('inf'))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)

def test_max_epochs_of_another_type():
    with pytest.raises(TypeError, match='`max_epochs` must'): learner(3).fit_sgdr(3, max_epochs='5')

# Errors

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

@pytest.mark.parametrize('kw,err,name', [(dict(step_size=0),ValueError,'step_size'), (dict(mode='x'),ValueError,'mode'), (dict(mode='exp_range'),ValueError,'gamma'),
    (dict(gamma=2.),ValueError,'gamma'), (dict(scale_fn=1),TypeError,'scale_fn'), (dict(scale_mode='x'),ValueError,'scale_mode'), (dict(lr_min=.01),ValueError,'lr_max')])
def test_errors_of_fit_clr(kw, err, name):
    with pytest.raises(err, match=name): learner(5).fit_clr(2, lr_max=.01, **kw)

def test_errors_of_fit_schedule():
    learn = learner(5)
    for kw in {}, dict(wd=.1):
        with pytest.raises(ValueError, match='pass at least one schedule by the name of its hyper-parameter'): learn.fit_schedule(2, **kw)
    with pytest.raises(ValueError, match='the schedule of `lr` lasts 3 epochs, the fit 2: they must be equal'): learn.fit_schedule(2, lr=CosineRestarts(3))
    with pytest.raises(ValueError, match='the schedule of `wd` lasts 3 epochs'): learn.fit_schedule(2, wd=CosineRestarts(3))
    with pytest.raises(TypeError, match='`lr` must be a schedule'): learn.fit_schedule(2, lr=.1)
    with pytest.raises(ValueError, match='`nonsense` is not a hyper-parameter'): learn.fit_schedule(2, nonsense=ExpDecay(.1, 1))

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
