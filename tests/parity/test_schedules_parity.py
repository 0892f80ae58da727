"The schedules against torch's, timm's, and the formulas of the papers, to 1e-9"
import math, numpy as np, pytest, torch
from fractions import Fraction
from fastai_clr.schedules import CosineRestarts, ExpDecay, Linear, StepDecay, Triangular
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingWarmRestarts, CyclicLR, ExponentialLR, LinearLR, SequentialLR, StepLR

def near(o): return pytest.approx(np.asarray(o), rel=1e-9, abs=1e-15)

def optimizer(*lrs):
    "One parameter group for each lr"
    return torch.optim.SGD([dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=o) for o in lrs], lr=lrs[0], momentum=.9)

def curves(opt, sched, n, keys):
    "Of each of `keys` the values, a row a batch, that it is trained with"
    res = {k: [] for k in keys}
    for _ in range(n):
        for k in keys: res[k].append([o[k] for o in opt.param_groups])
        opt.step()
        sched.step()
    return [np.array(res[k]) for k in keys]

def curve(opt, sched, n, key='lr'):
    "The value that each of `n` batches is trained with; one column a group, if there are more than one"
    res, = curves(opt, sched, n, [key])
    return res if res.shape[1]>1 else res[:,0]

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

@pytest.mark.parametrize('mode,gamma', [('triangular',1.), ('triangular2',1.), ('exp_range',.97)])
@pytest.mark.parametrize('n_iter,step_size', [(6,1), (10,.5), (9,4/3)])
def test_triangular_groups_and_momentum_vs_torch(mode, gamma, n_iter, step_size):
    "Bounds of its own for each group, momentum the other way round"
    base,top,slow,fast = [.01,.002,.3],[.1,.05,.4],[.8,.85,.7],[.95,.9,.99]
    opt = optimizer(*base)
    sched = CyclicLR(opt, base, top, round(n_iter*step_size), mode=mode, gamma=gamma, base_momentum=slow, max_momentum=fast)
    lrs,moms = (Triangular(4, step_size, hi, lo, mode, gamma).values(n_iter) for hi,lo in ((top,base),(slow,fast)))
    their_lrs,their_moms = curves(opt, sched, len(lrs), ('lr','momentum'))
    assert lrs.shape==(8*round(n_iter*step_size),3) and lrs==near(their_lrs) and moms==near(their_moms)

def linear_then(opt, n, then, start=.25, end=1.): return SequentialLR(opt, [LinearLR(opt, start, end, n), then], [n])

@pytest.mark.parametrize('n_iter,ramp', [(10,1), (7,2), (8,.5), (8,1.375)])
def test_warmup_vs_torch(n_iter, ramp):
    "A line, then restarts, triangles or decay: in torch it starts at a share of the lr, and the rest counts from the milestone"
    n = round(n_iter*ramp)
    opt = optimizer(.1, .02)
    ours = CosineRestarts(3, 1, 2, (.1,.02), 1e-3).warmup(ramp, (.025,.005))
    assert ours.values(n_iter)==near(curve(opt, linear_then(opt, n, CosineAnnealingWarmRestarts(opt, n_iter, 2, 1e-3)), ours.n_batches(n_iter)))
    opt = optimizer(.1, .02)
    ours = ExpDecay((.1,.02), .6, 3).warmup(ramp, (.025,.005))
    assert ours.values(n_iter)==near(curve(opt, linear_then(opt, n, ExponentialLR(opt, math.exp(-.6/n_iter))), ours.n_batches(n_iter)))
    opt = optimizer(.1)
    ours = StepDecay(.1, .5, 1, 4).warmup(ramp, .025)
    assert ours.values(n_iter)==near(curve(opt, linear_then(opt, n, StepLR(opt, n_iter, .5)), ours.n_batches(n_iter)))

def test_line_vs_torch():
    "To a value other than what comes next, and down"
    opt = optimizer(.1)
    ours = Linear(.1, .03, 2).then(CosineRestarts(2, lr_max=.1)).values(9)
    assert ours==near(curve(opt, linear_then(opt, 18, CosineAnnealingWarmRestarts(opt, 9), 1., .3), 36))

def test_three_in_a_row_vs_torch():
    opt = optimizer(.1)
    parts = [LinearLR(opt, .1, 1., 8), ConstantLR(opt, 1., 12), CosineAnnealingWarmRestarts(opt, 4, 2, .01)]
    ours = Linear(.01, .1, 2).then(Linear(.1, .1, 3)).then(CosineRestarts(3, 1, 2, .1, .01)).values(4)
    assert ours==near(curve(opt, SequentialLR(opt, parts, [8,20]), 48))

def test_step_decay_vs_torch():
    opt = optimizer(.1)
    theirs = curve(opt, StepLR(opt, 3, .5), 10)
    assert StepDecay(.1, .5, 3, 10).values(4)==near(np.repeat(theirs, 4))

def test_exp_decay_vs_torch():
    opt = optimizer(.1)
    assert ExpDecay(.1, .6, 5).values(8)==near(curve(opt, ExponentialLR(opt, math.exp(-.6/8)), 40))

def timm_curve(n, t_initial, lrs=(.1,), **kw):
    cosine_lr = pytest.importorskip('timm.scheduler.cosine_lr')
    sched = cosine_lr.CosineLRScheduler(optimizer(*lrs), t_initial, t_in_epochs=False, cycle_limit=100, **kw)
    res = np.array([sched._get_values(t, on_epoch=False) for t in range(n)])
    return res if len(lrs)>1 else res[:,0]

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

@pytest.mark.parametrize('decay,lr_min,start', [(1.,0.,0.), (.5,0.,1e-6), (.7,1e-3,.02)])
@pytest.mark.parametrize('n_iter,mult,n_cycles,ramp', [(10,1,5,5), (10,2,4,10), (16,1.5,4,7), (64,.5,4,100), (3,3,3,1)])
def test_warmup_of_several_cycles_vs_timm(n_iter, mult, n_cycles, ramp, decay, lr_min, start):
    "Once, in front, `ramp` batches long; the first cycle is as much longer"
    sched = CosineRestarts(n_cycles, 1, mult, (.1,.03), lr_min, decay).warmup(ramp/n_iter, start)
    ours,kw = sched.values(n_iter),dict(cycle_mul=mult, cycle_decay=decay, lr_min=lr_min, warmup_t=ramp, warmup_lr_init=start, warmup_prefix=True)
    assert len(ours)==ramp + n_iter*sum(mult**i for i in range(n_cycles)) and sched.bounds(n_iter)[1]==ramp+n_iter
    assert ours==near(timm_curve(len(ours), n_iter, (.1,.03), **kw))

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

@pytest.mark.parametrize('mode,scale', [('triangular', lambda c,t: 1), ('triangular2', lambda c,t: 1/2**(c-1)), ('exp_range', lambda c,t: .9994**t)])
@pytest.mark.parametrize('n_iter,step_size', [(10,.5), (12,.25), (9,1/3), (10,1.7), (400,2.0025), (5,.5), (7,1.5), (3,2.5)])
def test_triangular_of_fractional_steps_vs_paper(mode, scale, n_iter, step_size):
    "Steps of whole batches, or of a half: then the peak lies between two batches, and no batch has it"
    s,ref = Fraction(round(2*n_iter*step_size), 2),[]
    for t in range(int(8*s)):
        c = math.floor(1 + t/(2*s))
        ref.append(.001 + (.006-.001)*float(max(0, 1 - abs(t/s - 2*c + 1)))*scale(c, t))
    sched = Triangular(4, step_size, .006, .001, mode, .9994)
    assert sched.bounds(n_iter)==[2*s*k for k in range(5)] and sched.values(n_iter)==pytest.approx(ref, rel=1e-13)

def test_n_epochs_of_the_classic_library():
    "Its fit took cycle_len*sum(cycle_mult**i) epochs"
    for n,l,m in [(3,1,2), (3,1,1), (4,2,3), (2,5,1)]: assert CosineRestarts(n, l, m).n_epochs==l*sum(m**i for i in range(n))
