"`schedules`: exact values, and what holds for any arguments. Peers are compared in `parity`"
import copy, math, matplotlib.pyplot as plt, numpy as np, pickle, pytest, signal, sys
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from fastai_clr import schedules
from fastai_clr.schedules import Chain, CosineRestarts, ExpDecay, InverseTimeDecay, Linear, StepDecay, Triangular
from fractions import Fraction
from hypothesis import assume, given, settings, strategies as st

def half(x): return x/2
def tenth(x): return .1
def nothing(x): return None
def too_much(x): return math.inf

kinds = {o.__name__: o for o in (Chain, CosineRestarts, ExpDecay, InverseTimeDecay, Linear, StepDecay, Triangular)}
examples = [CosineRestarts(3), CosineRestarts(None, .5, 1.5, (1e-3,1e-2), 1e-5, .5, .25), CosineRestarts(4, 2, .5, 1., (.1,.2)), Triangular(3),
    Triangular(None, .7, (.1,.2), None, 'triangular2'), Triangular(2, 3, .8, .95, 'exp_range', .99), StepDecay(.1), StepDecay((.1,.2), .5, 2, 3.5),
    ExpDecay(.1, .5), ExpDecay((.1,.01), 2, 4), InverseTimeDecay(.1, .5), InverseTimeDecay(.1, 0, 3), Linear(.1, .2, 2), Linear((0.,.1), .2, 2.5),
    CosineRestarts(3, .5, 2, (.1,.2)).warmup(1.5), Linear(0., .1).then(Linear(.1, .3, .5)).then(CosineRestarts(None, .5, 1.5)),
    Triangular(2, 1/3, mode='exp_range', gamma=.9).then(Linear(.1, (0.,.2), 1/7)).then(StepDecay(.1, .5, 1)), Linear(0., .1).then(Linear(.1, 0., 2))]

calm = settings(deadline=None, derandomize=True)

def kind_of(o): return type(o).__name__

@contextmanager
def within(secs):
    "The test fails if this takes longer"
    def hung(*_): pytest.fail('it hangs')
    old,left = signal.signal(signal.SIGALRM, hung),signal.setitimer(signal.ITIMER_REAL, secs)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, old)

@pytest.fixture(autouse=True)
def ends():
    with within(600): yield

# Exact values

def test_cosine_values(): assert CosineRestarts(2).values(4)==pytest.approx([1, (2+math.sqrt(2))/4, .5, (2-math.sqrt(2))/4]*2)

def test_cosine_warmup():
    assert CosineRestarts(1, lr_max=5., lr_min=1., warmup_pct=.4).values(10)==pytest.approx(
        [1,2,3,4, 5, *(1 + 2*(1+math.cos(math.pi*i/6)) for i in range(1, 6))])

def test_warmup_leaves_a_batch_at_the_peak(): assert CosineRestarts(1, lr_max=5., lr_min=1., warmup_pct=.999).values(3)==pytest.approx([1,3,5])

def test_triangular_values():
    assert Triangular(2, 2).values(1)==pytest.approx([.25,.625,1,.625]*2)
    assert Triangular(3, 1, lr_max=1., lr_min=0., mode='triangular2').values(2)==pytest.approx([0,.5,1,.5, 0,.25,.5,.25, 0,.125,.25,.125])
    assert Triangular(1, 1, lr_max=1., lr_min=0., mode='exp_range', gamma=.5).values(2)==pytest.approx([0,.25,.25,.0625])

@pytest.mark.parametrize('scale_mode,peaks', [('cycle',[1/2,2/2]), ('iterations',[1/2,3/2])])
def test_scale_fn(scale_mode, peaks):
    sched = Triangular(2, 1, 1., 0., scale_fn=half, scale_mode=scale_mode)
    assert [sched.at(b, 1) for b in (1,3)]==pytest.approx(peaks)

def test_scale_fn_goes_before_mode(): assert Triangular(2, 1, 1., 0., 'triangular2', scale_fn=tenth).values(1)==pytest.approx([0,.1,0,.1])

def test_decays():
    assert StepDecay(1., .5, 2, 5).values(2)==pytest.approx([1,1,1,1, .5,.5,.5,.5, .25,.25])
    assert ExpDecay(2., math.log(2), 2).values(2)==pytest.approx([2, math.sqrt(2), 1, math.sqrt(.5)])
    assert InverseTimeDecay(2., 1., 2).values(2)==pytest.approx([2, 4/3, 1, .8])

def test_defaults():
    assert (CosineRestarts(3).n_epochs, Triangular(3).n_epochs, StepDecay(.1).n_epochs)==(3, 12, None)
    assert Triangular(1, lr_max=(.4,.8)).lr_min==(.1,.2)
    assert StepDecay(1.).values(1, 21)[[9,10,19,20]]==pytest.approx([1,.1,.1,.01])

def test_a_fraction_of_a_batch_builds_up_no_error():
    "Cycles of 3⅓ batches"
    assert CosineRestarts(6, 1/3).bounds(10)==[0,3,7,10,13,17,20]
    assert Triangular(1000, .25).bounds(7)[-1]==3500

# Lines, and one after another

def test_linear_values():
    assert Linear(1., 3., 2).values(2).tolist()==[1,1.5,2,2.5]
    assert Linear(3., -1.).values(4).tolist()==[3,2,1,0]
    assert Linear((0,1), 4, .5).values(8).tolist()==[[0,1],[1,1.75],[2,2.5],[3,3.25]]
    assert Linear(.1, .7, 1/3).values(10)==pytest.approx([.1,.3,.5])

def test_a_line_is_one_cycle():
    s = Linear(0., 1., 2.5)
    assert (s.bounds(10), s.cycle_at(24, 10), s.n_batches(10), s.n_epochs, s.n_cycles)==([0,25], (0,0,25), 25, 2.5, 1)

def test_lines_in_a_row_go_through_their_ends():
    s = Linear(0., 2., .5).then(Linear(2., 2.)).then(Linear(2., -1., 1.5))
    assert s.values(8)==pytest.approx(np.interp(range(24), [0,4,12,24], [0,2,2,-1]))

L,C = Linear(0., 1.),CosineRestarts(2)
# chkstyle: ignore-node
chains = [(L.then(C), [0,8,12], 3, 2), (C.then(L), [0,4,8,12], 3, 3), (C.then(C), [0,4,8,12,16], 4, 4), (L.then(L), [0,8], 2, 1),
    (L.then(L).then(C), [0,12,16], 4, 2), (C.then(L).then(L), [0,4,8,16], 4, 3), (C.then(L).then(C), [0,4,8,16,20], 5, 4),
    (C.then(L).then(L).then(C), [0,4,8,20,24], 6, 4), (L.then(C).then(L).then(C).then(L), [0,8,12,20,24,28], 7, 5),
    (L.then(ExpDecay(1., 1, 2)), [0,12], 3, 1), (StepDecay(1., n_epochs=2).then(L).then(InverseTimeDecay(1., 1, 1)), [0,8,16], 4, 2),
    (L.then(Triangular(2, .5)).then(CosineRestarts(2, 1, 2)), [0,8,12,16,24], 6, 4), (L.then(CosineRestarts(2, .375, 2)), [0,6,9], 2.125, 2)]

@pytest.mark.parametrize('s,want,n_epochs,n_cycles', chains, ids=[repr(o[1]) for o in chains])
def test_bounds_of_a_chain(s, want, n_epochs, n_cycles):
    "A line and what follows it are one cycle; a line that ends it all is one by itself"
    assert (s.bounds(4), s.n_batches(4), s.n_epochs, s.n_cycles)==(want, want[-1], n_epochs, n_cycles)
    assert [s.cycle_at(b, 4) for b in range(want[-1])]==[(k,a,b) for k,(a,b) in enumerate(zip(want, want[1:])) for _ in range(a, b)]

# chkstyle: ignore-node
endless_chains = [(L.then(CosineRestarts(None)), [0,8,12,16,20], None), (C.then(ExpDecay(1., 1)), [0,4,8,20], 3), (L.then(StepDecay(1.)), [0,20], 1),
    (C.then(L).then(InverseTimeDecay(1., 1)), [0,4,8,20], 3), (L.then(Triangular(None, 1)), [0,12,20], None)]

@pytest.mark.parametrize('s,want,n_cycles', endless_chains, ids=[repr(o[0]) for o in endless_chains])
def test_endless_last_part(s, want, n_cycles):
    assert (s.bounds(4, 20), s.n_batches(4), s.n_epochs, s.n_cycles)==(want, None, None, n_cycles)
    k,a,b = s.cycle_at(19, 4)
    assert (k,a)==(len(want)-2,want[-2]) and b==(math.inf if n_cycles else 20)
    with within(5): assert s.cycle_at(10**12, 4)[1]<=10**12 and np.isfinite(s.at(10**12, 4))
    for f in s.values, s.bounds, s.plot:
        with pytest.raises(ValueError, match='is endless: pass `n_batches`'): f(4)

@pytest.mark.parametrize('n,want', [(1,[0,1]), (4,[0,4]), (5,[0,5]), (12,[0,12]), (13,[0,12,13]), (16,[0,12,16]), (17,[0,12,16,17])])
def test_fewer_batches_of_a_chain(n, want):
    "Cut in a ramp, where the next part begins, and in it"
    s = L.then(L).then(CosineRestarts(3))
    assert s.bounds(4, n)==want and np.array_equal(s.values(4, n), s.values(4)[:n])

def test_chain_values():
    s = Linear(0., 1., .5).then(Triangular(1, .5, 3., 1.)).then(StepDecay(8., .5, 1, 2)).then(ExpDecay(1., math.log(4), .5))
    assert s.values(4)==pytest.approx([0,.5, 1,2,3,2, 8,8,8,8,4,4,4,4, 1,math.sqrt(.5)])

def test_batches_of_a_part_count_from_its_start():
    assert Linear(0., 0.).then(Triangular(1, 1, 1., 0., 'exp_range', .5)).values(2)==pytest.approx([0,0, 0,.25,.25,.0625])
    seen = Linear(0., 0.).then(Triangular(2, .5, 1., 0., scale_fn=float, scale_mode='iterations')).values(2)
    assert seen.tolist()==[0,0, 0,1, 0,3]
    assert L.then(CosineRestarts(2, cycle_decay=.5)).values(1).tolist()==[0,1,.5]

def test_a_scalar_part_holds_for_each_group():
    s = Linear(0., (1.,2.), .5).then(CosineRestarts(1)).then(StepDecay((3.,4.), .5, 1, 1))
    assert s.values(2).tolist()==[[0,0], [1,1],[.5,.5], [3,4],[3,4]]
    assert s.at(1, 2).shape==(2,) and s.at_groups(1, 2)==[1,1] and s.at_groups(0, 2)==[0,0]
    assert CosineRestarts(1).then(Linear((1.,), 0.)).values(2).tolist()==[[1],[.5],[1],[.5]]

def test_nested_chains_are_flat():
    a,b,c = Linear(0., 1., 1/3),CosineRestarts(2, 1/7),ExpDecay(1., 1, .3)
    s = a.then(b).then(c).then(b)
    assert s==a.then(b.then(c.then(b)))==a.then(b).then(c.then(b))==Chain((a,b,c,b))==Chain([a, Chain((Chain((b,c)),b))])
    assert s.scheds==(a,b,c,b) and s.bounds(50)==a.then(b.then(c.then(b))).bounds(50)

def test_then_makes_one_anew():
    a = CosineRestarts(2)
    b = a.then(L)
    b.then(b)
    assert a==CosineRestarts(2) and b.scheds==(a,L) and a.bounds(4)==[0,4,8]

def test_warmup_in_front():
    assert CosineRestarts(1, lr_max=2.).warmup(1).values(4)==pytest.approx([0,.5,1,1.5, 2,1+math.sqrt(.5),1,1-math.sqrt(.5)])
    assert CosineRestarts(1, lr_max=2.).warmup(.5, 1.).values(4)[:3].tolist()==[1,1.5,2]
    assert Triangular(1, 1, 8., 4.).warmup(1).values(2).tolist()==[0,2, 4,6,8,6]
    assert ExpDecay((1.,2.), 1).warmup(1, (0.,1.)).values(2, 3).tolist()==[[0,1],[.5,1.5],[1,2]]
    assert StepDecay((1.,2.)).warmup(1, 1).values(2, 3).tolist()==[[1,1],[1,1.5],[1,2]]
    assert Linear(5., 0.).warmup(1).warmup(1, -1.).values(1).tolist()==[-1,0,5]

@pytest.mark.parametrize('s', [CosineRestarts(2, lr_max=(1.,2.)), Triangular(None), StepDecay(.1), InverseTimeDecay((.1,.2), 1), L.then(C),
    CosineRestarts(9, 1e-6)], ids=kind_of)
def test_warmup_is_a_line_to_the_first_value(s):
    first = s.at(0, 2**30)
    assert s.warmup(2, .01)==Linear(.01, first, 2).then(s)
    assert s.warmup(2)==Linear(0., first, 2).then(s)

def test_warmup_keeps_the_cycles():
    s = CosineRestarts(3, cycle_mult=2)
    assert (s.warmup(2).bounds(4), s.warmup(2).n_cycles, s.warmup(2).n_epochs)==([0,12,20,36], 3, 9)

def test_empty_parts():
    for s in Linear(0., 1., .1).then(CosineRestarts(3)), CosineRestarts(3).then(Linear(0., 1., .1)), L.then(Linear(0., 1., .1)).then(ExpDecay(1., 1, 9)):
        for f in s.bounds, s.values, s.plot, lambda n: s.bounds(n, 5), lambda n: s.at(0, n), lambda n: s.at(5, n), lambda n: s.cycle_at(5, n):
            with pytest.raises(ValueError, match='each cycle needs at least one batch: with 4 batches an epoch'): f(4)
        assert len(s.values(40, 10))==10

def test_a_part_of_less_than_half_a_batch_may_have_one():
    "From 1.3 to 1.7: rounded, from 1 to 2"
    s = Linear(0., 1., 1.3).then(Linear(1., 0., .4))
    assert s.n_batches(1)==2 and s.values(1).tolist()==[0,1]

def half_up(x): return math.floor(x + Fraction(1,2))

steps = st.sampled_from([3,7,9,64,1024]).flatmap(lambda q: st.lists(st.tuples(st.integers(1, 3*q).map(lambda p: Fraction(p, q)), st.integers(0, 3)),
    min_size=2, max_size=8))

@calm
@given(steps, st.integers(1, 400))
def test_parts_start_at_the_sum_rounded(parts, n_iter):
    """Lengths in thirds, sevenths or ninths: no sum is then so near to half a batch that a float's error could tip it.
    Or in parts of a power of two: then nothing has an error, and half a batch is rounded up."""
    assume(all(size*n_iter>=.5 for size,_ in parts))
    s = Chain([CosineRestarts(n, float(size)) if n else Linear(0., 1., float(size)) for size,n in parts])
    total,firsts,want,ramp = Fraction(0),[],[],False
    for size,n in parts:
        starts = [half_up((total + size*k)*n_iter) for k in range(n or 1)]
        firsts += starts
        want += starts[ramp:]
        total,ramp = total + size*(n or 1),n==0
    end = half_up(total*n_iter)
    assert s.n_batches(n_iter)==end and s.n_epochs==pytest.approx(float(total))
    if (np.diff(firsts+[end])>0).all(): assert s.bounds(n_iter)==want+[end] and s.n_cycles==len(want)
    else:
        with pytest.raises(ValueError, match='each cycle needs at least one batch'): s.bounds(n_iter)

def test_no_drift_along_a_chain():
    "9000 parts of ⅓ epoch"
    s = Chain([Linear(0., 1., 1/3), CosineRestarts(1, 1/3), ExpDecay(1., 1, 1/3)]*3000)
    starts = [half_up(Fraction(k*301, 3)) for k in range(9001)]
    assert s.bounds(301)==starts[0::3][:1] + [b for i,b in enumerate(starts) if i%3!=1][1:]
    for i in (0,1,2,4000,8998,8999): assert s.at(starts[i], 301)==(0 if i%3==0 else 1) and s.n_batches(301)==starts[-1]

# What all share

@pytest.mark.parametrize('s', examples, ids=repr)
def test_pickle_copy_repr(s):
    for o in pickle.loads(pickle.dumps(s)), copy.deepcopy(s), eval(repr(s), kinds):
        assert o==s and type(o) is type(s) and hash(o)==hash(s)
        assert np.array_equal(o.values(7, 14), s.values(7, 14))

@pytest.mark.parametrize('s', examples, ids=repr)
def test_frozen(s):
    with pytest.raises(AttributeError): s.lr_max = 3.

@pytest.mark.parametrize('scale_mode,x', [('cycle',1),('iterations',0)])
@pytest.mark.parametrize('fn', [object, lambda: 1, lambda a,b: a, len])
def test_scale_fn_that_takes_no_number(fn, scale_mode, x):
    s = Triangular(2, 1, scale_fn=fn, scale_mode=scale_mode)
    with pytest.raises(TypeError, match=rf'`scale_fn\({x}\)` failed, it must take one number, the cycle or the batch: .*(argument|has no len)'): s.values(2)

def test_scale_fn_pickles():
    s = Triangular(2, 1, scale_fn=half)
    assert pickle.loads(pickle.dumps(s))==s

@pytest.mark.parametrize('s', examples, ids=repr)
def test_order_of_calls_is_free(s):
    want = s.values(9, 18)
    for b in np.random.default_rng(0).permutation(18): assert np.array_equal(s.at(int(b), 9), want[b])

@pytest.mark.parametrize('kind,kw', [(CosineRestarts, dict(n_cycles=3, cycle_mult=1.5, cycle_decay=.9, warmup_pct=.2)),
    (Triangular, dict(n_cycles=3, mode='triangular2')), (Triangular, dict(n_cycles=2, mode='exp_range', gamma=.98))])
def test_groups_are_scalars_side_by_side(kind, kw):
    his,los = (.1,.02,.3),(.01,.05,0.)
    both = kind(lr_max=his, lr_min=los, **kw).values(11)
    assert both.shape[1]==3
    for i,(hi,lo) in enumerate(zip(his, los)): assert np.array_equal(both[:,i], kind(lr_max=hi, lr_min=lo, **kw).values(11))
    assert np.array_equal(kind(lr_max=his, lr_min=.01, **kw).values(11)[:,1], kind(lr_max=.02, lr_min=.01, **kw).values(11))

@pytest.mark.parametrize('kind,kw', [(StepDecay, dict(every=1, factor=.3)), (ExpDecay, dict(k=.2)), (InverseTimeDecay, dict(k=3))])
def test_groups_of_decays(kind, kw):
    both = kind((.1,.02), n_epochs=3, **kw).values(5)
    for i,lr in enumerate((.1,.02)): assert np.array_equal(both[:,i], kind(lr, n_epochs=3, **kw).values(5))

@pytest.mark.parametrize('v', [[.1,.2], np.array([.1,.2]), (.1,.2)])
def test_bounds_are_kept_as_tuples(v):
    s = CosineRestarts(1, lr_max=v)
    assert s.lr_max==(.1,.2) and type(s.lr_max[0]) is float

@pytest.mark.parametrize('s', examples, ids=repr)
def test_plot(s):
    "A line for each group, and one at each bound"
    n = 30 if s.n_epochs is None else None
    ax,want = s.plot(10, n),s.values(10, n)
    curves = want.T if want.ndim==2 else [want]
    for line,ys in zip(ax.lines, curves): assert np.array_equal(line.get_ydata(), ys)
    assert [o.get_xdata()[0]*10 for o in ax.lines[len(curves):]]==pytest.approx(s.bounds(10, n)) and ax.get_xlabel()=='epoch'
    plt.close(ax.figure)

@pytest.mark.parametrize('labels,want', [(None,['group 0','group 1']), (['head','body'],)*2, (('head','body'),['head','body'])])
@pytest.mark.parametrize('s', [CosineRestarts(1, lr_max=(1.,2.)), CosineRestarts(1).warmup(1, (.1,.2))])
def test_plot_labels(s, labels, want):
    ax = s.plot(labels=labels)
    assert [o.get_text() for o in ax.get_legend().get_texts()]==want
    plt.close(ax.figure)

def test_plot_labels_of_one_curve():
    ax = CosineRestarts(1).plot(labels=['lr'])
    assert ax.get_legend() is None
    plt.close(ax.figure)

def test_plot_defaults_and_ax():
    ax = plt.subplots()[1]
    assert CosineRestarts(2).plot(ax=ax) is ax and len(ax.lines[0].get_xdata())==200
    plt.close(ax.figure)

# Of any kind

def singles(n):
    "Schedules of any kind, some with `n` parameter groups, whose cycles all have a batch if there are 10 or more an epoch"
    size,lr = st.floats(.2, 2),st.floats(-10, 10) | st.tuples(*[st.floats(-10, 10)]*n)
    cosine = st.builds(CosineRestarts, st.integers(1, 4), size, st.sampled_from([1,2]) | st.floats(.8, 1.5), lr, lr, st.floats(.3, 1.2), st.floats(0, .9))
    triangular = st.builds(Triangular, st.integers(1, 4), size, lr, st.none() | lr, st.sampled_from(['triangular','triangular2','exp_range']), st.just(.99),
        st.sampled_from([None,half]), st.sampled_from(['cycle','iterations']))
    step,line = st.builds(StepDecay, lr, st.floats(.1, 2), st.integers(1, 2), size),st.builds(Linear, lr, lr, size)
    return st.one_of(cosine, triangular, step, line, *[st.builds(o, lr, size, size) for o in (ExpDecay, InverseTimeDecay)])

def endless(n):
    lr = st.floats(-10, 10) | st.tuples(*[st.floats(-10, 10)]*n)
    return st.one_of(st.builds(CosineRestarts, st.none(), st.floats(.2, 2), st.floats(1, 2), lr, lr), st.builds(Triangular, st.none(), st.floats(.2, 2), lr),
        st.builds(StepDecay, lr, st.floats(.1, 1)), st.builds(ExpDecay, lr, st.floats(0, 2)), st.builds(InverseTimeDecay, lr, st.floats(0, 2)))

def chained(n): return st.builds(lambda some,last: Chain((*some,last)), st.lists(singles(n), min_size=1, max_size=3), singles(n) | endless(n))
anything = st.integers(1, 3).flatmap(lambda n: singles(n) | endless(n) | chained(n))
n_iters = st.integers(10, 25)

def fresh(s): return pickle.loads(pickle.dumps(s))

def some(s, n_iter): return s.values(n_iter, 90 if s.n_epochs is None else None)

@calm
@given(anything, n_iters)
def test_any_pickle_copy_repr(s, n_iter):
    want = some(s, n_iter)
    for o in fresh(s), copy.copy(s), copy.deepcopy(s), eval(repr(s), {**kinds, 'half': half}) if '<function' not in repr(s) else fresh(s):
        assert o==s and o is not s and hash(o)==hash(s) and repr(o)==repr(s) and np.array_equal(some(o, n_iter), want)

@calm
@given(anything, n_iters, st.randoms(use_true_random=False))
def test_any_order_of_calls(s, n_iter, random):
    want = some(s, n_iter)
    assert np.isfinite(want).all()
    for b in random.sample(range(len(want)), min(50, len(want))):
        assert np.array_equal(s.at(b, n_iter), want[b]) and np.array_equal(fresh(s).at(b, n_iter), want[b])
        assert s.at_groups(b, n_iter)==np.atleast_1d(want[b]).tolist()

def one_group(s, i):
    "The same for parameter group `i` alone"
    if isinstance(s, Chain): return Chain([one_group(o, i) for o in s.scheds])
    return type(s)(**{o.name: v[i] if isinstance(v, tuple) else v for o in fields(s) for v in [getattr(s, o.name)]})

@calm
@given(anything, n_iters)
def test_any_groups_are_scalars_side_by_side(s, n_iter):
    vals = some(s, n_iter)
    n = vals.shape[1] if vals.ndim==2 else 0
    for i in range(n): assert np.array_equal(vals[:,i], some(one_group(s, i), n_iter))
    if not n: assert vals.shape==some(one_group(s, 0), n_iter).shape and s==one_group(s, 0)

@calm
@given(anything, n_iters)
def test_any_cycles(s, n_iter):
    "`bounds`, `cycle_at`, `n_batches` and `n_cycles` say the same"
    vals = some(s, n_iter)
    starts,end = s.bounds(n_iter, len(vals)),s.n_batches(n_iter)
    assert starts[0]==0 and starts[-1]==len(vals) and (np.diff(starts)>0).all()
    assert (end is None) if s.n_epochs is None else (end==len(vals) and len(starts)==s.n_cycles+1 and starts==s.bounds(n_iter))
    for b in range(0, len(vals), 7):
        k,first,after = s.cycle_at(b, n_iter)
        assert (k,first)==(bisect_right(starts, b)-1,starts[k]) and first<=b<after
        assert after==starts[k+1] or end is None and k+2==len(starts) and after>starts[-1]

whole = singles(2).map(lambda s: type(s)(**{o.name: math.ceil(getattr(s, o.name)) if o.name in ('cycle_len','cycle_mult','step_size','n_epochs') else
    getattr(s, o.name) for o in fields(s)}))

@calm
@given(st.lists(whole, min_size=2, max_size=4), st.integers(1, 12))
def test_chain_of_whole_epochs_is_its_parts_end_to_end(parts, n_iter):
    "To the last bit"
    s = Chain(parts)
    vals,n = [o.values(n_iter) for o in parts],max(o._n_groups for o in parts)
    if n: vals = [o if o.ndim==2 else np.stack([o]*n, 1) for o in vals]
    assert np.array_equal(s.values(n_iter), np.concatenate(vals))

@calm
@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(.2, 5), n_iters)
def test_line(a, b, size, n_iter):
    "Equal steps from `start`, all within it and `end`, which would come next"
    vals = Linear(a, b, size).values(n_iter)
    assert abs(len(vals) - Fraction(size)*n_iter)<=.5+1e-9 and vals[0]==a
    assert [*vals, b]==pytest.approx(np.linspace(a, b, len(vals)+1), abs=1e-13)

# What is remembered

batches_asked = st.integers(-3, 120) | st.sampled_from([5.,7.5,'5',None,True,np.int64(20),10**6,2**53])
calls = st.lists(st.tuples(batches_asked, st.integers(10, 13) | st.sampled_from([0,10.,'10'])), min_size=2, max_size=25)

def outcome(f, *args):
    try: return 'value',np.asarray(f(*args)).tolist()
    except (ValueError,TypeError) as e: return type(e),str(e)

@calm
@given(anything, calls)
def test_calls_leave_nothing_behind(s, calls):
    "Whatever was asked before, in whatever order, answers and errors are a new schedule's"
    asked = ['at','at_groups','cycle_at']
    for i,(batch,n_iter) in enumerate(calls):
        name = asked[i%3] if i%5 else 'at'
        assert outcome(getattr(s, name), batch, n_iter)==outcome(getattr(fresh(s), name), batch, n_iter)

@pytest.mark.parametrize('first,then', [((0,1),(0,True)), ((0,1),(False,1)), ((0,1),(0,1+0j)), ((0,1),(0,np.array([1]))), ((0,2),(0,np.array([2,3]))),
    ((0,1),(2**53+1,1)), ((0,1),(10**400,1)), ((0,1),(-1,1)), ((3,2),(2,2.5)), ((0,1),(0,'1')), ((0,1),(0,None))])
@pytest.mark.parametrize('s', [CosineRestarts(None, 4, 2**60), ExpDecay(1., .5), L.then(StepDecay(1.))], ids=kind_of)
def test_arguments_are_looked_at_each_time(s, first, then):
    "By every call alike, and the message says which"
    s = fresh(s)
    s.at(*first)
    name = 'n_iter' if first[0]==then[0] and type(then[0]) is int else 'batch' if then[1]==first[1] else 'n_iter'
    for o in s, fresh(s):
        for f in o.at, o.at_groups, o.cycle_at:
            with pytest.raises((ValueError,TypeError), match=f'`{name}` must be a whole number'): f(*then)

@pytest.mark.parametrize('s', examples, ids=repr)
def test_use_leaves_no_trace(s):
    "Neither in pickles, nor in equality, hash and repr"
    s = fresh(s)
    before,known = [pickle.dumps(s, i) for i in range(pickle.HIGHEST_PROTOCOL+1)],{s}
    for n_iter in 7,9:
        s.values(n_iter, 14)
        for f in s.at, s.at_groups, s.cycle_at: f(13, n_iter)
        s.bounds(n_iter, 14)
        assert [pickle.dumps(s, i) for i in range(pickle.HIGHEST_PROTOCOL+1)]==before
        assert s==fresh(s) and s in known and hash(s)==hash(fresh(s)) and repr(s)==repr(fresh(s))

@pytest.mark.parametrize('s', examples, ids=repr)
def test_what_comes_out_is_the_callers(s):
    "To change it changes no later answer"
    want = s.values(8, 14)
    for b in 3,3,4:
        got,groups = s.at(b, 8),s.at_groups(b, 8)
        assert np.array_equal(got, want[b]) and np.array_equal(groups, np.atleast_1d(want[b]))
        if isinstance(got, np.ndarray): got += 1
        groups[0] = 99.

def test_threads_may_take_turns_anywhere():
    "Between any two instructions of a call comes another thread's, for another cycle: both get right answers"
    for s in CosineRestarts(5, lr_max=(1.,2.), cycle_decay=.9), Triangular(5, .5, (1.,2.), 0., 'triangular2'), L.then(CosineRestarts(4, cycle_decay=.9)):
        want,others,wrong,turns = s.values(4).tolist(),[0,9,17,13],[],0
        def turn(frame, event, arg):
            nonlocal turns
            frame.f_trace_opcodes,turns,b = True,turns+1,others[turns%4]
            if s.at_groups(b, 4)!=np.atleast_1d(want[b]).tolist(): wrong.append((b,frame.f_code.co_name,frame.f_lineno))
            return turn
        old = sys.gettrace()
        for b in (2,7,18,8)*4:
            sys.settrace(turn)
            try: got = s.at_groups(b, 4)
            finally: sys.settrace(old)
            assert got==np.atleast_1d(want[b]).tolist() and not wrong
        assert turns>1000

def test_two_threads():
    "Each asks for cycles of its own, in turns as short as can be"
    s = CosineRestarts(50, lr_max=(1.,2.), cycle_decay=.9)
    want = s.values(4).tolist()
    def ask(batches): return all(s.at_groups(b, 4)==want[b] for _ in range(400) for b in batches)
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as ex: assert list(ex.map(ask, [range(0, 40, 3), range(199, 150, -3)]))==[True,True]
    finally: sys.setswitchinterval(old)

# A million batches

@pytest.mark.parametrize('s', [Triangular(10_000, 1/6, 2., 1., 'triangular2'), Triangular(10_000, 1/6, 2., 1., 'exp_range', 1-2**-20),
    CosineRestarts(10_000, 1/3, lr_max=2., cycle_decay=.9999, lr_min=.1)], ids=repr)
@pytest.mark.parametrize('n_iter', [300,301,305])
def test_no_drift_in_a_million_batches(s, n_iter):
    "10,000 cycles of ⅓ epoch: each begins where exact arithmetic says, and the last has the values of the formula"
    starts = [half_up(Fraction(k*n_iter, 3)) for k in range(10_001)]
    assert s.bounds(n_iter)==starts and s.n_batches(n_iter)==starts[-1]>=10**6
    for k in (0,1,4999,9998,9999):
        a,b = starts[k],starts[k+1]
        assert s.cycle_at(a, n_iter)==s.cycle_at(b-1, n_iter)==(k,a,b)
        for t in range(a, b, 9):
            if isinstance(s, CosineRestarts): want = .1 + (2*.9999**k - .1)*(1 + math.cos(math.pi*(t-a)/(b-a)))/2
            else: want = 1 + (1 - abs(2*(t-a)/(b-a) - 1))*(math.exp(t*math.log1p(-2**-20)) if s.mode=='exp_range' else 2.**-k)
            assert s.at(t, n_iter)==pytest.approx(want, rel=1e-12, abs=0)

# chkstyle: ignore-node
many = [Triangular(10_000, 1/6), Triangular(10**6, 1/6), Triangular(None, 1/6), CosineRestarts(10_000, 1/3), CosineRestarts(10**6, 1/3), CosineRestarts(None, 1/3),
    CosineRestarts(10**6, 1/3, 1.00001), CosineRestarts(10**6, 1, .99999), CosineRestarts(10_000, 1, 1.001), CosineRestarts(None, 1, 1.1), CosineRestarts(None, 3, 2),
    CosineRestarts(10**6, 1/3).warmup(1/7), C.then(Triangular(10**6, 1/6)), Chain([CosineRestarts(10**6, 1/3), L]*10), Chain([CosineRestarts(1, 1/3), L]*1000)]

@pytest.mark.parametrize('s', many, ids=lambda s: repr(s)[:80])
def test_a_first_call_is_as_cheap_anywhere(s, monkeypatch):
    "A cycle is not found by going through others: `_start` says where one begins"
    real,calls,rng = schedules._Cycles._start,[],np.random.default_rng(0)
    def counted(*args):
        calls.append(args)
        assert len(calls)<=8
        return real(*args)
    monkeypatch.setattr(schedules._Cycles, '_start', counted)
    end = s.n_batches(301) or 10**13
    for b in [0, 1, 150, end//3, end//2, end-2, end-1, *rng.integers(0, end, 100).tolist(), *np.geomspace(1, end-1, 100).astype(int).tolist()]:
        for f in fresh(s).at, fresh(s).cycle_at:
            calls.clear()
            f(b, 301)
            assert len(calls)>=2

# Cycles in whole batches

lengths,bounds = st.floats(.2, 5),st.floats(-10, 10)
cosines = st.builds(CosineRestarts, st.integers(1, 6), lengths, st.sampled_from([1,2,3]) | st.floats(.9, 2), bounds, bounds, st.floats(.3, 1.2))
triangulars = st.builds(Triangular, st.integers(1, 6), lengths, bounds, bounds, st.sampled_from(['triangular','triangular2','exp_range']), st.just(.99))

def exact_starts(s, n_iter):
    "Where each cycle starts in exact arithmetic, and where the last one ends"
    if isinstance(s, Triangular): steps = [2*Fraction(s.step_size)]*s.n_cycles
    else: steps = [Fraction(s.cycle_len)*Fraction(s.cycle_mult)**k for k in range(s.n_cycles)]
    return [sum(steps[:k])*n_iter for k in range(s.n_cycles+1)]

@calm
@given(cosines | triangulars, n_iters)
def test_rounding_is_cumulative(s, n_iter):
    exact = exact_starts(s, n_iter)
    got = s.bounds(n_iter)
    assert len(got)==s.n_cycles+1 and got[-1]==s.n_batches(n_iter)==len(s.values(n_iter))
    for a,b in zip(got, exact): assert abs(a-b)<=.5+1e-9*b
    assert s.n_epochs==pytest.approx(float(exact[-1]/n_iter))

@calm
@given(cosines, n_iters)
def test_cosine_cycles(s, n_iter):
    "The first batch is the peak itself; then the value goes to `lr_min` all the way, and never gets there"
    vals,starts = s.values(n_iter),s.bounds(n_iter)
    for k,(a,b) in enumerate(zip(starts, starts[1:])):
        peak,tiny = s.lr_max*s.cycle_decay**k,1e-14*(abs(s.lr_min)+abs(s.lr_max)*2)
        assert vals[a]==peak
        assert (np.diff(vals[a:b])*np.sign(s.lr_min-peak)>=-tiny).all()
        assert (vals[a:b]>=min(peak, s.lr_min)-tiny).all() and (vals[a:b]<=max(peak, s.lr_min)+tiny).all()

@calm
@given(triangulars, n_iters)
def test_triangular_cycles(s, n_iter):
    "The first batch is `lr_min` itself; the value is never outside the bounds, and rises then falls"
    vals,starts = s.values(n_iter),s.bounds(n_iter)
    tiny = 1e-14*(abs(s.lr_min)+abs(s.lr_max))
    assert (vals[starts[:-1]]==s.lr_min).all()
    assert (vals>=min(s.lr_max, s.lr_min)-tiny).all() and (vals<=max(s.lr_max, s.lr_min)+tiny).all()
    if s.mode!='exp_range':
        for a,b in zip(starts, starts[1:]):
            d = np.diff(vals[a:b])*np.sign(s.lr_max-s.lr_min)
            assert (d[:(b-a)//2]>=-tiny).all() and (d[(b-a+1)//2:]<=tiny).all()

@calm
@given(cosines.filter(lambda s: s.lr_max!=s.lr_min), st.floats(0, .99), n_iters)
def test_warmup(s, pct, n_iter):
    "With a warm-up the peak comes `pct` into the cycle, to half a batch, from `lr_min` up in equal steps"
    s = CosineRestarts(s.n_cycles, s.cycle_len, s.cycle_mult, s.lr_max, s.lr_min, s.cycle_decay, pct)
    vals,starts = s.values(n_iter),s.bounds(n_iter)
    for k,(a,b) in enumerate(zip(starts, starts[1:])):
        peak = s.lr_max*s.cycle_decay**k
        at = next(i for i in range(b-a) if vals[a+i]==peak)
        assert abs(at-pct*(b-a))<=.5+1e-9 or at==b-a-1
        assert vals[a:a+at+1]==pytest.approx(np.linspace(s.lr_min, peak, at+1) if at else [peak], abs=1e-12)

def scan(s, batch, n_iter):
    "Cycle of `batch`, by going through all of them in exact arithmetic"
    k,start,size = 0,Fraction(0),Fraction(s.cycle_len if isinstance(s, CosineRestarts) else 2*s.step_size)*n_iter
    mult = Fraction(s.cycle_mult) if isinstance(s, CosineRestarts) else 1
    while math.floor(start + size + Fraction(1,2))<=batch: k,start,size = k+1,start+size,size*mult
    return k,math.floor(start + Fraction(1,2)),math.floor(start + size + Fraction(1,2))

grown = st.builds(CosineRestarts, st.none(), st.sampled_from([.125,.5,1,3,7.25]), st.sampled_from([1.5,2,3]), st.just((1.,2.)), st.just(.1), st.just(.5))
level = st.builds(CosineRestarts, st.none(), st.sampled_from([20,1000.5])) | st.builds(Triangular, st.none(), st.sampled_from([20,1000.5]))

@calm
@given(grown | level, st.integers(0, 10**7), st.integers(8, 1000))
def test_endless_agrees_with_scanning(s, batch, n_iter):
    k,a,b = scan(s, batch, n_iter)
    assert s.cycle_at(batch, n_iter)==(k,a,b)
    if isinstance(s, CosineRestarts) and s.cycle_mult>1:
        ref = [.1 + .5*(hi*.5**k - .1)*(1 + math.cos(math.pi*(batch-a)/(b-a))) for hi in (1.,2.)]
        assert s.at(batch, n_iter)==pytest.approx(ref, abs=1e-9)

@calm
@given(st.integers(0, 2**52))
def test_far_out(batch):
    "After any number of batches, a cycle is as the first one"
    with within(5):
        for s in CosineRestarts(None, 2), Triangular(None, 3): assert s.at(batch, 50)==s.at(batch%s.cycle_at(0, 50)[2], 50)

@pytest.mark.parametrize('s', [CosineRestarts(None, 1, 2), CosineRestarts(None, 1, 1e9), CosineRestarts(None), Triangular(None)])
def test_endless(s):
    assert s.n_epochs is None and s.n_batches(10) is None
    for f in s.values, s.bounds, s.plot:
        with pytest.raises(ValueError, match='is endless: pass `n_batches`'): f(10)
    assert len(s.values(10, 33))==33 and s.bounds(10, 33)[-1]==33
    with within(5): assert np.isfinite(s.at(10**15, 10))

@pytest.mark.parametrize('s', [CosineRestarts(2), CosineRestarts(3, 1, 2), CosineRestarts(3, 1, .5), Triangular(2), ExpDecay(1., 1, 2), Linear(0., 1., 2),
    L.then(C), C.then(L), Linear(0., 1., 1/3).then(CosineRestarts(3, 1/3))], ids=repr)
def test_over(s):
    end = s.n_batches(8)
    s.at(end-1, 8)
    for b in (end, end+1, 10**9, -1, -10**6):
        for f in s.at, s.at_groups, s.cycle_at:
            with pytest.raises(ValueError, match=f'`batch` must be a whole number, at least 0 and below {end}, got {b}'): f(b, 8)

@pytest.mark.parametrize('s', [CosineRestarts(None), Triangular(None), ExpDecay(1., 1), L.then(ExpDecay(1., 1))])
def test_before_the_start(s):
    with pytest.raises(ValueError, match='`batch` must be a whole number, at least 0'): s.at(-5, 1)

def test_before_the_start_of_growing_cycles():
    with pytest.raises(ValueError, match='`batch` must be a whole number, at least 0'): CosineRestarts(None, 1, 2).at(-5, 1)

@pytest.mark.parametrize('n', [1,7,20])
def test_fewer_batches(n):
    s = CosineRestarts(2, lr_max=(.1,.2))
    assert np.array_equal(s.values(10, n), s.values(10)[:n])

# Errors

@pytest.mark.parametrize('s,n_iter', [(CosineRestarts(5, .1), 3), (CosineRestarts(20, 1, .5), 8), (Triangular(5, .1), 2)])
def test_empty_cycles(s, n_iter):
    for f in s.bounds, s.values, s.plot:
        with pytest.raises(ValueError, match=f'each cycle needs at least one batch: with {n_iter} batches an epoch'): f(n_iter)

@pytest.mark.parametrize('s', [CosineRestarts(1, .01), Triangular(1, .001), StepDecay(1., n_epochs=.01)])
def test_no_batch_at_all(s):
    for f in s.values, s.bounds:
        with pytest.raises(ValueError, match='each cycle needs at least one batch'): f(10)

@pytest.mark.parametrize('n_iter', [0, -3, 2.5, math.nan, math.inf, None, '10', True, 1j, [10], np.array([10,20]), np.array([10]), 10**400], ids=kind_of)
@pytest.mark.parametrize('s', [CosineRestarts(2), ExpDecay(1., 1, 2), L.then(C)], ids=kind_of)
def test_bad_n_iter(s, n_iter):
    for f in s.values, s.bounds, lambda n: s.at(0, n), lambda n: s.at_groups(0, n), lambda n: s.cycle_at(0, n):
        with pytest.raises((ValueError,TypeError), match='`n_iter` must be a whole number of batches an epoch, above 0'): f(n_iter)

def test_bad_n_iter_of_n_batches():
    for s in CosineRestarts(2), CosineRestarts(None), ExpDecay(1., 1, 2), L.then(C):
        for n_iter in (0, -3, 2.5, math.nan, math.inf, None, '10', True, [10], np.array([10])):
            with pytest.raises((ValueError,TypeError), match='`n_iter` must be a whole number of batches an epoch, above 0'): s.n_batches(n_iter)

@pytest.mark.parametrize('batch', [2.5, math.nan, math.inf, None, '1', True, 1j, [1], np.array([1,2]), np.array([1]), 10**400], ids=kind_of)
@pytest.mark.parametrize('s', [CosineRestarts(2), ExpDecay(1., 1), L.then(C)], ids=kind_of)
def test_bad_batch(s, batch):
    for f in s.at, s.at_groups, s.cycle_at:
        with pytest.raises((ValueError,TypeError), match='`batch` must be a whole number, at least 0'): f(batch, 4)

@pytest.mark.parametrize('f', [lambda: CosineRestarts(None).at(2**53+1, 1), lambda: CosineRestarts(2).at(0, 2**53+1),
    lambda: CosineRestarts(None).bounds(2**53, 2**53+1)])
def test_beyond_what_floats_count(f):
    "The message says where the limit is"
    with within(5), pytest.raises(ValueError, match='2\\*\\*53|9007199254740992'): f()

@pytest.mark.parametrize('n', [0, -1, 21, math.nan, 'all', True])
def test_bad_n_batches(n):
    with pytest.raises((ValueError,TypeError), match='`n_batches` must be a number of batches from 1 to 20, got'): CosineRestarts(2).values(10, n)

V,T = ValueError,TypeError
# chkstyle: ignore-node
bad = [(CosineRestarts, 'n_cycles', [(0,V), (-1,V), (1.5,T), ('3',T), (True,T)]),
    (CosineRestarts, 'cycle_len', [(0,V), (-1,V), (math.nan,V), (math.inf,V), ('1',T), (None,T), (True,T), ((1,2),T)]),
    (CosineRestarts, 'cycle_mult', [(0,V), (-2,V), (math.nan,V), (math.inf,V), ('2',T), (None,T), (False,T)]),
    (CosineRestarts, 'lr_max', [(math.nan,V), (math.inf,V), ('.1',T), (None,T), (True,T), ((),T), ((.1,None),T), ((.1,math.nan),V), ({},T)]),
    (CosineRestarts, 'lr_min', [(math.nan,V), (-math.inf,V), ('.1',T), (None,T), (True,T), ([.1,'x'],T)]),
    (CosineRestarts, 'cycle_decay', [(0,V), (-.5,V), (math.nan,V), ('1',T), (None,T)]),
    (CosineRestarts, 'warmup_pct', [(-.1,V), (1,V), (30,V), (math.nan,V), ('0',T), (None,T)]),
    (Triangular, 'n_cycles', [(0,V), (2.,T), ('3',T)]), (Triangular, 'step_size', [(0,V), (-1,V), (math.nan,V), ('2',T), (None,T)]),
    (Triangular, 'lr_max', [(math.inf,V), (None,T), ('1',T)]), (Triangular, 'lr_min', [(math.nan,V)]),
    (Triangular, 'mode', [('cosine',V), (None,V)]), (Triangular, 'gamma', [(0,V), (1.1,V), (math.nan,V), ('1',T)]),
    (Triangular, 'scale_fn', [(3,T), ('x',T)]), (Triangular, 'scale_mode', [('epochs',V), (None,V)]),
    (StepDecay, 'lr', [(math.nan,V), (None,T), ('1',T)]), (StepDecay, 'factor', [(0,V), (-1,V), (None,T)]),
    (StepDecay, 'every', [(0,V), (-1,V), (.5,T), (None,T)]), (StepDecay, 'n_epochs', [(0,V), (-1,V), (math.nan,V), ('1',T)]),
    (ExpDecay, 'k', [(-1,V), (math.nan,V), (None,T), ('1',T)]), (InverseTimeDecay, 'k', [(-1,V), (math.inf,V), (None,T)]),
    (Linear, 'start', [(math.nan,V), (math.inf,V), (10**400,V), (None,T), ('1',T), (True,T), ((),T), ([.1,None],T), ((.1,math.nan),V), (L,T)]),
    (Linear, 'end', [(math.nan,V), (-math.inf,V), (None,T), ('1',T), (False,T), ([],T), ((.1,'x'),T), (1j,T)]),
    (Linear, 'n_epochs', [(0,V), (-1,V), (math.nan,V), (math.inf,V), (10**400,V), ('1',T), (None,T), (True,T), ((1,2),T)])]
first = {CosineRestarts: dict(n_cycles=2), Triangular: dict(n_cycles=2), StepDecay: dict(lr=.1), ExpDecay: dict(lr=.1, k=1), InverseTimeDecay: dict(lr=.1, k=1),
    Linear: dict(start=0., end=1.)}

@pytest.mark.parametrize('kind,name,v,err', [(kind,name,v,err) for kind,name,vs in bad for v,err in vs])
def test_bad_arguments(kind, name, v, err):
    "The message names the argument, and shows what came, or the part of it"
    with pytest.raises(err, match=f'`{name}` must be') as e: kind(**{**first[kind], name: v})
    last = v[-1] if isinstance(v, (list,tuple)) and v and name in ('lr_max','lr_min','start','end') else v
    assert f'got {last!r}' in str(e.value)

@pytest.mark.parametrize('v,err', [(0,ValueError), (.5,TypeError), (None,TypeError)])
def test_every_has_an_end(v, err):
    "Where `None` is refused, the message does not offer it"
    with pytest.raises(err, match=f"`every` must be a whole number of epochs above 0, got {v}$"): StepDecay(.1, every=v)

@pytest.mark.parametrize('v', ['.1', 'abc', True, {}, b'1', 1j])
def test_bad_lr_min_of_triangular(v):
    with pytest.raises(TypeError, match='`lr_min` must be'): Triangular(2, lr_min=v)

@pytest.mark.parametrize('name', ['lr_max','lr_min','cycle_len','cycle_mult','cycle_decay','warmup_pct'])
def test_number_that_no_float_holds(name):
    with pytest.raises(ValueError, match=f'`{name}` must be'): CosineRestarts(2, **{name: 10**400})

@pytest.mark.parametrize('name,vs', [('n_epochs', [0, -1, math.nan, '1', None, True]), ('start', [None, math.nan, '0', True, (), (0.,None)])])
def test_bad_warmup(name, vs):
    for v in vs:
        with pytest.raises((ValueError,TypeError), match=f'`{name}` must be'): C.warmup(**{'n_epochs': 1, name: v})

def test_warmup_of_other_groups():
    with pytest.raises(ValueError, match=r'`start`.*\(0.0, 0.1, 0.2\)'): CosineRestarts(2, lr_max=(1,2)).warmup(1, (0.,.1,.2))

@pytest.mark.parametrize('other', [.01, None, 'x', (C,), [C], CosineRestarts, C.values, True, math.nan, C.values(4)], ids=kind_of)
def test_bad_other(other):
    with pytest.raises(TypeError, match=r'`other` must be a schedule such as CosineRestarts\(3, lr_max=1e-2\), got'): C.then(other)

@pytest.mark.parametrize('s', [ExpDecay(1., 1), CosineRestarts(None), Triangular(None), StepDecay(1.), C.then(InverseTimeDecay(1., 1))])
def test_nothing_comes_after_the_endless(s):
    last = s.scheds[-1] if isinstance(s, Chain) else s
    for f in lambda: s.then(C), lambda: L.then(s).then(L), lambda: L.then(s.then(L)), lambda: Chain((s,C)), lambda: s.then(s):
        with pytest.raises(ValueError) as e: f()
        assert f'nothing can come after {last}, which is endless: give it an end' in str(e.value)

def test_groups_of_parts():
    two,three = CosineRestarts(1, lr_max=(1,2)),StepDecay((1,2,3), n_epochs=1)
    for f in lambda: two.then(three), lambda: two.then(C).then(three), lambda: L.then(two.then(L)).then(C.then(three)), lambda: Chain((two,three)):
        with pytest.raises(ValueError, match=r'as many parameter groups as each other, got \[2, 3\]'): f()
    with pytest.raises(ValueError, match=r'got \[1, 2\]'): two.then(Linear((1.,), 2.))
    with pytest.raises(ValueError, match=r'`start` and `end` must have as many values as each other, got \(1.0, 2.0\) and \(1.0, 2.0, 3.0\)'):
        Linear((1,2), (1,2,3))

@pytest.mark.parametrize('v', [(), [], 5, None, 'ab', (C,1), (None,), C, [C, CosineRestarts]], ids=kind_of)
def test_bad_scheds(v):
    with pytest.raises((ValueError,TypeError), match='`scheds` must be'): Chain(v)

@pytest.mark.parametrize('o,err', [(None,T), ('1',T), (math.nan,V), (math.inf,V), (10**400,V), (1j,T), (True,T), ([1],T), (np.array([1,2]),T)], ids=kind_of)
@pytest.mark.parametrize('scale_mode,at', [('cycle',3), ('iterations',5)])
def test_bad_scale_fn_result(scale_mode, at, o, err):
    "Found at the batch it is for, by each call; in a chain it counts from the part's start"
    s = Triangular(3, 1, scale_fn=lambda x: o if x==at else 1, scale_mode=scale_mode)
    b = 5 if scale_mode=='iterations' else 8
    for s,b in (s,b), (C.then(s),b+4):
        assert s.at(b-1, 2)==(.25 if scale_mode=='iterations' else .625)
        for f in s.at, s.at_groups, s.at:
            with pytest.raises(err, match=rf'`scale_fn\({at}\)` must be a finite number, got'): f(b, 2)

def test_error_of_scale_fn_comes_through():
    with pytest.raises(ZeroDivisionError): Triangular(3, 1, scale_fn=lambda x: 1/(x-2)).values(2)

def test_array_without_dimensions():
    with pytest.raises(TypeError, match='`lr_max` must be'): CosineRestarts(1, lr_max=np.array(.1))

def test_other_errors():
    for kind in CosineRestarts, Triangular:
        with pytest.raises(ValueError, match='`lr_max` and `lr_min` must have as many values'): kind(2, lr_max=(1,2,3), lr_min=(.1,.2))
    with pytest.raises(ValueError, match='`gamma` is needed'): Triangular(2, mode='exp_range')
    with pytest.raises(ValueError, match='`cycle_mult` must be at least 1 when `n_cycles` is None, got 0.5'): CosineRestarts(None, cycle_mult=.5)
    with pytest.raises(ValueError, match='`n_cycles` of 100 with `cycle_mult` of 2 is more epochs'): CosineRestarts(100, cycle_mult=2)
    with pytest.raises(ValueError, match='is more epochs'): CosineRestarts(10**400)

def test_numpy_numbers_are_floats():
    "float32 has too few digits to count batches; and repr is to say the number alone"
    s = CosineRestarts(None, cycle_len=np.float32(1))
    assert s==CosineRestarts(None, cycle_len=1.) and eval(repr(s), kinds)==s
    assert s.bounds(1001, 16778*1001)[-2]==16777*1001
    assert len(CosineRestarts(3).values(np.int8(100)))==300
    assert L.then(C).cycle_at(np.int8(100), np.int8(100))==(0,0,200)

def test_numpy_count_of_batches(): assert CosineRestarts(3).n_batches(np.int8(100))==300

def test_numpy_step_is_an_int():
    s = StepDecay(.1, every=np.int8(10))
    assert type(s.every) is int and eval(repr(s), kinds)==s and s.at(0, 100)==.1 and s.at(1000, 100)==pytest.approx(.01)

def test_too_many_cycles_of_triangular():
    with pytest.raises(ValueError, match='`n_cycles`'): Triangular(10**400, step_size=1.)

@pytest.mark.parametrize('s', [CosineRestarts(400, cycle_decay=10.), CosineRestarts(400, cycle_decay=10), StepDecay(1., 10., 1, 400), StepDecay(1., 10, 1, 400)])
def test_overflow(s):
    with pytest.raises(ValueError): s.values(1)

@pytest.mark.parametrize('f', [lambda: CosineRestarts(None, 1e-7).at(12345, 10), lambda: CosineRestarts(10**10, 1e-8).values(1, 50),
    lambda: L.then(CosineRestarts(None, 1e-7)).at(12345, 10), lambda: Chain([L]*3 + [CosineRestarts(10**10, 1e-8)]).values(1, 50)])
def test_cycles_far_below_a_batch_do_not_hang(f):
    with within(10), pytest.raises(ValueError): f()

@pytest.mark.parametrize('s,batch', [(CosineRestarts(10**9, .75, .5), 1), (CosineRestarts(10**9, 1.5, .5), 2), (CosineRestarts(10**9, 1+2**-21, 1-2**-20), 2**20),
    (Linear(0., 1., .5).then(CosineRestarts(10**9, 1, .5)), 2)])
def test_cycles_that_shrink_to_nothing_do_not_hang(s, batch):
    "Their sum ends at half a batch: a float can't tell the last million cycles from the end"
    with within(10):
        for f in lambda: s.at(batch, 1), lambda: s.cycle_at(batch, 1)[1]:
            kind,got = outcome(f)
            assert 0<=got<=batch if kind=='value' else 'each cycle needs at least one batch' in got or '`batch` must be' in got

@pytest.mark.parametrize('f', [lambda: CosineRestarts(1, 1, 1e308).at(100, 1), lambda: CosineRestarts(None, 1, 1e300).at(2**53, 1),
    lambda: CosineRestarts(None, 1, 1e155).at(1, 1), lambda: CosineRestarts(None, 1, 1e155, warmup_pct=.5).at(1, 1),
    lambda: CosineRestarts(None, 1, 1e155).values(1, 5),
    lambda: ExpDecay(.1, 1, 1e308).at(0, 100), lambda: Linear(0, 1, 1e308).at(0, 100), lambda: Linear(0, 1, 10**308).bounds(100, 5),
    lambda: Linear(0, 1, 1e308).then(Linear(1, 0, 1e308)).at(0, 1), lambda: ExpDecay(.1, 1, 1e300).warmup(1), lambda: ExpDecay(1., 10**308).at(100, 1),
    lambda: InverseTimeDecay(1., 10**308).at(100, 1), lambda: Triangular(10**400, 1e-300).bounds(3), lambda: Triangular(10**310, 1e-299).n_epochs])
def test_extremes(f):
    "A number, or an error that says what is wrong"
    kind,got = outcome(f)
    assert np.isfinite(got).all() if kind=='value' else '`' in got

def test_starts_at_odd_batches_beyond_four_quadrillion():
    "Where a float has no half: adding one to round would make it two"
    for b in range(2**52-3, 2**52+4): assert CosineRestarts(None).cycle_at(b, 1)==Triangular(None, .5).cycle_at(b, 1)==(b,b,b+1)
    assert CosineRestarts(None).cycle_at(2**53-1, 1)==(2**53-1,2**53-1,2**53)

def test_cycles_all_but_equal():
    "With so small a growth, `mult**k - 1` has few digits left"
    k,grow = 9000,Fraction(1+3e-12)-1
    exact = k + Fraction(k*(k-1), 2)*grow + Fraction(k*(k-1)*(k-2), 6)*grow**2
    assert CosineRestarts(k, 1, 1+3e-12).n_epochs==pytest.approx(float(exact), rel=1e-15, abs=0)

def test_level_stays_level():
    "To the last bit, or near: a flat stretch never leaves its value"
    for v in .1,.3,1e-3:
        for s in Linear(v, v), CosineRestarts(1, lr_max=v, lr_min=v), Triangular(1, .5, v, v):
            assert s.values(1000)==pytest.approx(np.full(1000, v), rel=3e-16, abs=0)

# Nonsense

numbers = st.sampled_from([1, 2, 3, .5, .1, 1.5, .99]) | st.floats(1e-3, 20)
odd = [10**400, -10**400, 10**308, 10**30, 2**53, 1e308, 1e155, 1e-300, 5e-324, 0, -1, .75, math.nan, math.inf, -math.inf, None, True, False, '', '1', b'1', 1j,
    (), [], {}, (1,None), [math.nan], (1.,2.,3.), object(), half, CosineRestarts, C, Fraction(1, 3), Fraction(10**400),
    np.float32(.5), np.float64(1e308), np.int64(2), np.int8(100), np.bool_(True), np.array(.5),
    np.array([1.]), np.array([1.,2.]), np.array([]), np.array([[1.]]), np.array(['a'])]
wild = st.sampled_from(odd) | st.floats() | st.integers() | st.lists(st.floats() | st.none(), max_size=3)
def mostly(o, than=wild): return st.integers(0, 7).flatmap(lambda i: o if i else than)
one,counts = mostly(numbers),mostly(st.integers(1, 8) | st.none())
lrs = mostly(numbers | st.tuples(numbers, numbers) | st.lists(numbers, min_size=1, max_size=2))
def made(kind, must, **may): return st.tuples(st.just(kind), st.fixed_dictionaries(must, optional=may))
# chkstyle: ignore-node
plain = st.one_of(
    made(CosineRestarts, dict(n_cycles=counts), cycle_len=one, cycle_mult=one, lr_max=lrs, lr_min=lrs, cycle_decay=one, warmup_pct=mostly(st.floats(0, .99))),
    made(Triangular, dict(n_cycles=counts), step_size=one, lr_max=lrs, lr_min=lrs, mode=mostly(st.sampled_from(['triangular','triangular2','exp_range'])),
        gamma=mostly(st.floats(.5, 1)), scale_fn=mostly(st.sampled_from([None,half,nothing,too_much])), scale_mode=mostly(st.sampled_from(['cycle','iterations']))),
    made(StepDecay, dict(lr=lrs), factor=one, every=counts, n_epochs=one), made(ExpDecay, dict(lr=lrs, k=one), n_epochs=one),
    made(InverseTimeDecay, dict(lr=lrs, k=one), n_epochs=one), made(Linear, dict(start=lrs, end=lrs), n_epochs=one))
more = st.lists(st.tuples(st.just('then'), mostly(plain)) | st.tuples(st.just('warmup'), st.tuples(one) | st.tuples(one, lrs)), max_size=2)
refused = object()
said = 'each cycle needs at least one batch','nothing can come after','as many parameter groups as each other','is more than a number can be'

def asked(f, *args, **kw):
    "What `f` gives; or `refused`, by a ValueError or TypeError that names something or says what is wrong"
    try: return f(*args, **kw)
    except (ValueError,TypeError) as e:
        assert '`' in str(e) or any(o in str(e) for o in said), f'{e!r} says too little'
        return refused

def build(plain, more):
    s = asked(plain[0], **plain[1])
    for name,arg in more:
        if s is refused: return s
        if name=='warmup': s = asked(s.warmup, *arg)
        else:
            other = asked(arg[0], **arg[1]) if isinstance(arg, tuple) and arg and isinstance(arg[0], type) else arg
            if other is not refused: s = asked(s.then, other)
    return s

def groups_of(s):
    if isinstance(s, Chain): return next((n for n in map(groups_of, s.scheds) if n), 0)
    return next((len(v) for v in (getattr(s, o.name) for o in fields(s)) if isinstance(v, tuple)), 0)

def huge(s): return any(o in repr(s) for o in ('e+','0'*20)) or any(len(o)>20 for o in repr(s).replace(',', ' ').replace('=', ' ').split() if o.isdigit())

def keeps_its_promises(s, n_iter):
    "Or refuses so few batches an epoch"
    end = s.n_batches(n_iter)
    n = None if end is not None and end<=200 else 40
    vals = asked(s.values, n_iter, n)
    if vals is refused: return
    assert len(vals)==(n or end) and vals.shape[1:]==((groups_of(s),) if groups_of(s) else ())
    assert np.isfinite(vals).all() or huge(s), 'only what no float can hold is infinite'
    starts = np.array(s.bounds(n_iter, n))
    assert starts[0]==0 and starts[-1]==len(vals) and (np.diff(starts)>=1).all()
    if isinstance(s, CosineRestarts) and not s.warmup_pct:
        for k,b in enumerate(starts[:-1]): assert (vals[b]==np.asarray(s.lr_max)*float(s.cycle_decay)**k).all()
    if isinstance(s, Triangular): assert all((vals[b]==np.asarray(s.lr_min)).all() for b in starts[:-1])
    if isinstance(s, Linear): assert (vals[0]==np.asarray(s.start)).all()

def answers(s, batch, n_iter, n_batches):
    "Any batch may be asked for, and any curve that isn't too long to wait for"
    v,cycle = asked(s.at, batch, n_iter),asked(s.cycle_at, batch, n_iter)
    assert v is refused or np.shape(v)==((groups_of(s),) if groups_of(s) else ())
    again = asked(s.at, batch, n_iter)
    assert (again is refused)==(v is refused) and (v is refused or np.array_equal(v, again, equal_nan=True))
    if v is not refused: assert cycle is not refused and cycle[1]<=batch<cycle[2] and cycle[0]>=0
    if n_batches is None and (s.n_epochs is None or s.n_epochs>100): n_batches = 50
    starts = asked(s.bounds, n_iter, n_batches)
    if starts is not refused:
        assert starts[0]==0 and all(a<b for a,b in zip(starts, starts[1:]))
        assert starts[-1]==(s.n_batches(n_iter) if n_batches is None else n_batches)
    if starts is refused or starts[-1]<=300:
        vals = asked(s.values, n_iter, n_batches)
        assert vals is refused or starts is not refused and len(vals)==starts[-1]

batches = mostly(st.integers(0, 9) | st.integers(0, 100) | st.integers(0, 2**53))
few = mostly(st.integers(1, 60), st.sampled_from([o for o in odd if not (isinstance(o, (int,float,Fraction)) and abs(o)>1000)]) | st.integers(-5, 300))

@settings(calm, max_examples=10_000)
@given(plain, more, st.integers(1, 12), batches, mostly(st.integers(1, 40)), few)
def test_nonsense(plain, more, few_batches, batch, n_iter, n_batches):
    "Whatever the arguments, there is a schedule that keeps its promises, or a ValueError or TypeError that says what is wrong; and soon"
    with within(5):
        s = build(plain, more)
        if s is refused: return
        assert fresh(s)==s and ('<function' in repr(s) or eval(repr(s), kinds)==s)
        keeps_its_promises(s, few_batches)
        answers(s, batch, n_iter, n_batches)

@pytest.mark.parametrize('f', [lambda n: Triangular(n, step_size=1e5), lambda n: CosineRestarts(n, cycle_len=2e5, cycle_mult=1)])
def test_more_epochs_than_can_be_trained(f):
    "The limit is on all cycles together"
    assert f(4_999_999).n_epochs==pytest.approx(1e12, rel=1e-6) and f(4_999_999).n_epochs<1e12
    with pytest.raises(ValueError, match='`n_cycles` of 5000000 .*is more epochs than can ever be trained'): f(5_000_000)
