"`schedules`: exact values, and what holds for any arguments. Peers are compared in `parity`"
import copy, math, matplotlib.pyplot as plt, numpy as np, pickle, pytest, signal
from fastai_clr.schedules import CosineRestarts, ExpDecay, InverseTimeDecay, StepDecay, Triangular
from contextlib import suppress
from dataclasses import fields
from fractions import Fraction
from hypothesis import given, settings, strategies as st

def half(x): return x/2
def tenth(x): return .1

kinds = dict(CosineRestarts=CosineRestarts, Triangular=Triangular, StepDecay=StepDecay, ExpDecay=ExpDecay, InverseTimeDecay=InverseTimeDecay)
examples = [CosineRestarts(3), CosineRestarts(None, .5, 1.5, (1e-3,1e-2), 1e-5, .5, .25), CosineRestarts(4, 2, .5, 1., (.1,.2)), Triangular(3),
    Triangular(None, .7, (.1,.2), None, 'triangular2'), Triangular(2, 3, .8, .95, 'exp_range', .99), StepDecay(.1), StepDecay((.1,.2), .5, 2, 3.5),
    ExpDecay(.1, .5), ExpDecay((.1,.01), 2, 4), InverseTimeDecay(.1, .5), InverseTimeDecay(.1, 0, 3)]

calm = settings(deadline=None, derandomize=True)

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

# What all share

@pytest.mark.parametrize('s', examples, ids=repr)
def test_pickle_copy_repr(s):
    for o in pickle.loads(pickle.dumps(s)), copy.deepcopy(s), eval(repr(s), kinds):
        assert o==s and type(o) is type(s) and hash(o)==hash(s)
        assert np.array_equal(o.values(7, 14), s.values(7, 14))

@pytest.mark.parametrize('s', examples, ids=repr)
def test_frozen(s):
    with pytest.raises(AttributeError): s.lr_max = 3.

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
    ax = s.plot(10, 30 if s.n_epochs is None else None)
    want = s.values(10, 30 if s.n_epochs is None else None)
    assert np.array_equal(ax.lines[-1 if want.ndim==1 and not s.bounds(10, len(want)) else 0].get_ydata(), want if want.ndim==1 else want[:,0])
    assert ax.get_xlabel()=='epoch'
    plt.close(ax.figure)

def test_plot_defaults_and_ax():
    ax = plt.subplots()[1]
    assert CosineRestarts(2).plot(ax=ax) is ax and len(ax.lines[0].get_xdata())==200
    plt.close(ax.figure)

# Cycles in whole batches

lengths,bounds = st.floats(.2, 5),st.floats(-10, 10)
cosines = st.builds(CosineRestarts, st.integers(1, 6), lengths, st.sampled_from([1,2,3]) | st.floats(.7, 2), bounds, bounds, st.floats(.3, 1.2))
triangulars = st.builds(Triangular, st.integers(1, 6), lengths, bounds, bounds, st.sampled_from(['triangular','triangular2','exp_range']), st.just(.99))
n_iters = st.integers(10, 25)

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
    for s in CosineRestarts(None, 2), Triangular(None, 3): assert s.at(batch, 50)==s.at(batch%s.cycle_at(0, 50)[2], 50)

@pytest.mark.parametrize('s', [CosineRestarts(None, 1, 2), CosineRestarts(None, 1, 1e9), CosineRestarts(None), Triangular(None)])
def test_endless(s):
    assert s.n_epochs is None and s.n_batches(10) is None
    for f in s.values, s.bounds, s.plot:
        with pytest.raises(ValueError, match='is endless: pass `n_batches`'): f(10)
    assert len(s.values(10, 33))==33 and s.bounds(10, 33)[-1]==33 and np.isfinite(s.at(10**15, 10))

@pytest.mark.parametrize('s', [CosineRestarts(2), CosineRestarts(3, 1, 2), CosineRestarts(3, 1, .5), Triangular(2), ExpDecay(1., 1, 2)])
def test_over(s):
    end = s.n_batches(8)
    s.at(end-1, 8)
    for b in (end, end+1, 10**9, -1, -10**6):
        with pytest.raises(ValueError, match=f'`batch` must be a whole number, at least 0 and below {end}, got {b}'): s.at(b, 8)

@pytest.mark.parametrize('s', [CosineRestarts(None), Triangular(None), ExpDecay(1., 1)])
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

@pytest.mark.parametrize('n_iter', [0, -3, 2.5, math.nan, math.inf, None, '10', True])
def test_bad_n_iter(n_iter):
    with pytest.raises((ValueError,TypeError), match='`n_iter` must be a whole number of batches an epoch, above 0, got'): CosineRestarts(2).values(n_iter)

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
    (ExpDecay, 'k', [(-1,V), (math.nan,V), (None,T), ('1',T)]), (InverseTimeDecay, 'k', [(-1,V), (math.inf,V), (None,T)])]
first = {CosineRestarts: dict(n_cycles=2), Triangular: dict(n_cycles=2), StepDecay: dict(lr=.1), ExpDecay: dict(lr=.1, k=1), InverseTimeDecay: dict(lr=.1, k=1)}

@pytest.mark.parametrize('kind,name,v,err', [(kind,name,v,err) for kind,name,vs in bad for v,err in vs])
def test_bad_arguments(kind, name, v, err):
    "The message names the argument, and shows what came, or the part of it"
    with pytest.raises(err, match=f'`{name}` must be') as e: kind(**{**first[kind], name: v})
    last = v[-1] if isinstance(v, (list,tuple)) and v and name in ('lr_max','lr_min') else v
    assert f'got {last!r}' in str(e.value)

@pytest.mark.parametrize('v', ['.1', 'abc', True, {}, b'1', 1j])
def test_bad_lr_min_of_triangular(v):
    with pytest.raises(TypeError, match='`lr_min` must be'): Triangular(2, lr_min=v)

@pytest.mark.parametrize('name', ['lr_max','lr_min','cycle_len','cycle_mult','cycle_decay','warmup_pct'])
def test_number_that_no_float_holds(name):
    with pytest.raises(ValueError, match=f'`{name}` must be'): CosineRestarts(2, **{name: 10**400})

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

def test_too_many_cycles_of_triangular():
    with pytest.raises(ValueError, match='`n_cycles`'): Triangular(10**400, step_size=1.)

@pytest.mark.parametrize('s', [CosineRestarts(400, cycle_decay=10.), CosineRestarts(400, cycle_decay=10), StepDecay(1., 10., 1, 400), StepDecay(1., 10, 1, 400)])
def test_overflow(s):
    with pytest.raises(ValueError): s.values(1)

@pytest.mark.parametrize('f', [lambda: CosineRestarts(None, 1e-7).at(12345, 10), lambda: CosineRestarts(10**10, 1e-8).values(1, 50)])
def test_cycles_far_below_a_batch_do_not_hang(f):
    def hung(*_): pytest.fail('it hangs')
    old = signal.signal(signal.SIGALRM, hung)
    signal.alarm(1)
    try:
        with pytest.raises(ValueError): f()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)

# Nonsense

numbers = st.sampled_from([1, 2, 3, .5, .1, 1.5, .99]) | st.floats(1e-3, 20)
wild = st.one_of(st.none(), st.booleans(), st.text(max_size=2), st.floats(min_value=1e-3), st.floats(max_value=0), st.integers(), st.just(math.nan),
    st.sampled_from([10**400, -10**400, 1e308, 1j, b'1', object(), np.float32(.5), np.int64(2), np.array(.5), np.bool_(True), Fraction(1,3)]),
    st.lists(st.floats() | st.none(), max_size=3), st.lists(numbers, min_size=1, max_size=3).map(np.array))
def mostly(o): return st.integers(0, 4).flatmap(lambda i: o if i else wild)
one,counts = mostly(numbers),mostly(st.integers(1, 8) | st.none())
lrs = one | st.tuples(one) | st.tuples(one, one)
# chkstyle: ignore-node
nonsense = st.one_of(
    st.tuples(st.just(CosineRestarts), st.fixed_dictionaries(dict(n_cycles=counts), optional=dict(
        cycle_len=one, cycle_mult=one, lr_max=lrs, lr_min=lrs, cycle_decay=one, warmup_pct=mostly(st.floats(0, .99))))),
    st.tuples(st.just(Triangular), st.fixed_dictionaries(dict(n_cycles=counts), optional=dict(step_size=one, lr_max=lrs, lr_min=lrs,
        mode=mostly(st.sampled_from(['triangular','triangular2','exp_range'])), gamma=mostly(st.floats(.5, 1)), scale_fn=mostly(st.none() | st.just(half)),
        scale_mode=mostly(st.sampled_from(['cycle','iterations']))))),
    st.tuples(st.just(StepDecay), st.fixed_dictionaries(dict(lr=lrs), optional=dict(factor=one, every=counts, n_epochs=one))),
    st.tuples(st.sampled_from([ExpDecay, InverseTimeDecay]), st.fixed_dictionaries(dict(lr=lrs, k=one), optional=dict(n_epochs=one))))

def keeps_its_promises(s, n_iter):
    end = s.n_batches(n_iter)
    n = None if end is not None and end<=500 else 50
    vals = s.values(n_iter, n)
    assert len(vals)==(n or end)
    if not np.isfinite(vals).all(): assert 'e+' in repr(s), 'only what no float can hold is infinite'
    groups = [len(v) for v in (getattr(s, o.name) for o in fields(s)) if isinstance(v, tuple)]
    assert vals.shape[1:]==((groups[0],) if groups else ())
    if not isinstance(s, (CosineRestarts,Triangular)): return
    starts = np.array(s.bounds(n_iter, n))
    assert starts[0]==0 and starts[-1]==len(vals) and (np.diff(starts)>=1).all()
    if isinstance(s, CosineRestarts) and not s.warmup_pct:
        for k,b in enumerate(starts[:-1]): assert (vals[b]==np.asarray(s.lr_max)*float(s.cycle_decay)**k).all()
    if isinstance(s, Triangular): assert all((vals[b]==np.asarray(s.lr_min)).all() for b in starts[:-1])

@settings(calm, max_examples=500)
@given(nonsense, st.integers(1, 12))
def test_nonsense(kind_kw, n_iter):
    "Whatever the arguments, there is a schedule that keeps its promises, or a ValueError or TypeError"
    kind,kw = kind_kw
    try: s = kind(**kw)
    except (ValueError,TypeError) as e:
        assert '`' in str(e), 'the message names the argument'
        return
    assert pickle.loads(pickle.dumps(s))==s
    with suppress(ValueError, TypeError): keeps_its_promises(s, n_iter)   # it may refuse so few batches an epoch
