"`resume`: a Learner's whole state, and runs that are broken off and go on as if they had not been"
import copy, hashlib, json, random, subprocess, sys, threading, warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from enum import Enum
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixUp
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.schedule import fit_one_cycle, lr_find # Patches Learner; chkstyle: ignore
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders, Datasets
from fastai.data.load import DataLoader
from fastai.learner import AvgMetric, Learner, ValueMetric
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy, skm_to_fastai
from fastai.optimizer import SGD, Adam, Lamb, Lookahead
from fastai.text.data import LMDataLoader, LMTensorText
from fastai.torch_core import params
from fastcore.foundation import L
from fastcore.basics import noop, partial
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import DataLoader as TorchDL, RandomSampler, TensorDataset
from fastai_clr import fit, precompute # Patch Learner; chkstyle: ignore
from fastai_clr.resume import CannotKeep, Resumable, _decode, _encode, _seal, _sha, keep_state, learner_state, load_learner_state
from fastai_clr.schedules import CosineRestarts
from learners import Cancel, adamw, learner, quiet, same, two_groups, weights

# What a state is made of

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.builds(Path, st.text('ab/')),
    lambda o: st.lists(o) | st.tuples(o, o) | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), o) | st.lists(o).map(L), max_leaves=12)

@given(plain)
@settings(deadline=None, max_examples=300, derandomize=True)
def test_plain_values_come_back(tmp_path_factory, v):
    "Through a file that runs no code, with the same types"
    file = tmp_path_factory.getbasetemp()/'plain.pth'
    torch.save(_encode(v), file)
    back = _decode(torch.load(file, weights_only=True))
    assert back==v and repr(back)==repr(v)

@pytest.mark.parametrize('o', [np.arange(6, dtype='uint32').reshape(2,3), np.array(2.5), np.array([], 'float16'), np.array(['a','bcd']), np.arange(8).reshape(2,4).T,
    np.array([1+2j]), np.array([True,False])], ids=str)
def test_arrays_come_back(o):
    back = _decode(_encode(o))
    assert back.dtype==o.dtype and back.shape==o.shape and (back==o).all()
    back[...] = o   # writable

@pytest.mark.parametrize('n', [0, 1, 4, 5, 50])
def test_lists_of_numbers_come_back(n):
    ts = [torch.tensor(i/3) for i in range(n)]
    back = _decode(_encode(ts))
    assert len(back)==n and all(torch.equal(a, b) for a,b in zip(ts, back))
    mixed = [*ts, torch.tensor(1)]
    assert [o.dtype for o in _decode(_encode(mixed))]==[o.dtype for o in mixed]

def test_tensors_are_copies():
    t = torch.zeros(3)
    e = _encode([t])
    t += 1
    assert not e[0].any()

class Thing:
    def __init__(self, **kw): vars(self).update(kw)

def test_objects_are_put_back_into_what_is_there():
    f,inner = print,Thing(b=[1,2])
    o = Thing(a=1, inner=inner, f=f)
    e = _encode(o)
    o.a,o.inner.b = 2,[]
    assert _decode(e, o) is o and o.a==1 and o.inner is inner and inner.b==[1,2] and o.f is print
    o.f = len
    with pytest.raises(CannotKeep, match='it was print, and is len'): _decode(e, o)

def test_objects_with_a_state():
    a,b = nn.Linear(2, 2),nn.Linear(2, 2)
    e = _encode({'m': a})
    _decode(e, {'m': b})
    assert same(a.state_dict(), b.state_dict())

@pytest.mark.parametrize('o', [(i for i in range(3)), object(), np.array([object()]), iter([1])], ids=['generator','object','objects','iterator'])
def test_what_cant_be_kept(o):
    with pytest.raises(CannotKeep): _encode([o])

def test_what_holds_itself():
    o = Thing()
    o.me = o
    with pytest.raises(CannotKeep, match='holds itself'): _encode(o)

# Learners that use all there is

class Items:
    "Items that are drawn at random, by all three generators"
    def __len__(self): return 37
    def __getitem__(self, i): return torch.tensor([i/37, random.random(), np.random.rand(), torch.rand(1).item()]),torch.tensor(i%3)

def net(n=8, p=.3): return nn.Sequential(nn.Linear(4, n), nn.BatchNorm1d(n), nn.ReLU(), nn.Dropout(p), nn.Linear(n, 3))

def loaders(workers=0, **kw): return DataLoaders(*(DataLoader(Items(), bs=8, shuffle=o, num_workers=workers, **kw) for o in (True,False)))

def make(path, workers=0, seed=0, opt_func=Adam, model=net, **kw):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    def split(m): return [params(m[:3]),params(m[3:])]
    return quiet(Learner(loaders(workers), model(), loss_func=CrossEntropyLossFlat(), opt_func=opt_func, metrics=accuracy, path=path, splitter=split, **kw))

class Break(Callback):
    "Ctrl-C"
    order = 99
    def __init__(self, epoch=None, it=1, event='after_batch'):   # as a function, which no checkpoint takes along
        self.now = lambda learn,name: name==event and (learn.epoch,learn.iter)==(epoch,it) and (learn.training or name!='after_batch')
    def __call__(self, name):
        if self.now(self.learn, name): raise KeyboardInterrupt()

def seen(learn):
    "All that a fit leaves behind, but for times"
    rec = learn.recorder
    res = dict(weights=weights(learn), opt=str(learn.opt.state_dict()), values=[list(map(str, o)) for o in rec.values], losses=[float(o) for o in rec.losses])
    res.update(lrs=list(rec.lrs), iters=rec.iters, hps=rec.hps, names=list(rec.metric_names), train_iter=learn.train_iter)
    res.update({k: getattr(rec, k, None) for k in ('stopped','best_epoch','cycle_bounds')})
    return dict(res, after=(random.random(), np.random.rand(), torch.rand(1).item()))

def equal(a, b):
    for k in a:
        if k=='weights': assert same(a[k], b[k]), k
        else: assert a[k]==b[k], k
    return True

def run(path, fits, seed=0, **kw):
    "A Learner that was trained, and what its training left as `was`"
    learn = make(path, seed=seed, **kw)
    fits(learn, [Break()])
    learn.was = seen(learn)
    return learn

def broken_and_not(path, fits, breaks, **kw):
    "What an unbroken run leaves, and one that is broken off at each of `breaks`, each time in another Learner"
    whole = run(path/'whole', fits, **kw)
    for i,b in enumerate(breaks):
        learn = make(path/'broken', seed=i if any(path.rglob('broken/**/epoch-*.json')) else 0, **kw)   # each process that goes on finds other random numbers
        with pytest.raises(KeyboardInterrupt): fits(learn, [b])
    return whole,run(path/'broken', fits, 99, **kw)

FITS = {}
FITS['sgdr'] = lambda l,cbs: l.fit_sgdr(2, 1, 1e-2, 3, cbs=cbs, resume='r')
FITS['inside'] = lambda l,cbs: l.fit_sgdr(3, 1.3, slice(1e-3,1e-2), 1, cbs=cbs, resume='r')
FITS['clr'] = lambda l,cbs: l.fit_clr(2, 1, 1e-2, cbs=cbs, moms=(.85,.95), resume='r')
FITS['schedule'] = lambda l,cbs: l.fit_schedule(4, cbs, lr=CosineRestarts(None, 1.5, 1.5, .01), resume='r')
FITS['patience'] = lambda l,cbs: l.fit_sgdr(4, 1, 1e-2, 1, cbs=cbs, patience=3, snapshots='s', resume='r')
FITS['keep'] = lambda l,cbs: l.fit_sgdr(4, 1, 1e-2, 1, cbs=cbs, snapshots='s', keep=2, resume='r', reset_opt=True)
FITS['accumulated'] = lambda l,cbs: l.fit_sgdr(4, 1, 1e-2, 1, cbs=[GradientAccumulation(13), *cbs], resume='r')
FITS['plateau'] = lambda l,cbs: l.fit_schedule(4, [ReduceLROnPlateau('valid_loss', patience=1, min_delta=9.), *cbs], mom=CosineRestarts(2, 2, lr_max=.9, lr_min=.8), resume='r')
FITS['best'] = lambda l,cbs: l.fit_sgdr(4, 1, 3e-1, 1, cbs=[SaveModelCallback('valid_loss', fname='best'), *cbs], resume='r')
FITS['stopping'] = lambda l,cbs: l.fit_sgdr(4, 1, 3e-1, 1, cbs=[EarlyStoppingCallback('valid_loss', min_delta=9., patience=3), *cbs], resume='r')
FITS['mixup'] = lambda l,cbs: l.fit_sgdr(4, 1, 1e-2, 1, cbs=[MixUp(.4), *cbs], resume='r')

@pytest.mark.parametrize('fit', FITS.values(), ids=FITS)
def test_it_ends_where_the_unbroken_run_ends(tmp_path, fit):
    "Bit for bit: weights, optimizer, recorder, random numbers; broken in the first epoch, in the second, at an end, and in the last"
    whole,again = broken_and_not(tmp_path, fit, [Break(0), Break(1, 3), Break(2, 4, 'after_train'), Break(3)])
    assert equal(whole.was, again.was)

@pytest.mark.parametrize('opt', [SGD, adamw], ids=['sgd','adamw'])
def test_optimizers(tmp_path, opt): assert equal(*[o.was for o in broken_and_not(tmp_path, FITS['sgdr'], [Break(1), Break(3)], opt_func=opt)])

def test_workers(tmp_path):
    "Processes that make the items, each with random numbers of its own"
    whole,again = broken_and_not(tmp_path, FITS['sgdr'], [Break(2)], workers=2)
    assert equal(whole.was, again.was)

def test_mixed_precision(tmp_path):
    def fit(l, cbs): l.fit_sgdr(3, 1, 1e-2, 1, cbs=cbs, resume='r')
    whole,again = broken_and_not(tmp_path, fit, [Break(1)], cbs=MixedPrecision(amp_mode='bf16') if 'amp_mode' in MixedPrecision.__init__.__code__.co_varnames else None)
    assert equal(whole.was, again.was)

def test_snapshots_of_a_broken_run(tmp_path):
    whole,again = broken_and_not(tmp_path, FITS['keep'], [Break(1), Break(3)])
    a,b = (tmp_path/o/'models/snapshots/s' for o in ('whole','broken'))
    assert sorted(o.name for o in a.iterdir())==sorted(o.name for o in b.iterdir())==['cycle-002.json','cycle-002.pth','cycle-003.json','cycle-003.pth']
    for o in a.glob('*.pth'): assert same(torch.load(o), torch.load(b/o.name))
    for o in a.glob('*.json'): assert json.loads(o.read_text())==json.loads((b/o.name).read_text())

def test_a_run_that_was_moved(tmp_path):
    "Its snapshots go where the Learner is now, and nothing is said of the lock on their name"
    def fit(path, b): make(path).fit_sgdr(3, 1, 1e-2, 1, cbs=b, resume='r', snapshots='s')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(KeyboardInterrupt): fit(tmp_path/'a', Break(1))
        (tmp_path/'a').rename(tmp_path/'b')
        fit(tmp_path/'b', Break())
    assert len(make(tmp_path/'b').snapshots('s'))==3 and not (tmp_path/'a').exists()

def test_one_cycle_and_any_other_fit(tmp_path):
    def fit(l, cbs):
        with Resumable(l, 'r'): l.fit_one_cycle(4, 1e-2, cbs=cbs)
    whole,again = broken_and_not(tmp_path, fit, [Break(1), Break(3)])
    assert equal(whole.was, again.was)

def test_a_head_on_activations(tmp_path):
    "The head's Learner of precomputed activations, whose loader and loop are its own"
    class Fixed(Items):
        def __getitem__(self, i): return torch.tensor([i/37, i%5, i%7, 1.]),torch.tensor(i%3)
    def head(path, seed):
        for f in torch.manual_seed,random.seed,np.random.seed: f(seed)
        dls = DataLoaders(DataLoader(Fixed(), bs=8, shuffle=True, num_workers=0), DataLoader(Fixed(), bs=8, num_workers=0))
        model = nn.Sequential(nn.Sequential(nn.Linear(4, 6)), nn.Sequential(nn.Dropout(.2), nn.Linear(6, 3)))
        for i,p in enumerate(model[0].parameters()): p.data = torch.linspace(-1, 1+i, p.numel()).view_as(p)
        learn = quiet(Learner(dls, model, loss_func=CrossEntropyLossFlat(), path=path))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return quiet(learn.precompute(dtype='float32'))
    whole = head(tmp_path/'a', 0)
    whole.fit_sgdr(4, 1, 1e-2, 1, cbs=Break(), resume='r')
    whole.was = seen(whole)
    for i,b in enumerate([Break(1), Break(2)]):
        with pytest.raises(KeyboardInterrupt): head(tmp_path/'b', 0 if i==0 else 7).fit_sgdr(4, 1, 1e-2, 1, cbs=b, resume='r')
    again = head(tmp_path/'b', 8)
    again.fit_sgdr(4, 1, 1e-2, 1, cbs=Break(), resume='r')
    again.was = seen(again)
    assert equal(whole.was, again.was)
    again.fit_sgdr(3, 1, 1e-2, 1, snapshots='s')
    preds = [again.load_snapshot('s', i).get_preds()[0] for i in range(3)]
    torch.testing.assert_close(again.snapshot_preds('s')[0], sum(preds)/3)
    means = {k: sum(again.load_snapshot('s', i).model.state_dict()[k].clone() for i in range(3))/3 for k in again.model.state_dict()}
    for k,v in again.average_snapshots('s').model.state_dict().items(): torch.testing.assert_close(v, means[k])
    assert again.whole.model[1] is again.model or list(again.whole.model[1].parameters())[0] is list(again.model.parameters())[0]
    with pytest.raises(NotImplementedError, match='export_ensemble'): again.export_ensemble('x.pkl', 's')

# Runs that have ended

class Count(Callback):
    def __init__(self): self.n = 0
    def after_step(self): self.n += 1

@pytest.mark.parametrize('fit', ['sgdr','patience','stopping','best','inside'])
def test_a_run_that_ended_trains_no_more(tmp_path, fit):
    "And leaves the Learner as it was at the end"
    first = make(tmp_path)
    FITS[fit](first, [])
    one,again,count = seen(first),make(tmp_path, seed=5),Count()
    again.add_cb(count)
    with pytest.raises(ValueError, match='callbacks'): FITS[fit](again, [])
    again.remove_cb(count)
    steps = []
    again._step = lambda: steps.append(1)
    FITS[fit](again, [])
    assert not steps and equal(one, seen(again))

def test_patience_that_stopped_it(tmp_path):
    def fit(l, cbs): l.fit_sgdr(9, 1, 50., 1, cbs=cbs, patience=2, resume='r')
    whole,again = broken_and_not(tmp_path, fit, [Break(1)])
    assert whole.was['stopped'] and equal(whole.was, again.was)
    third = make(tmp_path/'broken', seed=3)
    fit(third, [Break()])
    assert third.recorder.stopped==whole.was['stopped'] and same(weights(third), weights(whole))

def test_a_script_of_two_fits(tmp_path):
    "Broken in the second: the first is passed over, the second goes on"
    def script(seed, *cbs):
        cbs = cbs or [Break()]
        learn = make(tmp_path, seed=seed)
        learn.fit_sgdr(2, 1, 1e-2, 1, resume='one')
        learn.fit_sgdr(2, 1, 1e-3, 2, resume='two', cbs=list(cbs))
        return seen(learn)
    with pytest.raises(KeyboardInterrupt): script(0, Break(1))
    again = script(1)
    for o in (tmp_path/'models').rglob('epoch-*'): o.unlink()
    assert equal(script(0), again)

def test_snapshots_before_the_first_checkpoint(tmp_path):
    "A run that was broken off between the two may go on; another run's snapshots are not touched"
    def fit(*cbs): make(tmp_path).fit_sgdr(2, 1, 1e-2, 1, cbs=list(cbs) or Break(), resume='r', snapshots='s')
    with pytest.raises(KeyboardInterrupt): fit(Break(0, 4, 'after_cycle'))
    assert len(make(tmp_path).snapshots('s'))==1 and checkpoints(tmp_path)==[]
    fit()
    assert len(make(tmp_path).snapshots('s'))==2
    for o in (tmp_path/'models/resume/r').iterdir(): o.unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match="`snapshots` named 's' are there already"): fit()

# What is on the disk

def checkpoints(path): return sorted(o.name for o in (path/'models/resume/r').iterdir() if o.name.startswith('epoch-'))

def test_two_are_kept_and_nothing_else(tmp_path):
    learn = make(tmp_path)
    FITS['sgdr'](learn, [Break()])
    assert checkpoints(tmp_path)==['epoch-00002.json','epoch-00002.pth','epoch-00003.json','epoch-00003.pth']
    info = json.loads((tmp_path/'models/resume/r/epoch-00003.json').read_text())
    assert info['ended']=='done' and 'CosineRestarts' in info['of']['schedule']['lr']
    torch.load(tmp_path/'models/resume/r/epoch-00003.pth', weights_only=True)

def broken(tmp_path, at=2):
    learn = make(tmp_path)
    with pytest.raises(KeyboardInterrupt): FITS['sgdr'](learn, [Break(at)])
    return tmp_path/'models/resume/r'

def damage(how):
    def f(file):
        b = file.read_bytes()
        if how=='truncated': file.write_bytes(b[:len(b)//2])
        elif how=='empty': file.write_bytes(b'')
        elif how=='a bit': file.write_bytes(b[:len(b)//2]+bytes([b[len(b)//2]^1])+b[len(b)//2+1:])
        else: file.unlink()
    return f

@pytest.mark.parametrize('what', ['pth','json'])
@pytest.mark.parametrize('how', ['truncated','empty','a bit','missing'])
def test_a_damaged_checkpoint(tmp_path, what, how):
    "The one before it is used, and it is said; the end is the same"
    folder = broken(tmp_path)
    damage(how)(folder/f'epoch-00001.{what}')
    whole = run(tmp_path/'whole', FITS['sgdr'])
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learn = run(tmp_path, FITS['sgdr'], 3)
    said = [str(o.message) for o in w if 'is damaged' in str(o.message)]
    if (what,how)!=('json','missing'): assert len(said)==1 and 'looking for the one before it' in said[0]
    assert equal(whole.was, learn.was)

def test_all_are_damaged(tmp_path):
    folder = broken(tmp_path)
    for o in folder.glob('*.pth'): damage('truncated')(o)
    whole = run(tmp_path/'whole', FITS['sgdr'])
    with pytest.warns(UserWarning, match='no checkpoint in .* is whole: training begins anew'): learn = run(tmp_path, FITS['sgdr'])
    assert equal(whole.was, learn.was)

def test_another_format(tmp_path):
    folder = broken(tmp_path)
    for o in folder.glob('epoch-*.json'): o.write_text(o.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match='has format 2, and this version of the package reads 1'): FITS['sgdr'](make(tmp_path), [Break()])

def test_a_full_disk(tmp_path, monkeypatch):
    "Training goes on without the checkpoint; what was there stays"
    learn,real = make(tmp_path),torch.save
    def save(o, f, *args, **kw):
        real(o, f, *args, **kw)
        if learn.epoch in (1,2): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch, 'save', save)
    with pytest.warns(UserWarning, match='after epoch 1 could not be written') as w: FITS['sgdr'](learn, [Break()])
    assert [learn.epoch,len(learn.recorder.values)]==[3,4] and checkpoints(tmp_path)==[f'epoch-0000{i}.{e}' for i in (0,3) for e in ('json','pth')]
    assert sum('could not be written' in str(o.message) for o in w)==2

def test_leftovers_go(tmp_path):
    folder = broken(tmp_path)
    (folder/'.epoch-00007.pth.123').write_bytes(b'half')
    FITS['sgdr'](make(tmp_path), [Break()])
    assert not list(folder.glob('.*'))

def test_files_run_no_code(tmp_path):
    import hashlib
    folder = broken(tmp_path)
    for o in folder.glob('*.pth'):
        torch.save(Own(), o)
        j = o.with_suffix('.json')
        info = {**json.loads(j.read_text()), 'sha256': hashlib.sha256(o.read_bytes()).hexdigest()}
        j.write_text(json.dumps({**info, 'seal': _seal(info)}))
    with pytest.warns(UserWarning, match='is damaged'): FITS['sgdr'](make(tmp_path), [Break()])

# Refusals

class More(Items):
    def __len__(self): return 40

def other_data(learn): learn.dls = DataLoaders(DataLoader(More(), bs=8, shuffle=True, num_workers=0), learn.dls.valid)
def freeze(learn): learn.freeze()

def sgdr(*args, cbs=(), **kw): return lambda l: l.fit_sgdr(*args, resume='r', cbs=[Break(), *cbs], **kw)
def clr(l): l.fit_clr(2, 1, 1e-2, resume='r', cbs=Break())
def own_wd(learn): learn.wd = .3
def weighted_loss(learn): learn.loss_func = CrossEntropyLossFlat(weight=torch.tensor([1.,2,3]))
def other_loss(learn): learn.loss_func = LabelSmoothingCrossEntropyFlat()

@pytest.mark.parametrize('kw,change,fit,words', [
    ({}, noop, sgdr(2, 1, 2e-2, 3), 'schedule lr: .*became'), ({}, noop, sgdr(3, 1, 1e-2, 2), 'epochs: 4 became 7'), ({}, noop, clr, 'Triangular'),
    ({}, noop, sgdr(2, 1, 1e-2, 3, wd=.3), 'wd: None became 0.3'), ({}, noop, sgdr(2, 1, 1e-2, 3, patience=1), 'patience: None became 1'),
    ({}, noop, sgdr(2, 1, 1e-2, 3, cbs=[MixUp()]), "cbs: .*became .*mix_up"), ({}, other_data, None, 'data training set items: 37 became 40'),
    (dict(model=lambda: net(9)), noop, None, 'the model: .*out_features=8.* became .*out_features=9'), ({}, freeze, None, 'which parameters are frozen'),
    (dict(model=lambda: net(p=.5)), noop, None, r'the model: .*p=0.3.* became .*p=0.5'), (dict(opt_func=adamw), noop, None, 'optimizer: Optimizer.* became OptimWrapper of AdamW'),
    (dict(opt_func=lambda p, lr: Lookahead(Adam(p, lr=lr))), noop, None, 'optimizer: Optimizer with.* became Lookahead of Optimizer'),
    (dict(opt_func=Lamb), noop, None, 'its steps: .*lamb_step'), (dict(opt_func=partial(Adam, decouple_wd=False)), noop, None, 'its steps: .*l2_reg'), ({}, own_wd, None, 'weight decay: None became 0.3'),
    ({}, other_loss, None, 'loss: '), ({}, weighted_loss, None, 'weights of the loss'), ({}, noop, sgdr(2, 1, 1e-2, 3, cbs=[GradientAccumulation(9)]), 'cbs')])
def test_a_checkpoint_of_another_run(tmp_path, kw, change, fit, words):
    "Refused, with what differs; nothing is touched"
    folder = broken(tmp_path)
    before,learn = {o.name: o.read_bytes() for o in folder.iterdir()},make(tmp_path, **kw)
    change(learn)
    if learn.opt is None: learn.create_opt()
    state = str(learner_state(learn)[0])
    with pytest.raises(ValueError, match=words) as e: (fit or (lambda l: FITS['sgdr'](l, [Break()])))(learn)
    assert 'is of another run' in str(e.value) and 'Choose another name for `resume`' in str(e.value)
    assert str(learner_state(learn)[0])==state and {o.name: o.read_bytes() for o in folder.iterdir()}==before
    learn.fit(1)   # and works without

def test_a_callback_of_the_learner_with_another_argument(tmp_path):
    def learn(): return make(tmp_path, cbs=GradientClip(clip))
    clip = .5
    with pytest.raises(KeyboardInterrupt): FITS['sgdr'](learn(), [Break(1)])
    clip = .1
    with pytest.raises(ValueError, match='callbacks gradient_clip 0 max_norm: 0.5 became 0.1'): FITS['sgdr'](learn(), [Break()])
    clip = .5
    FITS['sgdr'](learn(), [Break()])

class Log(Callback):
    def __init__(self, to): self.to = to

def test_a_callback_with_another_name_goes_on(tmp_path):
    "Such as that of a log, which may have the time in it"
    with pytest.raises(KeyboardInterrupt): FITS['sgdr'](make(tmp_path, cbs=Log('monday')), [Break(1)])
    FITS['sgdr'](make(tmp_path, cbs=Log('tuesday')), [Break()])

def test_other_items(tmp_path):
    "By their paths and values, not by their number only"
    def fit(x, *cbs):
        learn = learner(3, path=tmp_path)
        learn.dls = DataLoaders(*(DataLoader(TensorDataset(x, x), bs=2, num_workers=0) for _ in range(2)))
        learn.fit_sgdr(2, 1, 1e-2, 1, resume='r', cbs=list(cbs) or Break())
    x = torch.arange(8.)[:,None]
    with pytest.raises(KeyboardInterrupt): fit(x, Break(1))
    with pytest.raises(ValueError, match='the items of the training set'): fit(x.flip(0))
    fit(x)

@pytest.mark.parametrize('name', ['../x', '', '.x', 'a/b', '..', 3, True, 'a\0b'])
def test_bad_names(tmp_path, name):
    with pytest.raises(ValueError, match='`resume` must be a plain name'): make(tmp_path).fit_sgdr(1, resume=name)

def test_start_epoch(tmp_path):
    with pytest.raises(ValueError, match='`resume` finds the epoch to start from by itself'): make(tmp_path).fit_sgdr(2, resume='r', start_epoch=1)

def test_persistent_workers(tmp_path):
    learn = make(tmp_path)
    learn.dls = loaders(1, persistent_workers=True)
    with pytest.raises(ValueError, match='`persistent_workers=False`'): learn.fit_sgdr(1, resume='r')
    assert not (tmp_path/'models').exists()

def test_a_folder_that_cant_be_written(tmp_path):
    (tmp_path/'models').write_text('a file')
    with pytest.raises(OSError, match="`resume` can't be written to .*set `learn.path` or `learn.model_dir`"): make(tmp_path).fit_sgdr(1, resume='r')

def test_two_runs_of_one_name(tmp_path):
    "The second is refused as long as the first lives"
    (tmp_path/'models/resume').mkdir(parents=True)
    code = "import sys\nfrom filelock import FileLock\nl = FileLock(sys.argv[1])\nl.acquire()\nprint('held', flush=True)\ninput()"
    p = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'models/resume/.r.lock')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline()=='held\n'
        with pytest.raises(ValueError, match="`resume` named 'r': another run is writing there now"): FITS['sgdr'](make(tmp_path), [Break()])
    finally:
        p.kill()
        p.wait()
    FITS['sgdr'](make(tmp_path), [Break()])

# Callbacks

class Odd(Callback):
    def before_fit(self): self.gen = (i for i in range(3))

def test_a_callback_with_a_state_that_cant_be_kept(tmp_path):
    with pytest.warns(UserWarning, match='`gen` of Odd, a generator') as w: FITS['sgdr'](make(tmp_path), [Odd()])
    assert sum('can\'t be kept' in str(o.message) for o in w)==1

class Phase(Enum): A,B = 1.,.5
Pair = namedtuple('Pair', 'a b')

class Scales(Callback):
    "What it remembers decides what is trained; `begin` makes it, `step` changes it and returns a factor"
    def __init__(self, begin, step, early=False): self.begin,self.step,self.early = begin,step,early
    def before_fit(self): self.begin(self)
    def before_batch(self):
        if self.training: self.learn.xb = (self.learn.xb[0]*float(self.step(self)),)

def setting(**kw): return lambda self: [setattr(self, k, v()) for k,v in kw.items()]
def counted(self):
    self.h['n'] = self.h['n']+1 if 'n' in self.h else 1
    return 1+self.h['n']/50

def phases(self):
    if self.learn.epoch>=1: self.phase = Phase.B
    return self.phase.value

def paired(self):
    self.p = Pair(self.p.a+1, self.p.b)
    return 1+self.p.a/50

def frozen(self):
    self.s = {*self.s, frozenset([len(self.s)])}
    return 1+len(self.s)/50

def moved(self):
    self.h['n'] = 1
    self.h.move_to_end('n')
    self.h[len(self.h)] = 0
    return 1+len(self.h)/50

def held(self):
    for p in self.ps: p.data.clamp_(-.3, .3)
    return 1

def counts_on_the_learner(self):
    self.learn.n_seen = getattr(self.learn, 'n_seen', 0)+1
    return 1+self.learn.n_seen/50

def learnt(self):
    self.w.data += .01
    assert self.w.requires_grad and self.w.is_leaf
    return self.w.detach()

def others(self):
    self.other.n = getattr(self.other, 'n', 0)+1
    return 1+self.other.n/50

ODD = {
    'defaultdict': (setting(h=lambda: defaultdict(int)), counted), 'Counter': (setting(h=Counter), counted), 'OrderedDict': (setting(h=OrderedDict), moved),
    'enum': (setting(phase=lambda: Phase.A), phases), 'namedtuple': (setting(p=lambda: Pair(0, 1)), paired), 'frozenset': (setting(s=set), frozen),
    'random': (setting(rng=lambda: random.Random(3)), lambda self: self.rng.random()),
    'numpy': (setting(rng=lambda: np.random.default_rng(3)), lambda self: self.rng.random()),
    'torch': (setting(rng=lambda: torch.Generator().manual_seed(3)), lambda self: torch.rand(1, generator=self.rng)),
    'parameters': (lambda self: setattr(self, 'ps', list(self.learn.model.parameters())), held), 'on the Learner': (noop, counts_on_the_learner),
    'leaf': (setting(w=lambda: torch.ones(1, requires_grad=True)), learnt), 'callback': (setting(other=Callback), others),
    'slice': (setting(s=lambda: slice(0, 1)), lambda self: (setattr(self, 's', slice(0, self.s.stop+1)), 1+self.s.stop/50)[1]),
    'device and dtype': (setting(d=lambda: torch.device('cpu'), t=lambda: torch.float32), lambda self: torch.ones(1, device=self.d, dtype=self.t))}

@pytest.mark.parametrize('begin,step', ODD.values(), ids=ODD)
def test_whatever_a_callback_remembers(tmp_path, begin, step):
    def fit(l, cbs): l.fit_sgdr(4, 1, 1e-2, 1, cbs=[Scales(begin, step), *cbs], resume='r')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        whole,again = broken_and_not(tmp_path, fit, [Break(1), Break(2)])
    assert equal(whole.was, again.was)

@pytest.mark.parametrize('begin,step', ODD.values(), ids=ODD)
def test_keep_state_keeps_it_too(tmp_path, begin, step):
    def go(path, trial):
        learn,cb = make(path),Scales(begin, step)
        learn.add_cb(cb)
        learn.fit_sgdr(1, 1, 1e-2)
        if trial:
            with keep_state(learn):
                learn.fit_sgdr(1, 1, 1e-1)
                learn.lr_find(show_plot=False, num_it=8)
        cb.begin = noop   # goes on with what it has
        learn.fit_sgdr(1, 1, 1e-2)
        return seen(learn)
    assert equal(go(tmp_path/'a', False), go(tmp_path/'b', True))

def test_two_callbacks_of_one_name(tmp_path):
    "Each gets its own back"
    def fit(l, cbs):
        cbs = [SaveModelCallback('valid_loss', fname='A'), SaveModelCallback('accuracy', fname='B'), GradientClip(.1), GradientClip(.001), *cbs]
        l.fit_sgdr(4, 1, 1e-1, 1, cbs=cbs, resume='r')
    whole,again = broken_and_not(tmp_path, fit, [Break(1), Break(3)])
    assert equal(whole.was, again.was)
    for o in 'AB': assert same(*(torch.load(tmp_path/p/f'models/{o}.pth') for p in ('whole','broken')))

def test_the_end_of_a_fit_that_is_passed_over(tmp_path):
    "It is that of the fit, whatever has become of the file of its best model since"
    def script(seed):
        learn = make(tmp_path, seed=seed)
        learn.fit_sgdr(2, 1, 1e-2, 1, resume='one', cbs=SaveModelCallback())
        one = weights(learn)
        learn.fit_sgdr(2, 1, 1e-1, 1, resume='two', cbs=SaveModelCallback())
        return one,weights(learn)
    (a,b),(c,d) = script(0),script(5)
    assert same(a, c) and same(b, d) and not same(a, b)

class Lazy(Callback):
    "Makes a model of its own once training has begun"
    def before_fit(self): self.ema = None
    def after_step(self):
        if self.ema is None: self.ema = copy.deepcopy(self.learn.model)

def test_what_is_made_during_the_fit(tmp_path):
    "It can't be put back: that is said, and the run goes on"
    def fit(seed, b): make(tmp_path, seed=seed).fit_sgdr(3, 1, 1e-2, 1, cbs=[Lazy(), b], resume='r')
    with pytest.raises(KeyboardInterrupt): fit(0, Break(1))
    with pytest.warns(UserWarning, match=r"`ema` of Lazy can't be put back \(there is nothing to put it into\)"): fit(1, Break())

class Scaler:
    "Stands for that of fp16, which needs a GPU"
    def __init__(self): self.s = 1.
    def state_dict(self): return {'s': self.s}
    def load_state_dict(self, d): self.s = d['s']

class Halves(Callback):
    def before_fit(self): self.learn.scaler = Scaler()
    def before_batch(self):
        if self.training: self.learn.scaler.s *= .9
        self.learn.xb = (self.learn.xb[0]*self.learn.scaler.s,)

def test_the_scaler_of_mixed_precision(tmp_path):
    def fit(l, cbs): l.fit_sgdr(3, 1, 1e-2, 1, cbs=[Halves(), *cbs], resume='r')
    assert equal(*[o.was for o in broken_and_not(tmp_path, fit, [Break(2)])])

def torch_loaders():
    "PyTorch's own DataLoaders, and a sampler with a generator of its own"
    ds,g = TensorDataset(torch.randn(37, 4, generator=torch.Generator().manual_seed(1)), torch.arange(37)%3),torch.Generator().manual_seed(2)
    return DataLoaders(TorchDL(ds, batch_size=8, sampler=RandomSampler(ds, generator=g)), TorchDL(ds, batch_size=8))

def test_loaders_of_pytorch(tmp_path):
    def go(path, seed, b):
        learn = make(path, seed=seed)
        learn.dls = torch_loaders()
        learn.fit_sgdr(3, 1, 1e-2, 1, cbs=b, resume='r', snapshots='s')
        return seen(learn),learn
    whole,_ = go(tmp_path/'a', 0, Break())
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'b', 0, Break(1))
    again,learn = go(tmp_path/'b', 4, Break())
    assert equal(whole, again)
    assert learn.average_snapshots('s') is learn

def test_a_data_set_with_one_tensor(tmp_path):
    class One(Items): tensors = torch.arange(37.)
    learn = make(tmp_path)
    learn.dls = DataLoaders(*(DataLoader(One(), bs=8, num_workers=0) for _ in range(2)))
    learn.fit_sgdr(1, resume='r')

def test_other_folders_stay(tmp_path):
    folder = broken(tmp_path)
    (folder/'.ipynb_checkpoints').mkdir()
    FITS['sgdr'](make(tmp_path), [Break()])
    assert (folder/'.ipynb_checkpoints').is_dir()

def test_a_metric_that_is_no_number(tmp_path):
    learn = make(tmp_path)
    learn.metrics = [AvgMetric(lambda x,y: torch.tensor(1.)), ValueMetric(lambda: pd.Series([1]), 'series'), skm_to_fastai(lambda y,p: np.array([.5,.2]))]
    learn.fit_sgdr(2, 1, 1e-2, 1, resume='r', snapshots='s', patience=1, monitor='valid_loss')
    assert any(isinstance(o, list) and o==[.5,.2] for o in learn.snapshots('s').iloc[0])

class Reads(Callback):
    "What a fit has left on the Learner"
    order = 80
    def before_epoch(self):
        if self.epoch: self.got = float(self.learn.smooth_loss)
    def after_fit(self): self.row = list(self.learn.final_record)

def test_what_fastai_leaves_on_the_learner(tmp_path):
    got = []
    def fit(l, cbs):
        cb = Reads()
        try: l.fit_sgdr(3, 1, 1e-2, 1, cbs=[cb, *cbs], resume='r')
        finally: got.append((getattr(cb, 'got', None),getattr(cb, 'row', [])[:3]))
    broken_and_not(tmp_path, fit, [Break(1)])
    assert got[0]==got[-1] and got[0][0] is not None
    fit(make(tmp_path/'broken'), [Break()])

def test_a_fit_that_is_cancelled_as_it_begins(tmp_path):
    learn = make(tmp_path)
    for kw in {},dict(resume='r'): learn.fit_sgdr(2, cbs=Cancel('before_fit', CancelFitException, lambda o: True, -40), **kw)
    with Resumable(learn, 'nothing'): pass
    assert not list(tmp_path.rglob('final.*'))
    assert learn.opt and not hasattr(learn.recorder, 'values')

class Own(Callback):
    "Its state decides what is trained"
    def before_fit(self): self.n,self.seen = 0,[]
    def before_batch(self):
        self.n += 1
        self.seen.append(torch.tensor(self.n))
        self.learn.xb = (self.learn.xb[0]*(1+self.n/100),)

def test_own_callbacks_go_on(tmp_path):
    def fit(l, cbs): l.fit_sgdr(4, 1, 1e-2, 1, cbs=[Own(), *cbs], resume='r')
    assert equal(*[o.was for o in broken_and_not(tmp_path, fit, [Break(2)])])

def test_tables_are_whole(tmp_path, capsys):
    "On the screen and in the file of a CSVLogger"
    def run(seed, *cbs):
        learn = make(tmp_path, seed=seed)
        learn.logger,learn.create_mbar = print,True
        learn.add_cbs([ProgressCallback(), CSVLogger()])
        learn.fit_sgdr(4, 1, 1e-2, 1, resume='r', cbs=list(cbs) or Break())
    with pytest.raises(KeyboardInterrupt): run(0, Break(2))
    capsys.readouterr()
    run(1)
    out,rows = capsys.readouterr().out,(tmp_path/'history.csv').read_text().splitlines()
    assert 'Going on: checkpoint of' in out and 'after epoch 1' in out
    assert [o.split(',')[0] for o in rows]==['epoch','0','1','2','3']
    assert [o.split()[0] for o in out.replace('\r', '\n').splitlines() if len(o.split())==5 and o.split()[0].isdigit()]==['0','1','2','3']

class Exports(Callback):
    def after_epoch(self): self.learn.export(f'{self.learn.epoch}.pkl')

def test_exports_within_the_fit(tmp_path):
    from fastai.learner import load_learner
    learn = two_groups(4, path=tmp_path)
    learn.dls = Datasets([torch.tensor([float(i)]) for i in range(8)], [[noop],[noop]], splits=[range(8),range(4)]).dataloaders(bs=2, num_workers=0)
    learn.fit_sgdr(2, 1, 1e-2, 1, cbs=Exports(), resume='r', snapshots='s')
    assert load_learner(tmp_path/'1.pkl').model(torch.zeros(1, 1)).shape==(1,1)

class Validates(Callback):
    "Calls `validate` within the fit, which fires a fit's events"
    order = 80
    def after_epoch(self):
        if not self.learn.lock.locked(): self.learn.validate()

def test_validation_within_the_fit(tmp_path):
    "It may change what the recorder has, as in fastai, but not how the fit goes"
    learn = make(tmp_path)
    learn.fit_sgdr(3, 1, 1e-2, 1, cbs=Validates(), resume='r', snapshots='s', patience=3)
    assert len(learn.snapshots('s'))==3 and checkpoints(tmp_path)[-1]=='epoch-00002.pth'

# Leaving no trace

TRIALS = {
    'fit': lambda l: l.fit_one_cycle(2, 1e-1), 'lr_find': lambda l: l.lr_find(show_plot=False, num_it=8), 'validate': lambda l: l.validate(),
    'preds': lambda l: l.get_preds(), 'unfreeze': lambda l: [l.unfreeze(), l.fit(1)], 'model': lambda l: setattr(l, 'model', nn.Linear(4, 3)),
    'reset': lambda l: l.fit_sgdr(1, 1, .1, reset_opt=True), 'cbs': lambda l: l.add_cb(MixUp()), 'metrics': lambda l: setattr(l, 'metrics', []),
    'weights': lambda l: [p.data.zero_() for p in l.model.parameters()], 'random': lambda l: [random.random(), np.random.rand(), torch.rand(3)],
    'order': lambda l: [list(l.dls.train), list(l.dls.valid)], 'grads': lambda l: l.model(torch.randn(5, 4)).sum().backward(), 'eval': lambda l: l.model.eval(),
    'error': lambda l: 1/0, 'interrupt': lambda l: l.fit_sgdr(1, 1, .1, cbs=Break(0)), 'removed': lambda l: l.remove_cb(l.recorder), 'lr': lambda l: setattr(l, 'lr', 3)}

@pytest.mark.parametrize('trial', TRIALS.values(), ids=TRIALS)
@pytest.mark.parametrize('trained', [False,True])
def test_nothing_is_left(tmp_path, trial, trained):
    "The training that follows is bitwise the one without"
    def go(path, trial):
        learn = make(path)
        learn.freeze() if trained else None
        if trained: learn.fit_sgdr(1, 2, 1e-2, cbs=GradientAccumulation(13))
        def ids(): return {k: id(v) for k,v in vars(learn).items() if k not in ('cbs','final_record','smooth_loss','loss')}
        attrs = ids()
        if trial is not None:
            try:
                with keep_state(learn) as same_one:
                    assert same_one is learn
                    trial(learn)
            except (ZeroDivisionError,KeyboardInterrupt): assert trial in (TRIALS['error'],TRIALS['interrupt'])
        assert ids()==attrs
        state = learner_state(learn)[0]
        state['cbs']['recorder 0'].pop('start_epoch', None)   # a time of day
        learn.fit_sgdr(2, 1, 1e-2)
        return str(state),seen(learn)
    (a,x),(b,y) = go(tmp_path/'a', None),go(tmp_path/'b', trial)
    assert a==b and equal(x, y)

class Collects(Callback):
    "Keeps what it sees in objects that have no form in a checkpoint"
    def __init__(self): self.seen,self.frame = deque(maxlen=5),pd.DataFrame(dict(loss=[0.]))
    def after_batch(self):
        self.seen.append(self.loss.item())
        self.frame.loc[len(self.frame)] = self.loss.item()

def test_what_has_no_form_in_a_checkpoint_is_copied(tmp_path):
    learn = make(tmp_path, cbs=Collects())
    learn.fit(1)
    cb = learn.collects
    was = list(cb.seen),cb.frame.copy()
    with keep_state(learn): learn.fit(1)
    assert list(cb.seen)==was[0] and cb.frame.equals(was[1])

def test_bars_are_not_copied(tmp_path):
    "A bar that was left behind holds a DataLoader"
    learn = make(tmp_path)
    learn.add_cb(ProgressCallback())
    learn.progress.pbar = threading.Lock()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with keep_state(learn): pass

def test_what_cannot_be_copied_is_named(tmp_path):
    class Locks(Callback):
        def __init__(self): self.lock = threading.Lock()
    learn = make(tmp_path, cbs=Locks())
    with pytest.warns(UserWarning, match="`lock` of Locks can't be copied"):
        with keep_state(learn): learn.fit(1)

def test_other_loaders_within(tmp_path):
    learn = make(tmp_path)
    was = list(learn.dls.loaders)
    with keep_state(learn):
        learn.dls.loaders[:] = loaders().loaders
        learn.fit(1)
    assert all(a is b for a,b in zip(was, learn.dls.loaders))

def test_errors_come_through():
    with pytest.raises(ZeroDivisionError), keep_state(learner(2)): 1/0

def test_no_optimizer_before(tmp_path):
    learn = make(tmp_path)
    with keep_state(learn): learn.fit(1)
    assert learn.opt is None

def test_a_state_goes_into_another_learner(tmp_path):
    a,b = make(tmp_path),make(tmp_path, seed=1)
    a.fit_sgdr(1, 2, 1e-2)
    state,unknown = learner_state(a)
    assert not unknown
    b.create_opt()
    load_learner_state(b, state)
    for o in a,b: o.model.train()
    ours = [(torch.rand(1).item(), [x.tolist() for x,_ in o.dls.train]) for o in (a,b) if load_learner_state(o, state) is None]
    assert ours[0]==ours[1] and same(weights(a), weights(b))

# More of what `keep_state` and a checkpoint hold

def test_autocast_left_on():
    with pytest.raises(KeyboardInterrupt), keep_state(learner(2)):
        torch.set_autocast_enabled('cpu', True)
        raise KeyboardInterrupt
    assert not torch.is_autocast_enabled('cpu')

def test_no_folder_stays(tmp_path):
    learn = learner(10, path=tmp_path)
    with keep_state(learn): learn.lr_find(num_it=10, show_plot=False)
    assert not list(tmp_path.iterdir())

class Counts(nn.Module):
    "Its buffer is in no state dict, and decides what it gives out"
    def __init__(self):
        super().__init__()
        self.register_buffer('n', torch.zeros(1), persistent=False)
    def forward(self, x):
        if self.training: self.n += 1
        return x*(1+self.n/50)

def with_counts():
    m = net()
    m.insert(0, Counts())
    return m

def test_buffers_that_no_state_dict_has(tmp_path):
    assert equal(*[o.was for o in broken_and_not(tmp_path, FITS['sgdr'], [Break(1)], model=with_counts)])

class Moves(nn.Module):
    "A loss whose scale goes with what it has seen"
    def __init__(self):
        super().__init__()
        self.register_buffer('seen', torch.zeros(()))
    def forward(self, x, y):
        if x.requires_grad: self.seen += 1
        return nn.functional.cross_entropy(x, y)*(1+self.seen/20)

def test_state_of_the_loss(tmp_path):
    learn = make(tmp_path)
    learn.loss_func = Moves()
    with keep_state(learn): learn.fit(1)
    assert learn.loss_func.seen==0

def test_texts_of_a_language_model():
    "Which their loader shuffles in place"
    dl = LMDataLoader([(LMTensorText(torch.arange(20*i, 20*i+20)),) for i in range(8)], bs=2, seq_len=5, shuffle=True, num_workers=0)
    learn = quiet(Learner(DataLoaders(dl, dl), nn.Linear(1, 1), loss_func=noop))
    was = list(dl.items.idxs)
    with keep_state(learn): list(dl)
    assert list(dl.items.idxs)==was

@pytest.mark.parametrize('made', [lambda n: [Path(o) for o in n], lambda n: pd.DataFrame(dict(name=list(n)))], ids=['paths','frame'])
def test_other_files(tmp_path, made):
    "Though all that is trained on is the same"
    class Rows:
        def __init__(self, items): self.items = items
        def __len__(self): return 8
        def __getitem__(self, i): return torch.ones(1),torch.ones(1)
    def fit(names, *cbs):
        learn = learner(3, path=tmp_path)
        learn.dls = DataLoaders(*(DataLoader(Rows(made(names)), bs=2, num_workers=0) for _ in range(2)))
        learn.fit_sgdr(2, 1, 1e-2, 1, resume='r', cbs=list(cbs))
    with pytest.raises(KeyboardInterrupt): fit('abcdefgh', Cancel('after_batch', KeyboardInterrupt, lambda o: o.training and o.epoch==1))
    with pytest.raises(ValueError, match='the items of the training set'): fit('hgfedcba')

def test_hash_of_a_big_file(tmp_path):
    (tmp_path/'f').write_bytes(b := np.random.default_rng(0).bytes(3*2**20+7))
    assert _sha(tmp_path/'f')==hashlib.sha256(b).hexdigest()
