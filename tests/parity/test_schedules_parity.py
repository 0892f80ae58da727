"The schedules against torch's, timm's, and the formulas of the papers, to 1e-9"
import math, numpy as np, pytest, torch
from fastai_clr.schedules import CosineRestarts, ExpDecay, StepDecay, Triangular
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, ExponentialLR, StepLR

def near(o): return pytest.approx(np.asarray(o), rel=1e-9, abs=1e-15)

def optimizer(*lrs):
    "One parameter group for each lr"
    return torch.optim.SGD([dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=o) for o in lrs], lr=lrs[0], momentum=.9)

def curve(opt, sched, n, key='lr'):
    "The value that each of `n` batches is trained with; one column a group, if there are more than one"
    res = []
    for _ in range(n):
        res.append([o[key] for o in opt.param_groups])
        opt.step()
        sched.step()
    return np.squeeze(np.array(res), 1) if len(opt.param_groups)==1 else np.array(res)

@pytest.mark.parametrize('lr_min', [0.,1e-3,.05])
@pytest.mark.parametrize('n_iter,cycle_len,mult,n_cycles', [(10,1,1,4), (10,1,2,5), (7,2,2,3), (3,1,3,4), (8,.5,1,5), (8,.25,2,5), (1,5,2,3)])
def test_cosine_vs_torch(n_iter, cycle_len, mult, n_cycles, lr_min):
    ours = CosineRestarts(n_cycles, cycle_len, mult, lr_max=.1, lr_min=lr_min).values(n_iter)
    opt = optimizer(.1)
    assert ours==near(curve(opt, CosineAnnealingWarmRestarts(opt, round(n_iter*cycle_len), mult, lr_min), len(ours)))

def test_cosine_groups_vs_torch():
    ours = CosineRestarts(3, 1, 2, lr_max=(.1,.01,.003), lr_min=1e-4).values(9)
    opt = optimizer(.1, .01, .003)
    assert ours==near(curve(opt, CosineAnnealingWarmRestarts(opt, 9, 2, 1e-4), len(ours)))

def test_restart_is_not_late():
    "torch's and our first batch of each cycle have the peak itself, and the one before it is the lowest"
    ours = CosineRestarts(4, 1, 2, lr_max=.1)
    opt = optimizer(.1)
    theirs = curve(opt, CosineAnnealingWarmRestarts(opt, 10, 2), 150)
    for b in ours.bounds(10)[:-1]: assert theirs[b]==ours.at(b, 10)==.1

@pytest.mark.parametrize('mode,gamma', [('triangular',1.), ('triangular2',1.), ('exp_range',.99), ('exp_range',.9)])
@pytest.mark.parametrize('n_iter,step_size', [(10,2), (7,1), (8,.5), (1,4)])
def test_triangular_vs_torch(mode, gamma, n_iter, step_size):
    ours = Triangular(5, step_size, .1, .02, mode, gamma).values(n_iter)
    opt = optimizer(.1)
    assert ours==near(curve(opt, CyclicLR(opt, .02, .1, round(n_iter*step_size), mode=mode, gamma=gamma, cycle_momentum=False), len(ours)))

@pytest.mark.parametrize('scale_mode,scale_fn', [('cycle', lambda x: 1/x), ('iterations', lambda x: .97**x)])
def test_triangular_scale_fn_vs_torch(scale_mode, scale_fn):
    ours = Triangular(4, 1, .1, .02, scale_fn=scale_fn, scale_mode=scale_mode).values(6)
    opt = optimizer(.1)
    assert ours==near(curve(opt, CyclicLR(opt, .02, .1, 6, scale_fn=scale_fn, scale_mode=scale_mode, cycle_momentum=False), len(ours)))

def test_triangular_momentum_vs_torch():
    "The other way round: bounds may be given in either order"
    ours = Triangular(3, 1, .8, .95).values(6)
    opt = optimizer(.1)
    assert ours==near(curve(opt, CyclicLR(opt, .02, .1, 6, base_momentum=.8, max_momentum=.95), len(ours), 'momentum'))

def test_step_decay_vs_torch():
    opt = optimizer(.1)
    theirs = curve(opt, StepLR(opt, 3, .5), 10)
    assert StepDecay(.1, .5, 3, 10).values(4)==near(np.repeat(theirs, 4))

def test_exp_decay_vs_torch():
    opt = optimizer(.1)
    assert ExpDecay(.1, .6, 5).values(8)==near(curve(opt, ExponentialLR(opt, math.exp(-.6/8)), 40))

def timm_curve(n, t_initial, **kw):
    cosine_lr = pytest.importorskip('timm.scheduler.cosine_lr')
    sched = cosine_lr.CosineLRScheduler(optimizer(.1), t_initial, t_in_epochs=False, cycle_limit=100, **kw)
    return np.array([sched._get_values(t, on_epoch=False)[0] for t in range(n)])

@pytest.mark.parametrize('decay,lr_min', [(1.,0.), (.5,0.), (.7,1e-3)])
@pytest.mark.parametrize('n_iter,mult,n_cycles', [(10,1,5), (10,2,5), (16,1.5,4), (64,1.25,3), (64,.5,4)])
def test_cosine_vs_timm(n_iter, mult, n_cycles, decay, lr_min):
    "Of 64 batches and 1.25, timm restarts the fourth cycle one batch late: its logarithm falls just short of 3"
    sched = CosineRestarts(n_cycles, 1, mult, .1, lr_min, decay)
    ours = sched.values(n_iter)
    assert len(ours)==n_iter*sum(mult**i for i in range(n_cycles)), 'these settings have whole batches'
    assert ours==near(timm_curve(len(ours), n_iter, cycle_mul=mult, cycle_decay=decay, lr_min=lr_min))

def test_warmup_vs_timm():
    "timm warms up once; a single cycle is the same"
    ours = CosineRestarts(1, 2, lr_max=.1, lr_min=1e-3, warmup_pct=.25).values(20)
    assert ours==near(timm_curve(40, 30, lr_min=1e-3, warmup_t=10, warmup_lr_init=1e-3, warmup_prefix=True))

@pytest.mark.parametrize('T0,mult,n_cycles', [(10,1,3), (7,2,4), (5,3,3)])
def test_cosine_vs_paper(T0, mult, n_cycles):
    "Loshchilov & Hutter, arXiv:1608.03983, eq. 5"
    lo,hi,ref,T = 1e-4,.05,[],T0
    for _ in range(n_cycles):
        ref += [lo + .5*(hi - lo)*(1 + math.cos(math.pi*t/T)) for t in range(T)]
        T *= mult
    assert CosineRestarts(n_cycles, 1, mult, hi, lo).values(T0)==near(ref)

@pytest.mark.parametrize('mode,scale', [('triangular', lambda c,t: 1), ('triangular2', lambda c,t: 1/2**(c-1)), ('exp_range', lambda c,t: .9994**t)])
@pytest.mark.parametrize('s', [4,15])
def test_triangular_vs_paper(mode, scale, s):
    "Smith, arXiv:1506.01186, sec. 3.2, and the amplitude as in its reference code"
    ref = []
    for t in range(6*s):
        c = math.floor(1 + t/(2*s))
        ref.append(.001 + (.006-.001)*max(0, 1 - abs(t/s - 2*c + 1))*scale(c, t))
    assert Triangular(3, 1, .006, .001, mode, .9994).values(s)==near(ref)

def test_n_epochs_of_the_classic_library():
    "Its fit took cycle_len*sum(cycle_mult**i) epochs"
    for n,l,m in [(3,1,2), (3,1,1), (4,2,3), (2,5,1)]: assert CosineRestarts(n, l, m).n_epochs==l*sum(m**i for i in range(n))
