"`lr_range`: the rule on known curves, that nothing is left behind, and sweeps against fastai and against evaluation by hand"
import math, random, re, warnings
from types import SimpleNamespace
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.data import WeightedDL
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.schedule import ParamScheduler, SchedCos, lr_find, minimum, slide, steep, valley # Patches Learner; chkstyle: ignore
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import AccumMetric, F1Score, RocAuc, accuracy, error_rate
from fastai.optimizer import SGD, OptimWrapper
from fastai.torch_core import params, set_seed
from fastcore.basics import noop
from hypothesis import given, settings, strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader as TorchDL, IterableDataset, TensorDataset
from fastai_clr import fit, precompute # Patch Learner; chkstyle: ignore
from fastai_clr.cycles import CLR
from fastai_clr.lr_range import range_bounds
from fastai_clr.recipe import RecipeReport, _Notes, _Run, _valley
from fastai_clr.resume import keep_state, learner_state
from fastai_clr.schedules import CosineRestarts
from learners import Cancel, adamw, quiet, same, weights

# The rule

def corners(x, lo, hi, fall, low=.1, high=.9, end=.2):
    "Flat until `lo`, up to `hi`, flat until `fall`, and down"
    return np.interp(x, [x[0],lo,hi,fall,x[-1]], [low,low,high,high,end])

@given(st.floats(.05, .3), st.floats(.1, .3), st.floats(.1, .25), st.floats(-50, 50), st.floats(.01, 100), st.booleans())
@settings(deadline=None, max_examples=200, derandomize=True)
def test_bounds_of_a_curve_with_corners(lo, climb, plateau, shift, scale, lower):
    "A tenth of the climb, and all but a twentieth, whatever the metric's scale and direction; corners are rounded by one point"
    x = np.linspace(0, 1, 201)
    y = shift+scale*corners(x, lo, lo+climb, lo+climb+plateau)
    got = range_bounds(x, -y if lower else y, lower)
    assert got[0]==pytest.approx(lo+.1*climb, abs=1/200) and got[1]==pytest.approx(lo+.95*climb, abs=1/200) and got[2]==''

@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('noise', [.01,.03])
def test_bounds_of_a_noisy_curve(seed, noise):
    "Thirty points, as of a test with its defaults"
    x = np.linspace(0, 1, 31)
    y = corners(x, .15, .5, .75) + np.random.default_rng(seed).normal(0, noise, 31)
    lo,hi,why = range_bounds(x, y)
    assert .1<lo<.3 and .38<hi<.72 and not why

def test_what_turns_ragged_has_faltered():
    "Though it recovers, and goes higher, later on"
    x = np.linspace(0, 1, 41)
    y = np.interp(x, [0,.2,.3,.6,1], [.1,.6,.3,.3,.9])
    assert .15<range_bounds(x, y)[1]<.25
    assert range_bounds(x, np.interp(x, [0,.2,.22,1], [.1,.6,.59,.9]))[1]>.85   # a small fall is not

def test_a_fall_at_the_beginning_is_no_end():
    x = np.linspace(0, 1, 41)
    y = np.interp(x, [0,.05,.1,.2,.6,.9,1], [.1,.15,.1,.1,.9,.9,.5])
    assert .5<range_bounds(x, y)[1]<.65

@pytest.mark.parametrize('y,match', [(np.full(30, .5), 'did not rise by more than its noise'), (np.linspace(.9, .1, 30), 'only got worse'), ([.1,.2,.3], 'only 3 points'),
    ([np.nan]*30, 'not finite at the first'), ([.1,.2,.3]+[np.nan]*27, 'not finite after 3 points'), ([], 'not finite at the first'), ([.1,.2,np.inf,.3,.4,.5,.6], 'not finite after 2'),
    (.5+.1*np.random.default_rng(1).normal(size=30), 'noise')])
def test_no_suggestion(y, match):
    lo,hi,why = range_bounds(np.linspace(0, 1, len(y)), y)
    assert lo is None and hi is None and match in why

def test_what_is_not_finite_ends_the_curve():
    x = np.linspace(0, 1, 61)
    y = corners(x, .1, .4, .6)
    y[45:] = np.nan
    assert range_bounds(x, y)[:2]==pytest.approx((.13,.385), abs=1/60)

def test_a_blip_of_a_metric_in_steps():
    "One picture more or less is neither a rise nor a fall"
    x = np.linspace(0, 1, 31)
    y = np.full(31, .5)
    y[7] = .505
    assert range_bounds(x, y)[:2]==(None,None)
    y = np.round(corners(x, .15, .5, .75)*200)/200
    y[12] -= .005
    assert .38<range_bounds(x, y)[1]<.6

def test_an_explosion_after_the_best_place():
    "However high, it says nothing of the noise"
    x = np.linspace(0, 1, 31)
    loss = np.interp(x, [0,.2,.5,.7], [2.3,2.3,.5,.6])
    loss[25:] = 10.**np.arange(6, 12)
    lo,hi,why = range_bounds(x, loss, True)
    assert .2<lo<.3 and .4<hi<.55 and not why

@pytest.mark.parametrize('lrs,values', [([1,2,3],[1,2]), ([3,2,1],[1,2,3]), ([[1,2]],[[1,2]])])
def test_curves_that_are_none(lrs, values):
    with pytest.raises(ValueError, match='`lrs` must not fall, and `values`'): range_bounds(lrs, values)

def test_still_rising():
    x = np.linspace(0, 1, 30)
    lo,hi,why = range_bounds(x, x)
    assert hi>.9 and 'still rising at the end' in why

# Learners to try it on

X = torch.tensor(load_digits().images/16, dtype=torch.float32).flatten(1)
Y = torch.tensor(load_digits().target)

class Stream(IterableDataset):
    "Items without numbers; a known length is given to the loader"
    def __init__(self, a, b): self.a,self.b = a,b
    def __iter__(self): return ((X[i],Y[i]) for i in range(self.a, self.b))

def loaders(kind):
    train,valid = TensorDataset(X[:400], Y[:400]),TensorDataset(X[400:600], Y[400:600])
    if kind=='torch': return [TorchDL(train, 32, shuffle=True),TorchDL(valid, 64)]
    if kind=='stream': return [DataLoader(Stream(0, 400), bs=32, n=400),DataLoader(Stream(400, 600), bs=64, n=200)]
    if kind=='weighted': return [WeightedDL(train, bs=32, wgts=np.arange(1., 401)),DataLoader(valid, bs=64)]
    if kind=='generator': return [TorchDL(train, 32, shuffle=True, generator=torch.Generator().manual_seed(3)),TorchDL(valid, 64)]
    if kind=='workers': return [DataLoader(train, bs=32, shuffle=True, num_workers=2),DataLoader(valid, bs=64, num_workers=2)]
    return [DataLoader(train, bs=32, shuffle=True),DataLoader(valid, bs=64)]

def make(path='.', kind='plain', seed=0, **kw):
    "Digits in two groups of parameters, with dropout and BatchNorm"
    set_seed(seed, reproducible=True)
    model = nn.Sequential(nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU()), nn.Sequential(nn.Dropout(.2), nn.Linear(32, 10)))
    kw = {'metrics': accuracy, 'loss_func': CrossEntropyLossFlat(), 'splitter': lambda m: [params(o) for o in m], **kw}
    return quiet(Learner(DataLoaders(*loaders(kind), device='cpu'), model, path=path, **kw))

class Held(Callback):
    "What the optimizer held at each batch trained, and the weights after it"
    order,run_valid,_not_resumed = 50,False,('lrs','states','xs')
    def before_fit(self): self.lrs,self.states,self.xs = [],[],[]
    def after_loss(self):
        self.lrs.append([h['lr'] for h in self.opt.hypers])
        self.xs.append(self.x.sum().item())
    def after_batch(self): self.states.append(weights(self.learn))

class Box(Callback):
    "Takes what another callback has, before it is put back"
    order,_not_resumed = 51,('into',)
    def __init__(self, held, into): self.held,self.into = held,into
    def after_fit(self): self.into.append(SimpleNamespace(lrs=self.held.lrs, states=self.held.states, xs=self.held.xs))

def watched(**kw):
    held,seen = Held(),[]
    learn = make(**kw)
    learn.add_cbs([held,Box(held, seen)])
    return learn,seen

# The sweep

def test_a_model_that_cannot_learn():
    "Its loss stands still: the search for the end ends somewhere, and nothing is suggested"
    learn = make(loss_func=lambda o,y: (o*0).sum()+1, metrics=[])
    with pytest.warns(UserWarning, match='no learning rates are suggested: the metric did not rise'): r = learn.lr_range_test(show_plot=False)
    assert r[:2]==(None,None) and r.curve['lr'].iloc[-1]>=1e-4
    with pytest.warns(UserWarning, match='the loss stood still'): assert learn.lr_suggestions(show_plot=False).table['lr'].isna().all()

@pytest.mark.parametrize('linear', [True,False])
@pytest.mark.parametrize('lr_max,shares', [(.5,(1,1)), ([.05,.5],(.1,1)), (slice(.05,.5),(.1,1)), (slice(.5),(.1,1)), (np.array([.5,.05]),(10,1))])
def test_lrs(linear, lr_max, shares):
    "Batch for batch, in each group"
    learn,seen = watched()
    r = learn.lr_range_test(1e-4, lr_max, n_epoch=1.5, linear=linear, show_plot=False)
    top = float(np.ravel(lr_max.stop if isinstance(lr_max, slice) else lr_max)[-1])
    want = (np.linspace if linear else np.geomspace)(1e-4, top, 20)   # 13 batches an epoch
    np.testing.assert_allclose(seen[0].lrs, want[:,None]*np.array(shares), rtol=1e-12)
    np.testing.assert_allclose(r.curve['lr'][1:], want, rtol=1e-12)
    if shares!=(1,1): np.testing.assert_allclose(r.lr_max[0]/r.lr_max[1], shares[0])
    else: assert isinstance(r.lr_max, float)

def test_ratio():
    learn,seen = watched()
    r = learn.lr_range_test(1e-4, .5, ratio=np.int64(4), show_plot=False)
    np.testing.assert_allclose(np.array(seen[0].lrs)[:,0]*4, np.array(seen[0].lrs)[:,1])
    assert r.lr_max[0]*4==pytest.approx(r.lr_max[1]) and r.lr_min[0]*4==pytest.approx(r.lr_min[1])
    learn.fit_clr(1, .5, lr_max=r.lr_max, lr_min=r.lr_min)
    assert learn.opt.hypers[0]['lr']*4==pytest.approx(learn.opt.hypers[1]['lr'])

def by_hand(model, state, n=200):
    "Loss and accuracy on the first items of the validation set"
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad(): out = model(X[400:400+n])
    return nn.functional.cross_entropy(out, Y[400:400+n]).item(),(out.argmax(1)==Y[400:400+n]).float().mean().item()

@pytest.mark.parametrize('kind', ['plain','torch','stream','workers'])
def test_measurements_are_those_of_the_weights(kind):
    learn,seen = watched(kind=kind)
    before = weights(learn)
    c = learn.lr_range_test(1e-4, .3, n_epoch=1, every=4, show_plot=False).curve
    rows = c[c['accuracy'].notna()]
    assert list(rows.index)==[0,4,8,12,13] and c.attrs['passes']==5
    model = make().model
    for i,row in rows.iterrows():
        assert (row['valid_loss'],row['accuracy'])==pytest.approx(by_hand(model, before if i==0 else seen[0].states[i-1]), rel=1e-5)

@pytest.mark.parametrize('kind', ['plain','torch','workers'])
def test_measuring_does_not_change_training(kind):
    "However often: the same batches, with the same dropout"
    runs = []
    for every in 1,5,1000:
        learn,seen = watched(kind=kind, cbs=GradientClip(1.))
        learn.lr_range_test(1e-4, .3, every=every, show_plot=False)
        runs.append(seen[0])
    for o in runs[1:]: assert o.xs==runs[0].xs and all(map(same, o.states, runs[0].states))

def test_round_again():
    "More steps than the training set has batches, in the search for the end too"
    learn,seen = watched()
    r = learn.lr_range_test(show_plot=False)
    assert [len(o.lrs) for o in seen][1]==26 and 13<len(seen[0].lrs)<=100
    assert np.allclose(seen[0].lrs, (1e-5*(1e6)**(np.arange(100)/100))[:len(seen[0].lrs),None])
    assert seen[1].lrs[-1][0]<seen[0].lrs[-1][0] and r.lr_max is not None

@pytest.mark.parametrize('kind', ['plain','torch','head'])
def test_part_of_the_validation_set(tmp_path, kind):
    "Always the same, in any order; each item once"
    learn = make(tmp_path, 'plain' if kind=='head' else kind)
    learn = learn.precompute(dtype='float32') if kind=='head' else learn
    learn.logger,items = noop,[]
    class Items(Callback):
        def before_validate(self): items.append([])
        def after_pred(self):
            if not self.training: items[-1] += self.y.tolist()
    learn.add_cb(Items())
    for _ in range(2): c = learn.lr_range_test(1e-4, .3, every=13, valid_pct=.3, show_plot=False).curve
    seen = [o for o in items if o]
    assert len(seen)==6 and all(o==seen[0] for o in seen) and len(seen[0])==60 and seen[0]!=Y[400:460].tolist()
    assert len(set(Y[400:600].tolist()))==len(set(seen[0]))

def test_metrics(tmp_path):
    "By name, as a function, as a Metric, the first one, or the loss where there is none"
    learn = make(metrics=[error_rate,accuracy])
    def curve(**kw): return learn.lr_range_test(1e-4, .3, 1, show_plot=False, **kw).curve
    assert list(curve().columns)==['lr','train_loss','valid_loss','error_rate']
    a,b = curve(metric='accuracy'),curve()
    np.testing.assert_allclose(a['accuracy'], 1-b['error_rate'], rtol=1e-5)
    assert curve(metric=accuracy).equals(a) and list(curve(metric='valid_loss').columns)==['lr','train_loss','valid_loss']
    assert make(metrics=[]).lr_range_test(1e-4, .3, 1, show_plot=False).curve.attrs['metric']=='valid_loss'

def test_direction():
    "An error rate and an accuracy lead to the same bounds"
    a,b = (make(metrics=m).lr_range_test(1e-4, .3, show_plot=False) for m in (accuracy,error_rate))
    assert a[:2]==pytest.approx(b[:2], rel=1e-4)
    def mine(x, y): return -accuracy(x, y)
    with pytest.raises(ValueError, match="`comp` is needed for `metric='mine'`"): make().lr_range_test(metric=mine)
    c = make().lr_range_test(1e-4, .3, metric=mine, comp=np.less, show_plot=False)
    assert c[:2]==pytest.approx(a[:2], rel=1e-4)

def test_the_usual_way(tmp_path):
    "A test with its defaults, and a fit by what it says, that learns"
    learn = make(tmp_path)
    r = learn.lr_range_test()
    assert 1e-5<=r.lr_min<r.lr_max and not r.why and isinstance(r, tuple) and len(r)==3
    learn.fit_clr(2, 1, lr_max=r.lr_max, lr_min=r.lr_min)
    assert learn.validate()[1]>.8
    ax = r.plot()
    assert ax.get_xscale()=='linear' and r.plot(log=True).get_xscale()=='log' and f'{r.lr_min:.2g} to {r.lr_max:.2g}' in [o.get_text() for o in ax.get_legend().get_texts()]

# Nothing is left behind

def listing(path): return sorted((str(o), o.stat().st_size) for o in path.rglob('*'))

def bits(o):
    "All of a Learner's state, with each number whole"
    if isinstance(o, Learner):
        o = learner_state(o)[0]
        for cb in o['cbs'].values(): cb.pop('start_epoch', None)   # a time of day
    if isinstance(o, torch.Tensor): return str(o.dtype),o.tolist()
    if isinstance(o, dict): return {k: bits(v) for k,v in o.items()}
    return [bits(v) for v in o] if isinstance(o, (list,tuple)) else repr(o)

def trials():
    yield 'plain',{},lambda o: o.lr_range_test()
    yield 'groups',{},lambda o: o.lr_range_test(lr_max=[.1,1.])
    yield 'torch',dict(kind='torch'),lambda o: o.lr_range_test(lr_max=.1)
    yield 'stream',dict(kind='stream'),lambda o: o.lr_range_test(lr_max=.1)
    yield 'workers',dict(kind='workers'),lambda o: o.lr_range_test(lr_max=.1, valid_pct=.5)
    yield 'suggestions',{},lambda o: o.lr_suggestions(3)
    yield 'per group',{},lambda o: o.group_lr_find()
    yield 'accumulation',dict(cbs=lambda: [GradientAccumulation(80),GradientClip(.1)]),lambda o: o.lr_range_test(lr_max=.1)
    yield 'adamw',dict(opt_func=adamw),lambda o: o.lr_range_test(lr_max=.1)
    yield 'trackers',dict(cbs=lambda: [SaveModelCallback(),EarlyStoppingCallback(patience=1),ReduceLROnPlateau(patience=1)]),lambda o: o.lr_range_test(lr_max=10.)
    yield 'schedulers',dict(cbs=lambda: [CLR(1e-2),ParamScheduler({'mom': SchedCos(.9,.8)})]),lambda o: o.lr_range_test(lr_max=.1)
    yield 'metric',dict(metrics=[RocAuc(),accuracy]),lambda o: o.lr_range_test(lr_max=.1, metric='accuracy')

TRIALS = {k: (kw,f) for k,kw,f in trials()}

def followed(path, kw, trial, frozen=False, before=False):
    "All that a training leaves that comes after a trial"
    kw = dict(kw, cbs=kw['cbs']()) if 'cbs' in kw else kw
    learn = make(path, **kw)
    if frozen: learn.freeze()
    if before: learn.fit(1)
    was = listing(path)
    if trial: trial(learn)
    assert listing(path)==was
    state = bits(learn)
    learn.fit(2, 1e-2)
    said = re.sub(r"'\d\d:\d\d'", '', repr(state).replace(str(path), ''))   # without the recorder's minutes and seconds
    return said,weights(learn),[list(o)[:2] for o in learn.recorder.values],torch.rand(1).item(),random.random(),np.random.rand()

def alike(a, b): return a[0]==b[0] and same(a[1], b[1]) and a[2:]==b[2:]

@pytest.mark.parametrize('name', TRIALS)
@pytest.mark.parametrize('before', [False,True])
def test_nothing_is_left(tmp_path, name, before):
    "The training that follows is bitwise the one without"
    kw,trial = TRIALS[name]
    for o in 'ab': (tmp_path/o).mkdir()
    assert alike(followed(tmp_path/'a', kw, None, before=before), followed(tmp_path/'b', kw, trial, before=before))

@pytest.mark.parametrize('ex', [KeyboardInterrupt,ZeroDivisionError])
@pytest.mark.parametrize('event,when', [('after_batch',3), ('before_backward',11), ('after_validate',9), ('before_epoch',1)])
def test_nothing_is_left_of_what_was_broken_off(tmp_path, ex, event, when):
    def trial(learn):
        count = iter(range(10**6))
        stop = Cancel(event, lambda: ex('stop'), lambda o: next(count)==when)
        with learn.added_cbs(stop), pytest.raises(ex): learn.lr_range_test(lr_max=.1, every=1)
        return learn
    for o in 'ab': (tmp_path/o).mkdir()
    assert alike(followed(tmp_path/'a', {}, None, True, True), followed(tmp_path/'b', {}, trial, True, True))

def test_a_folder_that_cannot_be_written(tmp_path):
    learn = make(tmp_path/'not a folder')
    (tmp_path/'not a folder').write_text('')
    assert learn.lr_range_test(show_plot=False).lr_max
    assert len(learn.lr_suggestions(show_plot=False).table)==4 and len(learn.group_lr_find(show_plot=False).lrs)==2

def test_the_heads_learner(tmp_path):
    "And what the optimizer of the whole model knows of the head"
    learn = make(tmp_path)
    learn.fit(1, 1e-2)
    head = learn.precompute(dtype='float32')
    head.logger = noop
    was,before = bits(learn),weights(learn)
    r = head.lr_range_test(show_plot=False)
    head.lr_suggestions(2, show_plot=False)
    with keep_state(head): head.lr_find(show_plot=False)
    assert r.lr_max and bits(learn)==was and same(weights(learn), before)
    head.fit(1, 1e-2)
    assert bits(learn)!=was

def test_state_of_the_optimizer_is_used_and_kept():
    "As in `lr_find`, a sweep begins with the momentum that there is"
    learn = make()
    learn.fit(1, 1e-2)
    was = bits(learn.opt.state_dict())
    learn.lr_range_test(lr_max=.1, show_plot=False)
    assert bits(learn.opt.state_dict())==was
    learn = make()
    learn.lr_range_test(lr_max=.1, show_plot=False)
    assert learn.opt is None

# Hard cases

def test_nan_at_once():
    learn = make()
    with torch.no_grad(): learn.model[0][0].weight[0,0] = math.nan
    for kw in {},dict(lr_max=.1):
        with pytest.warns(UserWarning, match='no learning rates are suggested: the training loss was not finite at the first batch, at an lr of 1e-05'): r = learn.lr_range_test(show_plot=False, **kw)
        assert r[:2]==(None,None) and 'first batch' in r.why and len(r.curve)==2
        r.plot()
    with pytest.warns(UserWarning, match='no learning rate is suggested'): assert learn.lr_suggestions(show_plot=False).table['lr'].isna().all()
    with pytest.warns(UserWarning, match='no learning rate is suggested for group 0, 1'): assert np.isnan(learn.group_lr_find(show_plot=False).lrs).all()

def test_nan_at_once_beside_a_callback_that_ends_the_fit():
    learn = make(cbs=TerminateOnNaNCallback())
    with torch.no_grad(): learn.model[0][0].weight[0,0] = math.nan
    with pytest.warns(UserWarning, match='not finite at the first batch'): assert learn.lr_range_test(lr_max=.1, show_plot=False).lr_max is None

def test_divergence_ends_the_sweep():
    "Where the loss is no longer finite, and what came before counts"
    learn,seen = watched(opt_func=SGD, loss_func=lambda o,y: (o-y[:,None]).pow(2).mean(), metrics=[])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        r = learn.lr_range_test(1e-3, 1e6, n_epoch=4, linear=False, every=1, show_plot=False)
    assert len(seen[0].lrs)<52 and np.isfinite(r.curve['train_loss'].iloc[1:-1]).all()

def finite(preds, targs):
    if not torch.isfinite(preds).all(): raise ValueError('Input contains NaN')   # as scikit-learn's metrics have it
    return float((preds.argmax(1)==targs).float().mean())

def test_metrics_that_take_finite_numbers_only():
    "The sweep ends where training diverges, and is no error"
    learn = make(opt_func=SGD, loss_func=lambda o,y: (o-y[:,None]).pow(2).mean(), metrics=AccumMetric(finite, name='finite', flatten=False))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        r = learn.lr_range_test(1e-3, 1e6, n_epoch=4, linear=False, every=1, metric='finite', comp=np.greater, show_plot=False)
    assert r.curve['finite'].notna().sum()>5 and r.curve['lr'].iloc[-1]<1e6

def test_a_metric_with_a_value_a_class():
    with pytest.raises(ValueError, match='`metric` must be a metric that is one number, and f1_score has several values'): make(metrics=F1Score(average=None)).lr_range_test(lr_max=.1, show_plot=False)

def test_what_a_model_remembers_of_a_batch():
    "A validation in between resets it, as fastai's callback for texts does; training goes on with what it was"
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden,self.bs = None,0
        def reset(self): self.hidden,self.bs = 'new',-1
        def forward(self, x):
            if self.training: self.hidden,self.bs = x.sum().item(),len(x)
            return x
    class Reset(Callback):
        def before_validate(self): self.model[0][0].reset()
    seen = []
    class Look(Callback):
        def before_batch(self):
            if self.training: seen.append((self.model[0][0].hidden,self.model[0][0].bs))
    learn = make(cbs=[Reset(),Look()])
    learn.model[0].insert(0, Remembers())
    learn.lr_range_test(lr_max=.01, n_epoch=1, every=1, show_plot=False)
    assert len(seen)>5 and seen[0]==(None,0) and not [o for o in seen if o[0]=='new']

def test_groups_of_an_optimizer_that_was_made_before():
    "By torch's, where fastai's splitter has no say"
    learn = make(splitter=params)
    learn.opt_func = OptimWrapper(opt=torch.optim.AdamW([{'params': list(o.parameters())} for o in learn.model], lr=1e-3))
    assert learn.plot_schedule(CosineRestarts(1, lr_max=(1e-4,1e-3))) is not None
    assert len(learn.group_lr_find(num_it=30).lrs)==2

def test_too_short():
    with pytest.warns(UserWarning, match='only 4 points, and 6 are needed'): r = make().lr_range_test(lr_max=.1, n_epoch=.2, show_plot=False)
    assert r.lr_max is None and len(r.curve)==4

def test_mixed_precision_and_accumulation():
    "The scaler is as before; steps are taken when enough has come together"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # a scaler is of no use on a CPU
        learn = make(cbs=[MixedPrecision(),GradientAccumulation(64)])
        assert learn.lr_range_test(lr_max=.5, show_plot=False).lr_max
        learn.fit(1, 1e-2)

class OnCPU(MixedPrecision):
    "fastai's callback, whose autocast is CUDA's, made to work here"
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)

def test_measured_with_mixed_precision():
    "Also what is measured before the first batch; afterwards it is off"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn,on = make(cbs=OnCPU('bf16')),[]
        learn.model.register_forward_hook(lambda m,*a: on.append((m.training, torch.is_autocast_enabled('cpu'))))
        learn.lr_range_test(1e-4, .3, 1, every=5, show_plot=False)
    assert on[0]==(False,True) and all(k for _,k in on) and not torch.is_autocast_enabled('cpu')

def test_bars(capsys):
    "A bar where the Learner has bars, and none of an inner validation"
    learn = make()
    learn.lr_range_test(lr_max=.1, show_plot=False)
    assert capsys.readouterr().out==''
    learn.add_cb(ProgressCallback())
    learn.lr_range_test(lr_max=.1, show_plot=False)
    out = capsys.readouterr().out
    assert '26/26' in out and 'epoch' not in out
    assert any(isinstance(o, ProgressCallback) for o in learn.cbs)

def test_csv_logger_writes_nothing(tmp_path):
    learn = make(tmp_path, cbs=CSVLogger())
    learn.lr_range_test(lr_max=.1, show_plot=False)
    learn.group_lr_find(show_plot=False)
    assert not listing(tmp_path)

@pytest.mark.parametrize('kw,err,match', [(dict(lr_min=0), ValueError, '`lr_min` must be a finite number above 0, got 0'), (dict(lr_min='a'), ValueError, '`lr_min`'),
    (dict(n_epoch=-1), ValueError, '`n_epoch`'), (dict(n_epoch=True), ValueError, '`n_epoch`'), (dict(every=0), ValueError, '`every` must be a whole number of batches'),
    (dict(every=1.5), ValueError, '`every`'), (dict(valid_pct=0), ValueError, '`valid_pct`'), (dict(valid_pct=1.1), ValueError, '`valid_pct` is a share'),
    (dict(ratio=0), ValueError, '`ratio`'), (dict(metric=AccumMetric(accuracy, name='lr')), ValueError, "`metric` is named 'lr'"),
    (dict(lr_max=1e-6), ValueError, '`lr_max` must be above `lr_min` of 1e-05, got 1e-06'), (dict(lr_max=-1), ValueError, '`lr_max`'),
    (dict(lr_max=[1,2,3]), ValueError, 'one for each of the 2 parameter groups'), (dict(lr_max=[.1,.2], ratio=3), ValueError, '`ratio` and an `lr_max` for each group'),
    (dict(metric='acc'), ValueError, "`metric` must be one of valid_loss, accuracy, or a function or Metric, got 'acc'"), (dict(metric=3), TypeError, '`metric` must be the name'),
    (dict(comp=min), ValueError, '`comp` must be np.less')])
def test_bad_arguments(kw, err, match):
    learn = make()
    was = bits(learn)
    with pytest.raises(err, match=match): learn.lr_range_test(show_plot=False, **kw)
    assert bits(learn)==was and learn.opt is None

@pytest.mark.parametrize('call,match', [(lambda o: o.lr_suggestions(0), '`n_seeds` must be a whole number of sweeps'), (lambda o: o.lr_suggestions(num_it=10), '`num_it` must be a whole number of batches, at least 30'),
    (lambda o: o.group_lr_find(num_it=2.5), '`num_it`'), (lambda o: o.group_lr_find(start_lr=1, end_lr=.1), '`start_lr` and `end_lr`'), (lambda o: o.lr_suggestions(start_lr=0), '`start_lr` and `end_lr`')])
def test_bad_arguments_of_the_others(call, match):
    with pytest.raises(ValueError, match=match): call(make())

def test_data_that_it_cannot_use():
    learn = make()
    learn.dls = DataLoaders(learn.dls.train)
    with pytest.raises(ValueError, match='measures on the validation set, and this Learner has none'): learn.lr_range_test()
    with pytest.raises(TypeError, match="`valid_pct` picks items"): make(kind='stream').lr_range_test(valid_pct=.5)
    learn = make()
    learn.dls = DataLoaders(DataLoader(Stream(0, 400), bs=32), learn.dls.valid)
    with pytest.raises(TypeError, match='no length'): learn.lr_range_test(lr_max=.1)

# Suggestions

def test_as_fastais_lr_find(tmp_path):
    "The same curve, the same four suggestions"
    a = make(tmp_path)
    said = a.lr_find(suggest_funcs=(valley,slide,minimum,steep), show_plot=False)
    t,lrs,losses = make(tmp_path).lr_suggestions(show_plot=False)
    n = len(a.recorder.losses)
    np.testing.assert_allclose(losses[0,:n], [float(o) for o in a.recorder.losses], rtol=1e-6)
    np.testing.assert_allclose(lrs[:n], a.recorder.lrs, rtol=1e-6)
    assert np.isnan(losses[0,n:]).all() and list(t.index)==['valley','slide','minimum','steep']
    np.testing.assert_allclose(t['lr'], list(said), rtol=1e-5)

def test_seeds():
    "Each has an order of its own; the first is the one that comes without"
    a = make().lr_suggestions(4, show_plot=False)
    b = make().lr_suggestions(1, show_plot=False)
    assert a.losses.shape==(4,100) and np.array_equal(a.losses[0], b.losses[0], equal_nan=True)
    assert len({tuple(o[:30]) for o in a.losses})==4
    assert np.array_equal(a.losses, make().lr_suggestions(4, show_plot=False).losses, equal_nan=True)
    assert (a.table['lowest']<=a.table['lr']).all() and (a.table['lr']<=a.table['highest']).all()

@pytest.mark.parametrize('kind', ['torch','workers','weighted','generator'])
def test_seeds_of_other_loaders(kind):
    "Each sweep has another order, and a second call has the same ones"
    losses = make(kind=kind).lr_suggestions(3, show_plot=False).losses
    assert len({tuple(o[:30]) for o in losses})==3
    assert np.array_equal(losses, make(kind=kind).lr_suggestions(3, show_plot=False).losses, equal_nan=True)

# One group at a time

def test_groups():
    "The others stand still, and the curve is that of one group"
    learn,seen = watched()
    g = learn.group_lr_find(show_plot=False)
    for i,o in enumerate(seen):
        lrs = np.array(o.lrs)
        np.testing.assert_allclose(lrs[:,i], (1e-7*1e8**(np.arange(100)/100))[:len(lrs)])
        assert not lrs[:,1-i].any()
        moved = [not torch.equal(o.states[0][k], o.states[-1][k]) for k in ('0.0.weight','1.1.weight')]
        assert moved==[i==0,i==1]
    assert g.lrs.shape==(2,) and np.isfinite(g.lrs).all() and g.ratios==pytest.approx(g.lrs[1:]/g.lrs[:-1])
    assert [len(o[0]) for o in g.curves]==[len(o.lrs) for o in seen]
    learn.fit_clr(1, .5, lr_max=g.lrs)

def test_frozen_groups_are_left_out():
    learn = make()
    learn.freeze()
    g = learn.group_lr_find()
    assert np.isnan(g.lrs[0]) and np.isfinite(g.lrs[1]) and g.curves[0]==((),())

def test_one_group():
    learn = make(splitter=params)
    g,s = learn.group_lr_find(show_plot=False),learn.lr_suggestions(show_plot=False)
    assert g.lrs[0]==s.table['lr']['valley'] and g.ratios.shape==(0,)

# The recipe

def test_the_recipe_leaves_no_trace(tmp_path):
    learn = make(tmp_path)
    was = bits(learn)
    run,row = _Run(learn, RecipeReport({}, {}), _Notes(tmp_path/'notes.json', {}), None),dict(step=2)
    lr = run.find_lr(row, learn, 60, _valley)['lr']
    assert 0<lr<1 and run.report.lr_finds[0]['lrs'] and bits(learn)==was

def test_another_range(tmp_path):
    "Sweeps between other rates, as `lr_find` has them"
    a = make(tmp_path)
    a.lr_find(start_lr=1e-5, end_lr=1., num_it=50, show_plot=False)
    _,lrs,losses = make(tmp_path).lr_suggestions(1, 50, 1e-5, 1., show_plot=False)
    n = len(a.recorder.lrs)
    np.testing.assert_allclose(lrs[:n], a.recorder.lrs, rtol=1e-6)
    np.testing.assert_allclose(losses[0,:n], [float(o) for o in a.recorder.losses], rtol=1e-6)
    curves = make(tmp_path).group_lr_find(50, 1e-5, 1., show_plot=False).curves
    for xs,_ in curves: np.testing.assert_allclose(xs, 1e-5*1e5**(np.arange(50)/50)[:len(xs)], rtol=1e-6)

def test_30_to_60_measurements():
    "Where there are more batches than that"
    c = make().lr_range_test(1e-4, .3, n_epoch=7, show_plot=False).curve
    assert len(c)>61 and 30<=c.attrs['passes']<=60 and c['accuracy'].notna().sum()==c.attrs['passes']

def test_the_legend_names_what_was_swept():
    learn = make()
    learn.freeze()
    learn.group_lr_find()
    assert [o.get_text().partition(':')[0] for o in plt.gca().get_legend().get_texts()]==['1']

def test_a_range_in_a_figure_of_ones_own():
    ax = plt.subplots()[1]
    n = len(plt.get_fignums())
    assert make().lr_range_test(1e-4, .3, show_plot=False).plot(ax=ax) is ax and len(plt.get_fignums())==n
