"`fit_grid`: each head of a grid is the head trained alone, by hand, with fastai's own optimizers; and what is scored, chosen, installed, refused and put back"
import copy, itertools, math, random, warnings
from functools import partial
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai.metrics import AccumMetric, F1Score, LossMetric, accuracy, accuracy_multi, error_rate, mse
from fastai.optimizer import SGD, Adam, Lookahead, RMSProp, ranger
from fastai.torch_core import set_seed
from fastcore.foundation import L
from hypothesis import given, settings, strategies as st
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from fastai_clr import heads, precompute # Patch Learner; chkstyle: ignore
from fastai_clr.heads import _adam_hypers, _Data, _Graph, _InTurn, _new_head, _order_of, _Setting, _Together, _train, _with_stacked_dropout
from fastai_clr.precompute import StaleActivations
from fastai_clr.schedules import CosineRestarts, Linear, Triangular
from learners import adamw, quiet
from pictures import nudge, small, some

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
ways = pytest.mark.parametrize('way', [_InTurn,_Together])

# Heads to try it on

X = torch.tensor(load_digits().images/16, dtype=torch.float32).flatten(1)
Y = torch.tensor(load_digits().target)
N = 200

def mlp(): return nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 10))
def linear(): return nn.Sequential(nn.Linear(24, 10))
def dropping():
    return nn.Sequential(nn.Dropout(.2), nn.Linear(24, 24), nn.ReLU(), nn.Dropout(.3), nn.Linear(24, 16), nn.BatchNorm1d(16), nn.Dropout(.4), nn.Linear(16, 10))

tops = pytest.mark.parametrize('top', [linear,mlp])

@pytest.fixture(scope='module')
def place(tmp_path_factory): return tmp_path_factory.mktemp('heads')

def make(place, top=mlp, n=N, bs=32, x=X, y=Y, drop_last=False, device='cpu', dtype='float32', where='auto', says=False, **kw):
    "The head's Learner; the body is one random layer, always the same"
    set_seed(0, reproducible=True)
    body = nn.Sequential(nn.Linear(64, 24), nn.Tanh())
    dls = DataLoaders.from_dsets(TensorDataset(x[:n], y[:n]), TensorDataset(x[n:n+60], y[n:n+60]), bs=bs, drop_last=drop_last, device=device)
    learn = quiet(Learner(dls, nn.Sequential(body, top()), path=place, **{'loss_func': CrossEntropyLossFlat(), 'metrics': accuracy, **kw}))
    head = quiet(learn.precompute(dtype=dtype, where=where))
    if says: head.logger = print
    return head

def pairs(head, rows=None):
    "Activations by the body itself, and targets, of training rows"
    x,y = head.whole.dls.train.dataset.tensors
    rows = torch.arange(len(y)) if rows is None else torch.as_tensor(rows)
    with torch.no_grad(): return head.features.cpu()(x[rows]),y[rows]

def held_rows(n=N, pct=.2):
    "By hand: numpy's permutation, and the rest"
    held = np.random.default_rng(0).permutation(n)[:round(n*pct)]
    return np.setdiff1d(np.arange(n), held),np.sort(held)

def batches_of(rows, bs, n_epoch, drop_last=False):
    "The order of batches, without those of one row that are left over"
    rows,res = torch.as_tensor(rows),[]
    for e in range(n_epoch):
        mine = rows[_order_of(len(rows), 0, e)].split(bs)
        res += [o for o in mine if len(o)==len(mine[0]) or len(o)>1 and not drop_last]
    return res

def first(head, seed):
    "New weights by torch's own rules"
    m = copy.deepcopy(head.model).train()
    torch.manual_seed(seed)
    for o in m.modules():
        if hasattr(o, 'reset_parameters'): o.reset_parameters()
    return m

def alone(head, rows, n_epoch, lr, wd=.01, seed=0, bs=32, curve=None, opt_func=Adam, decays=lambda p: p.ndim>1, drop_last=False):
    "A head trained in a plain loop by a fastai optimizer, and its mean loss in the last epoch"
    m,batches,lr,wd = first(head, seed),batches_of(rows, bs, n_epoch, drop_last),float(lr),float(wd)
    ps,n,losses = list(m.parameters()),len(batches),[]
    opt = opt_func(ps, lr=lr)
    opt.set_hyper('wd', wd)
    for p in ps:
        if not decays(p): opt.state[p]['do_wd'] = False
    for t,idx in enumerate(batches):
        x,y = pairs(head, idx)
        opt.set_hyper('lr', lr*((1+math.cos(math.pi*t/n))/2 if curve is None else curve(t, n//n_epoch)))
        loss = head.loss_func(m(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return m,np.mean(losses[-n//n_epoch:])

def near(a, b, tol=1e-5):
    "Weights and buffers"
    assert a.keys()==b.keys()
    for k in a: np.testing.assert_allclose(a[k].detach().cpu(), b[k].detach().cpu(), rtol=tol, atol=tol, err_msg=k)

def grid(lr, wd=(.01,), seeds=(0,), n_epoch=2, ps=(None,), sched=None):
    return [_Setting(*o) for o in itertools.product(lr, wd, ps, [sched or CosineRestarts(1, n_epoch)], seeds)]

def engine(head, way, ss, n_epoch=2, bs=32, rows=range(N), models=None):
    "An engine before it starts, and its data"
    data = _Data(head, list(rows), bs)
    lrs = np.stack([s.lrs(data.n_iter, n_epoch*data.n_iter) for s in ss], 1)
    return way(head, models or [_new_head(head.model, s) for s in ss], ss, _adam_hypers(head), lrs),data

def trained(head, way, ss, n_epoch=2, **kw):
    e,data = engine(head, way, ss, n_epoch, **kw)
    alive,losses = _train(e, data, n_epoch, warnings.warn, iter(()), list(map(str, ss)))
    return e,alive,losses

@pytest.fixture
def forced(monkeypatch):
    "Make `fit_grid` train in a given way"
    def to(way): monkeypatch.setattr(heads, '_choose', lambda learn, ss, *a: (way,len(ss)))
    return to

def by_hand(m, x, y):
    "Loss and accuracy by numpy"
    with torch.no_grad(): out = m.eval()(x).double().numpy()
    logp = out-out.max(1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(1, keepdims=True))
    return -logp[np.arange(len(y)),y].mean(),(out.argmax(1)==y.numpy()).mean()

def states(opt): return None if opt is None else [{k: torch.as_tensor(v).clone() for k,v in opt.state[p].items()} for p,*_ in opt.all_params()]

def bits(head):
    "All of a Learner that has to stay: weights, dropout, modes, what its optimizers know, random numbers"
    res = [{k: v.clone() for k,v in head.whole.model.state_dict().items()}, [(o.training,getattr(o, 'p', None)) for o in head.whole.model.modules()]]
    res += [states(head.opt), states(head.whole.opt), [p.requires_grad for p in head.model.parameters()], [p.grad for p in head.model.parameters()]]
    return [*res, torch.get_rng_state(), *np.random.get_state()[1:3], random.getstate()]

def unchanged(a, b):
    if isinstance(a, torch.Tensor|np.ndarray): return np.array_equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(unchanged(a[k], b[k]) for k in a)
    if isinstance(a, list|tuple): return len(a)==len(b) and all(map(unchanged, a, b))
    return a==b

def same_board(a, b, tol=1e-5):
    "Their rows, in whatever order ties have"
    by = ['lr','wd','seed']
    a,b = (o.drop(columns='sched', errors='ignore').sort_values(by).reset_index(drop=True) for o in (a,b))
    pd.testing.assert_frame_equal(a, b, rtol=tol, atol=tol)

# Each head is the head trained alone

@ways
@tops
@pytest.mark.parametrize('wd_bn_bias', [False,True])
def test_each_head_is_the_one_trained_alone(place, way, top, wd_bn_bias):
    "Weights, running statistics and the last epoch's loss, of fastai's Adam"
    head,ss = make(place, top, wd_bn_bias=wd_bn_bias),grid([1e-3,.01,.05], [0,.5], [0,7])
    e,alive,losses = trained(head, way, ss)
    assert alive==list(range(12))
    for k,s in enumerate(ss):
        m,loss = alone(head, range(N), 2, s.lr, s.wd, s.seed, decays=lambda p: wd_bn_bias or p.ndim>1)
        near(e.state(k), m.state_dict())
        assert losses[k]==pytest.approx(loss, rel=1e-5)

@ways
def test_adam_as_it_was_set(place, way):
    "Its momenta and eps, and its own weight decay where the Learner has none"
    opt_func = partial(Adam, mom=.8, sqr_mom=.95, eps=1e-3, wd=.4)
    head = make(place, opt_func=opt_func)
    e,*_ = trained(head, way, grid([.02,.1], [.4]))
    for k,lr in enumerate((.02,.1)): near(e.state(k), alone(head, range(N), 2, lr, .4, opt_func=opt_func)[0].state_dict())
    assert head.fit_grid(1, 1e-3)['wd'].tolist()==[.4] and make(place, opt_func=opt_func, wd=.2).fit_grid(1, 1e-3)['wd'].tolist()==[.2]
    assert make(place, lr=.07).fit_grid(1)[['lr','wd']].values.tolist()==[[.07,.01]]

@pytest.mark.parametrize('opt_func', [SGD,partial(SGD, mom=.9),RMSProp,partial(Adam, decouple_wd=False),ranger,adamw], ids=['sgd','momentum','rmsprop','l2','ranger','torch'])
def test_other_optimizers(place, opt_func, capsys):
    "One head after the other, with the optimizer itself; torch's know of no parameters without decay"
    head = make(place, opt_func=opt_func, says=True)
    capsys.readouterr()
    board = head.fit_grid(2, [.01,.03], [0,.2])
    assert "the optimizer is not fastai's Adam" in capsys.readouterr().out
    mine,held = held_rows()
    for r in board.itertuples():
        m,loss = alone(head, mine, 2, r.lr, r.wd, opt_func=opt_func)
        assert (r.train_loss,r.loss,r.accuracy)==pytest.approx((loss,*by_hand(m, *pairs(head, held))), rel=1e-4)
    near(head.model.state_dict(), alone(head, range(N), 2, board['lr'][0], board['wd'][0], opt_func=opt_func)[0].state_dict())

@ways
@pytest.mark.parametrize('sched', [CosineRestarts(1, 2, warmup_pct=.3), CosineRestarts(2, 1), Triangular(2, .5, 1, .1), Linear(1, .2, 2), CosineRestarts(None, .4)])
def test_schedules(place, way, sched):
    "Batch for batch, times the lr; also endless ones"
    head = make(place)
    e,*_ = trained(head, way, grid([1e-3,.02], sched=sched))
    for k,lr in enumerate((1e-3,.02)): near(e.state(k), alone(head, range(N), 2, lr, curve=sched.at)[0].state_dict())

@ways
def test_schedules_to_choose_from(place, way, forced):
    head,scheds = make(place),[CosineRestarts(2, 1), Triangular(2, .5, 1, .1)]
    forced(way)
    board = head.fit_grid(2, .02, sched=scheds)
    assert list(board)[:4]==['lr','wd','sched','seed'] and set(board['sched'])==set(scheds)
    for r in board.itertuples(): assert r.train_loss==pytest.approx(alone(head, held_rows()[0], 2, .02, curve=r.sched.at)[1], rel=1e-5)
    near(head.model.state_dict(), alone(head, range(N), 2, .02, curve=board['sched'][0].at)[0].state_dict())

# Batches

@ways
@pytest.mark.parametrize('n,bs,drop_last,want', [(160,53,False,3), (160,64,False,3), (160,64,True,2), (160,10**4,False,1), (160,10**4,True,1), (160,159,False,1), (9,4,False,2)])
def test_batches(place, way, n, bs, drop_last, want):
    "What is left over is a batch of its own, unless it is one row, or `drop_last` is set"
    head = make(place, drop_last=drop_last)
    e,data = engine(head, way, grid([1e-3,3e-3]), rows=range(n), bs=bs)
    assert data.n_iter==want==len(batches_of(range(n), bs, 1, drop_last))
    e,*_ = trained(head, way, grid([1e-3,3e-3]), rows=range(n), bs=bs)
    for k,lr in enumerate((1e-3,3e-3)): near(e.state(k), alone(head, range(n), 2, lr, bs=bs, drop_last=drop_last)[0].state_dict())

def test_rows_a_batch(place):
    "`bs`, else the Learner's"
    head = make(place, bs=50)
    for kw,bs in [({},50), (dict(bs=17),17), (dict(bs=np.int64(1000)),1000)]:
        head.fit_grid(1, .1, **kw)
        near(head.model.state_dict(), alone(head, range(N), 1, .1, bs=bs)[0].state_dict())

def test_every_epoch_has_an_order_of_its_own():
    orders = [_order_of(50, s, e).tolist() for s in range(3) for e in range(3)]
    assert all(sorted(o)==list(range(50)) for o in orders) and len(set(map(tuple, orders)))==9 and orders[1]==_order_of(50, 0, 1).tolist()

# From end to end

@ways
@tops
def test_the_best_is_trained_on_all_rows_and_installed(place, way, top, forced):
    "In the head and in the whole model"
    head = make(place, top)
    forced(way)
    board = head.fit_grid(2, [1e-3,.1], [0,.5], seeds=[3,4])
    best = board.iloc[0]
    m,_ = alone(head, range(N), 2, best['lr'], best['wd'], int(best['seed']))
    near(head.model.state_dict(), m.state_dict())
    assert all(a is b for a,b in zip(head.model, head.whole.model[1], strict=True))
    with torch.no_grad(): out = head.whole.model.eval()(X[N:N+60])
    np.testing.assert_allclose(out.numpy(), m.eval()(head.features(X[N:N+60])).detach().numpy(), atol=1e-4)
    want = by_hand(head.whole.model, X[N:N+60], Y[N:N+60])
    assert list(head.validate())==pytest.approx(want, rel=1e-5) and list(head.whole.validate())==pytest.approx(want, rel=1e-5)

@ways
@tops
def test_scores_are_of_the_rows_held_out(place, way, top, forced):
    head,(mine,held) = make(place, top),held_rows()
    forced(way)
    board = head.fit_grid(2, [1e-3,.03,.1], [0,.5])
    for r in board.itertuples():
        m,loss = alone(head, mine, 2, r.lr, r.wd, r.seed)
        assert (r.train_loss,r.loss,r.accuracy)==pytest.approx((loss,*by_hand(m, *pairs(head, held))), rel=1e-4)

def watch(monkeypatch, head):
    "What is read of the store: rows and whether clean"
    seen,rows = [],head.dls.train.dataset
    batch = rows.batch
    def watched(idx, clean):
        seen.append((set(idx.tolist()),clean))
        return batch(idx, clean)
    monkeypatch.setattr(rows, 'batch', watched)
    def never(*a): raise AssertionError('the validation set was read')
    monkeypatch.setattr(head.dls.valid.dataset, 'batch', never)
    return seen

@ways
@pytest.mark.parametrize('pct', [.2,.5])
def test_which_rows_are_read(place, way, pct, forced, monkeypatch):
    "Those held out are not trained on, and are always the same; none of the validation set; in the end all rows"
    head,held = make(place),[]
    forced(way)
    for seeds in ([0],[8,9]):
        seen = watch(monkeypatch, head)
        head.fit_grid(2, [.01,.1], seeds=seeds, held_pct=pct)
        at = next(i for i,o in enumerate(seen) if o[1])
        held.append(seen[at][0])
        before,after = seen[:at],seen[at+1:]
        assert not any(c for _,c in before+after) and len(held[-1])==round(N*pct)
        assert set.union(*(o for o,_ in before))==set(range(N))-held[-1] and set.union(*(o for o,_ in after))==set(range(N))
    assert held[0]==held[1]

def test_the_validation_set_has_no_part(place):
    "Learners whose validation sets differ choose and train alike"
    a,b = make(place),make(place, x=torch.cat([X[:N], X[N:]*.1]), y=torch.cat([Y[:N], 9-Y[N:]]))
    with torch.no_grad(): b.features[0][0].weight.copy_(a.features[0][0].weight)
    assert a.validate()[0]!=b.validate()[0]
    same_board(a.fit_grid(1, [.01,.1], seeds=2), b.fit_grid(1, [.01,.1], seeds=2))
    near(a.model.state_dict(), b.model.state_dict())

@pytest.fixture(scope='module')
def shared(place): return make(place, linear),make(place, mlp),make(place, dropping)

@given(st.booleans(), st.lists(st.floats(1e-4, .05), min_size=1, max_size=3, unique=True), st.lists(st.floats(0, 1), min_size=1, max_size=2, unique=True),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=2, unique=True), st.integers(1, 2), st.integers(10, 300))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_random_grids(shared, deep, lr, wd, seeds, n_epoch, bs):
    "A row for each combination, best first, each row's score reproduces, and the first is what is installed"
    head,(mine,held) = shared[deep],held_rows()
    board = head.fit_grid(n_epoch, lr, wd, seeds=seeds, bs=bs, metric='loss')
    assert sorted(zip(board['lr'], board['wd'], board['seed']))==sorted(itertools.product(lr, wd, seeds)) and board['loss'].is_monotonic_increasing
    for r in board.itertuples():
        m,loss = alone(head, mine, n_epoch, r.lr, r.wd, r.seed, bs)
        assert (r.train_loss,r.loss)==pytest.approx((loss,by_hand(m, *pairs(head, held))[0]), rel=1e-3)
    r = board.iloc[0]
    near(head.model.state_dict(), alone(head, range(N), n_epoch, r['lr'], r['wd'], int(r['seed']), bs)[0].state_dict(), 5e-4)

# The leaderboard

def test_columns(place):
    head = make(place, dropping)
    board = head.fit_grid(1, [.01,.1])
    assert list(board)==['lr','wd','seed','train_loss','loss','accuracy'] and board.index.tolist()==[0,1] and board.attrs=={'metric':'accuracy'}
    board = head.fit_grid(1, .1, ps=[.1,.2], sched=CosineRestarts(1, 1), metric='loss')
    assert list(board)==['lr','wd','ps','sched','seed','train_loss','loss','accuracy'] and board.attrs=={'metric':'loss'}
    assert board.iloc[:,:3].values.tolist() in ([[.1,.01,.1],[.1,.01,.2]],[[.1,.01,.2],[.1,.01,.1]])

@pytest.mark.parametrize('kw,name,lower', [({},'accuracy',False), (dict(metric='loss'),'loss',True), (dict(metric='error_rate'),'error_rate',True), (dict(metric='accuracy'),'accuracy',False),
    (dict(metric='loss', comp=np.greater),'loss',False), (dict(comp=np.less),'accuracy',True)])
def test_the_best_comes_first(place, kw, name, lower):
    head = make(place, metrics=[accuracy,error_rate])
    board = head.fit_grid(1, [1e-5,1e-3,.03,.3], **kw)
    v = board[name].to_numpy()
    assert (np.diff(v)>=0 if lower else np.diff(v)<=0).all() and v[0]!=v[-1] and board.attrs['metric']==name
    np.testing.assert_allclose(board['accuracy'], 1-board['error_rate'], atol=1e-6)
    near(head.model.state_dict(), alone(head, range(N), 1, board['lr'][0])[0].state_dict())

def test_ties_are_in_the_order_of_the_grid(place):
    board = make(place, metrics=AccumMetric(lambda p,y: .5, name='half', flatten=False)).fit_grid(1, [.3,1e-3,.03], [.1,0], comp=np.less)
    assert board[['lr','wd']].values.tolist()==[list(o) for o in itertools.product([.3,1e-3,.03], [.1,0])]

def test_metrics_of_any_kind(place):
    "Accumulated ones see all rows at once; those of the Learner stay as they are"
    head,(mine,held) = make(place, metrics=[F1Score(average='macro'),AccumMetric(lambda p,y: float(len(y)), name='n', flatten=False)]),held_rows()
    was = [(o.preds,o.targs) for o in head.metrics if hasattr(o, 'preds')]
    board = head.fit_grid(2, [1e-3,.1])
    from sklearn.metrics import f1_score
    for r in board.itertuples():
        x,y = pairs(head, held)
        assert r.f1_score==pytest.approx(f1_score(y, alone(head, mine, 2, r.lr)[0].eval()(x).argmax(1), average='macro')) and r.n==len(held)
    assert [(o.preds,o.targs) for o in head.metrics if hasattr(o, 'preds')]==was

def test_a_metric_with_a_value_a_class(place):
    "It is in the table; nothing can be chosen by it"
    board = make(place, metrics=[accuracy,F1Score(average=None)]).fit_grid(1, [1e-3,.1])
    assert all(len(o)==10 for o in board['f1_score']) and board.attrs['metric']=='accuracy'
    with pytest.raises(ValueError, match='`metric` must be one number, to choose by, and f1_score is'): make(place, metrics=[F1Score(average=None)]).fit_grid(1, [1e-3,.1])

def test_a_metric_that_asks_the_loss_function(place):
    class Loss(CrossEntropyLossFlat):
        def __call__(self, *args, **kw):
            res = super().__call__(*args, **kw)
            self.part = 2*res
            return res
    board = make(place, loss_func=Loss(), metrics=LossMetric('part')).fit_grid(1, [1e-3,.1], metric='part', comp=np.less)
    np.testing.assert_allclose(board['part'], 2*board['loss'], rtol=1e-5)

def test_an_adam_inside_another_optimizer_is_none(place):
    head = make(place, opt_func=lambda p, lr: Lookahead(Adam(p, lr=lr)))
    assert _adam_hypers(head) is None and _adam_hypers(make(place)) is not None

def test_the_loss_goes_to_the_device(place):
    seen = []
    class Loss(CrossEntropyLossFlat):
        def to(self, device):
            seen.append(device)
            return super().to(device)
    head = make(place, loss_func=Loss(weight=torch.ones(10)))
    del seen[:]
    head.fit_grid(1, [1e-3,.1])
    assert seen[0]==head.dls.device

def test_no_metrics(place):
    board = make(place, metrics=None).fit_grid(1, [1e-4,.1])
    assert list(board)[-2:]==['train_loss','loss'] and board.attrs['metric']=='loss' and board['loss'].is_monotonic_increasing

def mixed(*loss_funcs): return pytest.mark.parametrize('loss_func', loss_funcs, ids=lambda o: getattr(o, '__name__', type(o).__name__))

@ways
@mixed(MSELossFlat(), F.mse_loss)
def test_regression(place, way, loss_func, forced):
    y = X.pow(2).mean(1, keepdim=True)*10
    head,(mine,held) = make(place, lambda: nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 1)), y=y, loss_func=loss_func, metrics=mse),held_rows()
    forced(way)
    board = head.fit_grid(2, [1e-3,.03])
    assert board.attrs['metric']=='mse' and board['mse'].is_monotonic_increasing
    for r in board.itertuples():
        x,t = pairs(head, held)
        assert (r.mse,r.loss)==pytest.approx(((alone(head, mine, 2, r.lr)[0](x)-t).pow(2).mean().item(),)*2, rel=1e-4)

@ways
def test_many_labels(place, way, forced):
    y = F.one_hot(Y, 10).float()
    y[:,0] = (Y>4).float()
    head,(mine,held) = make(place, y=y, loss_func=BCEWithLogitsLossFlat(), metrics=partial(accuracy_multi, thresh=.3)),held_rows()
    forced(way)
    board = head.fit_grid(2, [1e-3,.1])
    for r in board.itertuples():
        x,t = pairs(head, held)
        p = torch.sigmoid(alone(head, mine, 2, r.lr)[0].eval()(x)).detach()
        want = -(t*p.log()+(1-t)*(1-p).log()).mean(),((p>.3)==t.bool()).float().mean()
        assert (r.loss,r.accuracy_multi)==pytest.approx([float(o) for o in want], rel=1e-4)

@ways
@tops
@mixed(*[CrossEntropyLossFlat(**{k:v}) for k,v in dict(weight=torch.arange(1., 11), label_smoothing=.2, reduction='sum', ignore_index=3).items()], F.cross_entropy)
def test_other_losses(place, way, top, loss_func):
    head = make(place, top, loss_func=loss_func)
    e,*_ = trained(head, way, grid([1e-3,.03]))
    for k,lr in enumerate((1e-3,.03)): near(e.state(k), alone(head, range(N), 2, lr)[0].state_dict())

@ways
def test_a_linear_head_without_bias(place, way):
    head = make(place, lambda: nn.Sequential(nn.Identity(), nn.Linear(24, 10, bias=False)))
    e,*_ = trained(head, way, grid([1e-3,.1], [.5]))
    for k,lr in enumerate((1e-3,.1)): near(e.state(k), alone(head, range(N), 2, lr, .5)[0].state_dict())

@pytest.mark.parametrize('top', [linear,dropping])
def test_one_setting(place, top, capsys):
    head = make(place, top, says=True)
    capsys.readouterr()
    board = head.fit_grid(1, .05)
    assert len(board)==1 and '1 head of' in capsys.readouterr().out
    if top is linear: near(head.model.state_dict(), alone(head, range(N), 1, .05)[0].state_dict())

def test_the_held_share_of_few_rows(place):
    "At least one is held out, and two are left"
    head = make(place, n=12, bs=4)
    assert len(head.fit_grid(1, .1, held_pct=1e-9))==1
    with pytest.raises(ValueError, match='`held_pct` of 0.9 leaves 1 of the 12 training rows'): head.fit_grid(1, .1, held_pct=.9)

# Seeds

@ways
def test_seeds(place, way, forced):
    "Each head begins with the weights of its own seed, whoever else is in the grid"
    head = make(place)
    forced(way)
    def loss(seeds): return head.fit_grid(1, [1e-3,.01], seeds=seeds).set_index(['lr','seed'])['loss']
    three,one = loss(3),loss([2])
    assert sorted(three.index)==[(lr,s) for lr in (1e-3,.01) for s in range(3)] and three.nunique()==6
    assert one[.01,2]==pytest.approx(three[.01,2], rel=1e-6) and len(loss(1))==2 and sorted(set(loss(range(5, 7)).index.get_level_values(1)))==[5,6]
    again = loss([4,4])
    assert len(again)==4 and again.nunique()==2

@ways
def test_first_weights(place, way):
    head,ss = make(place, dropping),grid([.1,.2], seeds=[0,3,3])
    e,_ = engine(head, way, ss)
    for k,s in enumerate(ss): near(e.state(k), first(head, s.seed).state_dict(), 0)
    w = [e.state(k)['1.weight'] for k in range(3)]
    assert not torch.equal(w[0], w[1]) and torch.equal(w[1], w[2])

def test_it_begins_anew(place):
    "Whatever the head was trained to"
    a,b = make(place),make(place)
    with a.no_logging(): a.fit(2, .1)
    same_board(a.fit_grid(1, [.01,.1]), b.fit_grid(1, [.01,.1]), 1e-6)
    near(a.model.state_dict(), b.model.state_dict(), 1e-6)

# Dropout

def test_ps(place):
    "Of the last dropout, and half of it for those before; as they are without"
    head = make(place, dropping)
    def drops(m): return [o.p for o in m.modules() if isinstance(o, nn.Dropout)]
    head.fit_grid(1, .1)
    assert drops(head.model)==[.2,.3,.4]
    for p in (.5,0,.9):
        head.fit_grid(1, .1, ps=[p])
        assert drops(head.model)==drops(head.whole.model)==[p/2,p/2,p]
    ps = head.fit_grid(1, .1, ps=[0,.3,.9], seeds=2)['ps'][0]
    assert drops(head.model)==[ps/2,ps/2,ps]

class Eye(nn.Linear):
    "A layer that changes nothing"
    def __init__(self, n): super().__init__(n, n, bias=False)
    def reset_parameters(self): nn.init.eye_(self.weight)

def passed(e, x):
    "What the heads of an engine give out in training"
    return e._pass(x) if isinstance(e, _Together) else torch.stack([m(x) for m in e.heads])

@ways
def test_dropout_is_each_heads_own(place, way):
    "Its share and its scale, by what comes through two of them; drawn for each head by itself; and none outside of training"
    head,ps = make(place, lambda: nn.Sequential(nn.Dropout(.5), Eye(24), nn.Dropout(.5), Eye(24))),[.5,.5,.8,.2,0,.99]
    e,_ = engine(head, way, grid([.1], ps=ps))
    x = torch.rand(4000, 24)+.5
    torch.manual_seed(1)
    out = passed(e, x).detach()
    for o,p in zip(out, ps):
        kept = (1-p/2)*(1-p)
        assert (o!=0).float().mean().item()==pytest.approx(kept, abs=5*math.sqrt(kept*(1-kept)/x.numel())+1e-9)
        torch.testing.assert_close(o[o!=0], (x/kept)[o!=0])
    both,kept = ((out[0]!=0) & (out[1]!=0)).float().mean().item(),.75*.5
    assert both==pytest.approx(kept**2, abs=5*math.sqrt(kept**2*(1-kept**2)/x.numel()))
    assert not torch.equal(passed(e, x), out)   # each pass draws anew
    with torch.no_grad(): assert torch.equal(e.outputs(x), x.expand(6, -1, -1)) and not torch.equal(passed(e, x), x.expand(6, -1, -1))

@ways
def test_the_loss_is_that_of_what_was_dropped(place, way):
    "Not of the whole"
    head = make(place, dropping)
    e,data = engine(head, way, grid([.1], ps=[.9,0]))
    x,y = data.batch(torch.arange(N))
    torch.manual_seed(2)
    want = [F.cross_entropy(o, y).item() for o in passed(e, x)]
    e,_ = engine(head, way, grid([.1], ps=[.9,0]))
    torch.manual_seed(2)
    e.step(x, y)
    assert (e.total.tolist()==pytest.approx(want, rel=1e-5)) if way is _Together else e.total[0].item()==pytest.approx(want[0], rel=1e-5)

@ways
def test_strong_dropout_is_felt(place, way, forced):
    "By the heads that have it"
    head,(mine,held) = make(place, lambda: nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Dropout(.5), nn.Linear(32, 10))),held_rows()
    forced(way)
    board = head.fit_grid(4, .05, ps=[.95,0]).set_index('ps')
    assert board['train_loss'][.95]>board['train_loss'][0]+.3
    head.model[2].p = 0
    assert board['loss'][0]==pytest.approx(by_hand(alone(head, mine, 4, .05)[0], *pairs(head, held))[0], rel=1e-4)

# Heads that diverge

@ways
def test_diverged_heads(place, way, forced):
    "Named, last, `nan`, and nothing to the others"
    forced(way)
    a,b = make(place),make(place)
    with pytest.warns(UserWarning, match=r'dropped in epoch 0, as their loss is not finite: .*lr 1e\+30, wd 0, seed 0') as seen: board = a.fit_grid(2, [1e-3,1e30,.1], [0,.1], seeds=2)
    assert len(seen)==1 and str(seen[0].message).count('lr 1e+30')==4 and 'lr 0.' not in str(seen[0].message)
    assert board['lr'][-4:].tolist()==[1e30]*4 and board[['loss','accuracy']][-4:].isna().all(axis=None) and board[['loss','accuracy']][:-4].notna().all(axis=None)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        want = b.fit_grid(2, [1e-3,.1], [0,.1], seeds=2)
    pd.testing.assert_frame_equal(board[:-4], want, rtol=1e-6, atol=1e-6)
    near(a.model.state_dict(), b.model.state_dict(), 1e-6)

@ways
def test_one_that_diverges_later(place, way):
    "In the second epoch; those that were dropped before aren't named again"
    head,said,passes = make(place),[],[]
    head.loss_func = lambda o,y: F.cross_entropy(o, y)*torch.where(o.detach().abs().mean()>1e3, math.nan, 1.)
    e,data = engine(head, way, grid([1e30,.01,.02], n_epoch=3), 3)
    step = e.step
    if way is _InTurn: e.heads[0].register_forward_hook(lambda *a: passes.append(1))
    def stepped(x, y):
        if int(e.t)==data.n_iter+2:   # the third batch of the second epoch
            with torch.no_grad(): (e.params['4.bias'][2] if way is _Together else e.heads[2][4].bias).fill_(1e5)
        step(x, y)
    e.step = stepped
    alive,_ = _train(e, data, 3, said.append, iter(()), list('abc'))
    assert alive==[1] and [o.split(',')[0] for o in said]==['dropped in epoch 0','dropped in epoch 1'] and said[0].endswith(': a') and said[1].endswith(': c')
    assert len(passes)==(data.n_iter if way is _InTurn else 0)   # what was dropped takes no more time
    near(e.state(1), alone(head, range(N), 3, .01)[0].state_dict())

@ways
def test_all_diverge(place, way, forced):
    head = make(place)
    with head.no_logging(): head.fit(1)
    forced(way)
    was = bits(head)
    with pytest.warns(UserWarning, match='not finite'), pytest.raises(ValueError, match='all heads diverged: try lower learning rates'): head.fit_grid(2, [1e30,1e31], seeds=2)
    assert unchanged(bits(head), was)

def test_the_best_diverges_on_all_rows(place):
    "Of a row that was held out"
    y = Y.clone()
    y[held_rows()[1][3]] = 77
    def loss_func(o, t): return F.cross_entropy(o, t.clamp(max=9))*torch.where((t==77).any() & o.requires_grad, math.nan, 1.)
    head = make(place, y=y, loss_func=loss_func)
    was = bits(head)
    with pytest.warns(UserWarning, match='not finite'), pytest.raises(ValueError, match=r'the best head \(lr 0.01, wd 0.01, seed 0\) diverged'): head.fit_grid(1, [.01])
    assert unchanged(bits(head), was)

# Which way, and how many at once

@pytest.mark.parametrize('n,at_once', [(2,2), (.5,1), (7.9,7), (8,8), (10**6,8)])
@ways
def test_what_memory_has_room_for(place, way, n, at_once, monkeypatch, capsys):
    "Heads are made as many at a time as fit, and the leaderboard is the same"
    head,sizes,init = make(place, says=True),[],way.__init__
    want = head.fit_grid(1, [1e-3,.01,.03,.1], [0,.1])
    x,_ = pairs(head, range(32))
    need = heads._bytes_a_head(head.model, x)
    n_act = 32*(24+16+16+16+10)
    assert need==pytest.approx(4*(5*sum(p.numel() for p in head.model.parameters())+3*n_act), rel=.1)
    monkeypatch.setattr(heads, '_room', lambda device: n*need)
    monkeypatch.setattr(heads, '_seconds', lambda make, x, y: 1. if type(make()) is way else 1e9)
    monkeypatch.setattr(way, '__init__', lambda self, learn, ms, *a: [sizes.append(len(ms)), init(self, learn, ms, *a)][1])
    capsys.readouterr()
    same_board(head.fit_grid(1, [1e-3,.01,.03,.1], [0,.1]), want)
    out = capsys.readouterr().out
    assert max(sizes)==at_once and (f', {at_once} at once' in out)==(at_once<8) and '8 heads of 650 parameters' in out
    assert ('all at once' if way is _Together else 'one after the other') in out and 'best: lr' in out and 'training it on all 200 rows' in out

def test_a_learner_that_is_quiet(place, capsys):
    head = make(place, says=True)
    capsys.readouterr()
    with head.no_logging(): head.fit_grid(1, [.01,.1])
    assert capsys.readouterr().out==''
    head.fit_grid(1, [.01,.1])
    assert 'best: lr' in capsys.readouterr().out

def test_bars(place, capsys):
    "A bar where the Learner has bars"
    head = make(place)
    head.add_cb(ProgressCallback())
    capsys.readouterr()
    with head.no_logging(): head.fit_grid(3, [.01,.1])
    assert '3/3' in capsys.readouterr().out

class Looks(nn.Module):
    "What it does depends on the numbers, which `vmap` can't do"
    def forward(self, x): return x*2 if x.mean().item()>0 else x*3

def test_heads_that_only_go_one_after_the_other(place):
    head,(mine,held) = make(place, lambda: nn.Sequential(nn.Linear(24, 12), Looks(), nn.Tanh(), nn.BatchNorm1d(12), nn.Linear(12, 10))),held_rows()
    with pytest.warns(UserWarning, match=r"these heads can't be trained together \(.*\): one after the other") as seen: board = head.fit_grid(2, [1e-3,.03], [0,.5])
    assert len(seen)==1
    for r in board.itertuples(): assert r.loss==pytest.approx(by_hand(alone(head, mine, 2, r.lr, r.wd)[0], *pairs(head, held))[0], rel=1e-4)
    near(head.model.state_dict(), alone(head, range(N), 2, board['lr'][0], board['wd'][0])[0].state_dict())

class Raises(nn.Module):
    def forward(self, x):
        if self.training: raise ValueError('not this batch')
        return x

@pytest.mark.filterwarnings("ignore:these heads can't be trained together")
def test_an_error_of_the_head_itself(place):
    "Is the head's, whichever way"
    head = make(place, lambda: nn.Sequential(nn.Linear(24, 10), Raises()))
    was = bits(head)
    with pytest.raises(ValueError, match='not this batch'): head.fit_grid(1, [.01,.1])
    assert unchanged(bits(head), was)

def test_single_rows_for_batch_norm(place):
    head = make(place)
    was = bits(head)
    with pytest.raises(ValueError, match='`bs` must be at least 2 for a head with BatchNorm, got 1'): head.fit_grid(1, [.01,.1], bs=1)
    assert unchanged(bits(head), was)
    make(place, linear).fit_grid(1, [.01,.1], bs=1)

def test_rows_by_their_weights(place):
    "As a WeightedDL draws them: none of weight 0, and others in proportion"
    head = make(place)
    head.dls.train.wgts = np.r_[np.zeros(N//2), np.ones(N//4), np.full(N//4, 3.)]/N
    idxs = np.arange(0, N, 2)
    seen = np.concatenate([_Data(head, idxs, 32).order(e).numpy() for e in range(100)])
    assert len(seen)==100*len(idxs) and set(seen)<=set(idxs) and seen.min()>=N//2
    assert (seen>=3*N//4).mean()==pytest.approx(.75, abs=.03)

# Nothing else is touched

def test_random_numbers_go_on_as_before(place):
    "Also with dropout; and the head's modes, gradients and hooks stay"
    head,calls = make(place, dropping),[]
    head.model.eval()
    head.model[3].train()
    head.model[1].weight.requires_grad_(False)
    head.model[1].register_forward_hook(lambda *a: calls.append(a[0] is head.model[1]))
    was = bits(head)
    head.fit_grid(2, [.01,.1], ps=[.1,.5])
    now = bits(head)
    assert unchanged(now[4:], was[4:]) and [o for o,_ in now[1]]==[o for o,_ in was[1]] and not any(calls) and not unchanged(now[0], was[0])

def test_twice_the_same(place, forced):
    "Whatever random numbers came before"
    head,res = make(place, dropping),[]
    forced(_Together)
    for i in range(2):
        set_seed(i)
        res.append((head.fit_grid(1, [.01,.1], ps=[.1,.5]),{k: v.clone() for k,v in head.model.state_dict().items()}))
    pd.testing.assert_frame_equal(res[0][0], res[1][0])
    near(res[0][1], res[1][1], 0)

class Stops:
    "A loss that raises at its nth call"
    def __init__(self, at=None, ex=KeyboardInterrupt): self.at,self.ex,self.n = at,ex,0
    def __call__(self, o, y):
        self.n += 1
        if self.n==self.at: raise self.ex
        return F.cross_entropy(o, y)

@ways
@pytest.mark.parametrize('share', [0,.3,.6,.8,1])
@pytest.mark.parametrize('ex', [KeyboardInterrupt,ZeroDivisionError])
def test_interrupted(place, way, share, ex, forced, monkeypatch):
    "At the first loss, in the grid, in the scores, in the last training: all is as it was"
    head = make(place, dropping)
    with head.no_logging(): head.fit(1)
    forced(way)
    head.loss_func = Stops()
    kw = dict(lr=[.01,.1], ps=[.3,.6], seeds=2)
    head.fit_grid(2, **kw)
    head.opt.state[next(head.model.parameters())]['grad_avg'] = torch.ones(3)
    head.loss_func,was = Stops(1+int(share*(head.loss_func.n-1)), ex),bits(head)
    with pytest.raises(ex): head.fit_grid(2, **kw)
    assert unchanged(bits(head), was)
    head.loss_func = F.cross_entropy
    head.fit_grid(1, .01)   # and nothing is in the way of another one

def test_interrupted_while_it_is_measured(place):
    head = make(place, dropping)
    for n in range(1, 11):   # five steps of each way
        head.loss_func,was = Stops(n),bits(head)
        with pytest.raises(KeyboardInterrupt): head.fit_grid(1, [.01,.1])
        assert unchanged(bits(head), was)

@pytest.mark.parametrize('whole', [False,True])
def test_training_goes_on(place, whole):
    "As that of a Learner that was given the weights: nothing is left of what optimizers knew of others"
    a,b = make(place, dropping),make(place, dropping)
    with a.no_logging(), a.whole.no_logging():
        a.fit(1)
        a.whole.fit(1, 0.)
    a.fit_grid(1, .1, ps=.2)
    assert all(set(s)<={'do_wd','force_train'} for s in states(a.opt))
    b.whole.model.load_state_dict(a.whole.model.state_dict())
    for o,p in zip([o for o in b.model if isinstance(o, nn.Dropout)], (.1,.1,.2)): o.p = p
    if whole: a.whole.opt.clear_state()   # of the body it may know something
    for o in (a,b):
        l = o.whole if whole else o
        set_seed(5, reproducible=True)
        l.dls.train.rng = random.Random(5)
        with l.no_logging(): l.fit(1, 1e-2)
    near(a.whole.model.state_dict(), b.whole.model.state_dict(), 0)

def test_the_whole_models_optimizer_forgets_the_head_only(place):
    head = make(place)
    with head.whole.no_logging(): head.whole.fit(1, 0.)
    head.fit_grid(1, .1)
    opt = head.whole.opt
    assert all('grad_avg' in opt.state[p] for p in head.features.parameters()) and not any('grad_avg' in opt.state[p] for p in head.model.parameters())

# Stores

def test_from_the_disk(place):
    a,b = make(place),make(place, where='disk')
    same_board(a.fit_grid(2, [.01,.1]), b.fit_grid(2, [.01,.1]))
    near(a.model.state_dict(), b.model.state_dict())

def test_half_precision(place):
    "Rows of half precision train in full"
    a,b = make(place),make(place, dtype='float16')
    same_board(a.fit_grid(1, [.01,.1], metric='loss')[['lr','wd','seed','loss']], b.fit_grid(1, [.01,.1], metric='loss')[['lr','wd','seed','loss']], 1e-2)
    assert all(p.dtype==torch.float32 for p in b.model.parameters())

def test_a_stale_store(place):
    head = make(place)
    nudge(head.features[0][0].weight)
    was = bits(head)
    with pytest.raises(StaleActivations, match='the body has changed'): head.fit_grid(1, [.01,.1])
    assert unchanged(bits(head), was)

def test_views(digits, tmp_path, monkeypatch):
    "Trained on augmented views, scored on clean rows, and always alike"
    from fastai_clr.data import picture_dls
    learn = small(picture_dls(some(digits, tmp_path/'pictures'), size=32, bs=20, flip=True, device='cpu'), tmp_path/'run')
    head,boards = learn.precompute(n_views=2, dtype='float32'),[]
    for _ in range(2):
        seen = watch(monkeypatch, head)
        with head.no_logging(): boards.append(head.fit_grid(2, [1e-3,1e-2], ps=.1))
    assert {c for _,c in seen}=={True,False} and sum(c for _,c in seen)==1
    assert boards[0][['lr','ps','seed']].shape==(2,3) and boards[1]['loss'].notna().all()
    monkeypatch.undo()
    with learn.no_logging(): assert list(head.validate())==pytest.approx(list(learn.validate()), rel=1e-4)

# Arguments

odd = dict(lr=[0,-1,math.nan,math.inf,True,'a',[],[.1,-1],[True],['a'],[[.1]],{},b'a'],
    wd=[-1,math.nan,math.inf,True,'a',[],[.1,-1],{}], ps=[1,1.5,-.1,math.nan,True,'a',[],[.5,1]],
    seeds=[0,-1,1.5,True,'a',[],[-1],[.5],[True],['a'],math.nan,{}], bs=[0,-1,True,1.5,'a',math.nan,[]], n_epoch=[0,-1,True,1.5,'a',math.nan,[],None],
    held_pct=[0,1,-.1,1.5,math.nan,True,'a',[],None], sched=['a',1,-1,math.nan,True,['a'],{}], metric=['f1',3,True,math.nan,'Accuracy','lr'], comp=[min,'a',True,0,[]])

@pytest.mark.parametrize('name,v', [(k,v) for k,vs in odd.items() for v in vs])
def test_odd_arguments(shared, name, v):
    "The error names the argument and says what came, and nothing has changed"
    head = shared[2]
    was = bits(head)
    with pytest.raises((ValueError,TypeError)) as e: head.fit_grid(**{'n_epoch':1, name:v})
    got = repr(v[0]) if name in ('seeds','sched') and isinstance(v, list) and v else repr(v)
    assert f'`{name}`' in str(e.value) and str(e.value).endswith(f'got {got}') and unchanged(bits(head), was)

@pytest.mark.parametrize('sched,match', [(CosineRestarts(1, 1), '`sched` must last the 2 epochs of the fit, got CosineRestarts.* of 1'), (CosineRestarts(1, 3), '`sched` must last the 2 epochs'),
    ([CosineRestarts(1, 2),CosineRestarts(3, 1)], '`sched` must last the 2 epochs.* of 3'), (CosineRestarts(1, 2, lr_max=(.1,1.)), '`sched` must have one value for all parameters'),
    (Linear(1., -.5, 2), '`sched` must stay at 0 or above.*Linear'), (Triangular(1, 1, 1., 0., scale_fn=lambda c: -1.), '`sched` must stay at 0 or above')])
def test_schedules_that_do_not_fit(shared, sched, match):
    head = shared[1]
    was = bits(head)
    with pytest.raises(ValueError, match=match): head.fit_grid(2, .1, sched=sched)
    assert unchanged(bits(head), was)

def test_a_metric_of_unknown_direction(place):
    def oddness(p, y): return (p.argmax(1)%2==1).float().mean()
    head = make(place, metrics=oddness)
    with pytest.raises(ValueError, match="`comp` is needed for `metric='oddness'`: np.less if lower"): head.fit_grid(1, .1)
    assert head.fit_grid(1, [1e-3,.1], comp=np.greater)['oddness'].is_monotonic_decreasing
    assert head.fit_grid(1, [1e-3,.1], metric='loss')['loss'].is_monotonic_increasing

def test_ps_without_dropout(place):
    with pytest.raises(ValueError, match='`ps` is for heads with nn.Dropout, and this one has none'): make(place).fit_grid(1, ps=.5)

@pytest.mark.parametrize('kind', [tuple,np.array,L])
def test_lists_of_numbers(shared, kind):
    "Whatever they come in"
    board = shared[0].fit_grid(1, kind([.01,.1]), kind([0,1]), seeds=[np.int64(3)])
    assert sorted(zip(board['lr'], board['wd'], board['seed']))==[(.01,0,3),(.01,1,3),(.1,0,3),(.1,1,3)]

def test_several_processes(place, monkeypatch):
    monkeypatch.setattr(heads, 'num_distrib', lambda: 2)
    with pytest.raises(ValueError, match='`fit_grid` works in one process'): make(place).fit_grid(1)

# The figure

@pytest.fixture
def board():
    rows = [(.1,0,0,.9,.2),(.01,0,0,.8,.3),(.01,0,1,.6,.4),(.1,.5,0,.5,.6),(.01,.5,0,.4,.7),(1.,0,0,math.nan,math.nan)]
    res = pd.DataFrame(rows, columns=['lr','wd','seed','accuracy','loss'])
    res.attrs['metric'] = 'accuracy'
    return res

def test_plot(shared, board):
    "A line for each weight decay through means, a dot for each head, and none for those that diverged"
    ax = shared[0].plot_grid(board)
    lines = {o.get_label(): o for o in ax.lines}
    assert ax.get_xscale()=='log' and ax.get_xlabel()=='learning rate' and ax.get_ylabel()=='accuracy'
    assert [o.get_text() for o in ax.get_legend().get_texts()]==['wd 0','wd 0.5']
    np.testing.assert_allclose(lines['wd 0'].get_xydata(), [(.01,.7),(.1,.9)])
    np.testing.assert_allclose(lines['wd 0.5'].get_xydata(), [(.01,.4),(.1,.5)])
    dots = [o.get_xydata() for o in ax.lines if o.get_linestyle()=='None']
    np.testing.assert_allclose(sorted(np.concatenate(dots).tolist()), sorted(board[['lr','accuracy']].dropna().values.tolist()))
    assert lines['wd 0'].get_linestyle()!=lines['wd 0.5'].get_linestyle()

def test_plot_another_metric_on_an_axis(shared, board):
    _,ax = plt.subplots()
    assert shared[0].plot_grid(board, 'loss', ax) is ax and ax.get_ylabel()=='loss'
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [(.01,.35),(.1,.2)])
    for name in ('f1','lr','seed'):
        with pytest.raises(ValueError, match=f"`metric` must be one of accuracy, loss, got '{name}'"): shared[0].plot_grid(board, name)

def test_plot_what_was_fitted(shared):
    board = shared[1].fit_grid(1, [.01,.1], [0,.1])
    ax = shared[1].plot_grid(board)
    assert ax.get_ylabel()==board.attrs['metric']=='accuracy' and sum(len(o.get_xdata()) for o in ax.lines if o.get_linestyle()=='None')==4

# On a GPU

def on_both(place, top, lr, n_epoch=3):
    "Heads of the same first weights, trained on either device; the GPU's in a recorded step"
    ss,cpu,gpu = grid(lr, [0,.3], [0,1], n_epoch),make(place, top),make(place, top, device='cuda', where='gpu')
    models = [_new_head(cpu.model, s) for s in ss]
    e,data = engine(gpu, _Together, ss, n_epoch, models=[copy.deepcopy(o).cuda() for o in models])
    assert data.on_gpu and data.whole>3
    return trained(cpu, _InTurn, ss, n_epoch, models=models)[0],e,data,gpu

@cuda
@tops
def test_a_recorded_step_is_the_same_on_the_gpu(place, top):
    a,b,data,gpu = on_both(place, top, [1e-3,.03])
    alive,losses = _train(b, data, 3, warnings.warn, iter(()), list('abcdefgh'))
    assert len(alive)==8
    for k in range(8): near(b.state(k), a.state(k), 1e-4)

@cuda
@tops
def test_no_batch_waits_for_the_gpu(place, top):
    "Once the step is recorded"
    _,e,data,_ = on_both(place, top, [1e-3,.03])
    graph = _Graph(e, data)
    graph.epoch(data.order(0))
    order = data.order(1)
    rest = data.batch(order[data.whole*data.bs:])
    e.step(*rest)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        graph.epoch(order)
        e.step(*rest)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert int(e.t)==2*data.n_iter and torch.isfinite(e.total).all()

@cuda
@tops
def test_a_grid_on_the_gpu(place, top):
    "What is installed is the best on all rows; random numbers of the GPU stay"
    head = make(place, top, device='cuda', where='gpu')
    was = torch.cuda.get_rng_state()
    board = head.fit_grid(2, [1e-3,.1], seeds=2)
    assert torch.equal(torch.cuda.get_rng_state(), was) and next(head.model.parameters()).is_cuda
    m = _new_head(head.model, _Setting(board['lr'][0], .01, None, None, int(board['seed'][0])))
    e,*_ = trained(head, _InTurn, grid([board['lr'][0]]), models=[m])
    near(head.model.state_dict(), e.state(0), 1e-4)

@cuda
@pytest.mark.parametrize('place_of_rows', ['ram','disk'])
def test_rows_that_are_not_on_the_gpu(place, place_of_rows):
    a,b = (make(place, device='cuda', where=o) for o in ('gpu',place_of_rows))
    same_board(a.fit_grid(2, [1e-3,.03], metric='loss'), b.fit_grid(2, [1e-3,.03], metric='loss'), 1e-3)

# Heads and arguments out of the ordinary

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(24, 10)
    def forward(self, x): return 5*self.l(F.normalize(x))

def both(place, top, forced, *a, **kw):
    res = []
    for way in (_InTurn,_Together):
        forced(way)
        res.append(make(place, top).fit_grid(*a, **kw))
    return res

def test_a_module_around_one_linear_layer(place, forced):
    "It is not the layer alone"
    same_board(*both(place, Scaled, forced, 2, [.01,.1]))

def test_ps_that_begins_with_0(place, forced):
    "The heads that come after it do have dropout"
    boards = [make(place, lambda: nn.Sequential(nn.Dropout(.5), nn.Linear(24, 10))) for _ in range(2)]
    forced(_Together)
    a,b = (h.fit_grid(2, .01, ps=ps).set_index('ps')['train_loss'] for h,ps in zip(boards, ([0,.9],[.9,0])))
    assert a[.9]>a[0]+.01 and b[.9]>b[0]+.01

def test_one_dropout_in_two_places(place):
    "Both are replaced, by the same one"
    d = nn.Dropout(.5)
    m = _with_stacked_dropout(nn.Sequential(nn.Linear(4, 4), d, nn.Linear(4, 4), d))
    assert not any(isinstance(o, nn.Dropout) for o in m.modules())

@ways
def test_diverged_at_the_last_step(place, way, forced):
    "Its accuracy is that of one class, but it is no winner"
    head = make(place, linear)
    forced(way)
    board = head.fit_grid(1, [1e-9,1e39], bs=1000)
    assert board['lr'].tolist()==[1e-9,1e39] and math.isnan(board['accuracy'][1])
    assert all(torch.isfinite(p).all() for p in head.model.parameters())

def test_installed_though_not_finite(place):
    head = make(place, linear)
    was = bits(head)
    with pytest.raises(ValueError, match='diverged'): head.fit_grid(1, 1e39, bs=1000)
    assert unchanged(bits(head), was)

def test_training_loss_of_what_was_dropped(place, forced):
    "None, and not the best there is"
    forced(_InTurn)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        board = make(place).fit_grid(3, [1e-3,1e30])
    assert math.isnan(board['train_loss'][1])

@pytest.mark.parametrize('opt_func,wd', [(partial(SGD, wd=.3),.3), (ranger,.01), (partial(Adam, decouple_wd=False),.01)])
def test_own_weight_decay_of_other_optimizers(place, opt_func, wd):
    "`None`: the one it would train with by itself"
    assert make(place, opt_func=opt_func).fit_grid(1, .01)['wd'][0]==wd

def test_own_lr_of_a_partial(place):
    "As `create_opt` has it"
    assert make(place, opt_func=partial(Adam, lr=.3)).fit_grid(1)['lr'][0]==.3

@ways
def test_a_schedule_with_one_group(place, way, forced):
    forced(way)
    same_board(make(place).fit_grid(1, [.01,.1], sched=CosineRestarts(1, 1, lr_max=(1.,))), make(place).fit_grid(1, [.01,.1]))

@pytest.mark.parametrize('kw', [dict(sched=[]), dict(held_pct=[.1,.2]), dict(lr=np.array('a')), dict(seeds=[2**64]), dict(seeds=2**70), dict(lr=10**400),
    dict(metric=''), dict(metric=[]), dict(metric=0)],
    ids=lambda o: f'{o}'[:30])
def test_arguments(place, kw):
    (name,_), = kw.items()
    with pytest.raises((ValueError,TypeError), match=f'`{name}`'): make(place).fit_grid(1, **kw)

def test_an_array_of_no_dimension(place):
    "A number is a number"
    assert make(place).fit_grid(1, lr=np.array(.1))['lr'][0]==.1

@pytest.mark.parametrize('name', ['lr','seed','train_loss','loss'])
def test_metrics_named_as_a_column(place, name, monkeypatch):
    "Refused before anything is trained"
    def no(*a): raise AssertionError('trained')
    head = make(place, metrics=AccumMetric(accuracy, name=name, flatten=False))
    monkeypatch.setattr(heads, '_train', no)
    with pytest.raises(ValueError, match=f"named '{name}'"): head.fit_grid(1, .1, metric=name, comp=np.less)

def test_data_without_a_device(place):
    "As of DataLoaders made without one"
    set_seed(0)
    dls = DataLoaders(DataLoader(TensorDataset(X[:N], Y[:N]), bs=32, shuffle=True), DataLoader(TensorDataset(X[N:N+60], Y[N:N+60]), bs=32))
    model = nn.Sequential(nn.Sequential(nn.Linear(64, 24), nn.Tanh()), mlp())
    learn = quiet(Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=place))
    assert learn.dls.device is None
    head = quiet(learn.precompute(dtype='float32'))
    head.fit(1)
    head.fit_grid(1, [.01,.1])

class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('k', torch.ones(24), persistent=False)
    def forward(self, x): return x*self.k

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(24, 24),nn.Linear(24, 24),nn.Linear(24, 10)
        self.b.weight = self.a.weight
    def forward(self, x): return self.c(self.b(self.a(x)))

@pytest.mark.parametrize('top', [lambda: nn.Sequential(nn.Linear(24, 24), Buffered(), nn.Linear(24, 10)), Tied], ids=['buffer','tied'])
def test_state_of_the_stacked(place, top):
    "Its keys are those of the head, with tied weights and without buffers that are not kept"
    head = make(place, top)
    e,_ = engine(head, _Together, grid([.01,.1]))
    assert e.state(0).keys()==head.model.state_dict().keys()

@pytest.mark.parametrize('lr', [.01,[.01,.1]])
def test_on_a_gpu_what_vmap_cannot_do(place, lr, monkeypatch):
    "All of it goes in turn, one setting too"
    monkeypatch.setattr(_Data, 'on_gpu', property(lambda self: True))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        board = make(place, lambda: nn.Sequential(nn.Linear(24, 12), Looks(), nn.Linear(12, 10))).fit_grid(1, lr, bs=80)
    assert len(board)==len(L(lr)) and board['loss'].notna().all()

def test_a_flattening_linear_head(place):
    "It trains without a warning"
    x = X[:, :64].reshape(-1, 8, 8)
    set_seed(0)
    dls = DataLoaders.from_dsets(TensorDataset(x[:N], Y[:N]), TensorDataset(x[N:N+60], Y[N:N+60]), bs=32, device='cpu')
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    learn = quiet(Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=place))
    head = quiet(learn.precompute(dtype='float32', split=lambda l: (nn.Sequential(l.model[0]), l.model[1])))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        head.fit_grid(1, [.01,.1])

def test_dropout_in_the_heads_device():
    "Its rate lies where the weights lie"
    m = _with_stacked_dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).to('meta'))
    assert m[1].p.device.type=='meta'

def test_a_plot_of_a_leaderboard_without_attrs(place):
    "As read back from a CSV"
    head = make(place)
    board = head.fit_grid(1, [.01,.1])
    board.attrs.clear()
    with pytest.raises(ValueError, match='`metric`'): head.plot_grid(board)

def test_raw_parameters(place):
    "Named in a warning: it goes on from what it was trained to"
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(24))
        def forward(self, x): return x*self.w
    a = make(place, lambda: nn.Sequential(nn.Linear(24, 24), Scale(), nn.Linear(24, 10)))
    with pytest.warns(UserWarning, match='Scale has parameters but no `reset_parameters`'): a.fit_grid(1, [.01,.1])

def test_more_held_out_than_a_batch(place):
    "All of them count"
    head,(mine,held) = make(place, linear, n=1700, bs=200),held_rows(1700, .7)
    r = head.fit_grid(1, .05, held_pct=.7).iloc[0]
    assert len(held)>1024 and (r['loss'],r['accuracy'])==pytest.approx(by_hand(alone(head, mine, 1, .05, bs=200)[0], *pairs(head, held)), rel=1e-4)
