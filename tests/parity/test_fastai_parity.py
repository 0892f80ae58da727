"""fastai's own schedules and fits beside this package: a counterpart of every assertion in fastai's notebook 14_callback.schedule,
and the same results, to the bit, as in a process without `fastai_clr`"""
import json, matplotlib.pyplot as plt, numpy as np, pickle, pytest, sys, torch
from conftest import run
from fastai.callback.core import CancelFitException
from fastai.callback.schedule import (LRFinder, ParamScheduler, SchedCos, SchedExp, SchedLin, SchedNo, SchedPoly, SuggestionMethod, combine_scheds,
    combined_cos, minimum, slide, steep, valley)
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import Learner
from fastai_clr import all as _ # Patches Learner; chkstyle: ignore
from learners import Cancel, Watch, learner, same, two_groups, weights

methods = ['fit_one_cycle','fit_flat_cos','lr_find','fine_tune']

def near(o): return pytest.approx(np.asarray(o, dtype=float), rel=1e-5, abs=1e-9)

def cos(a, b, pos): return a + (b-a)*(1 - np.cos(np.pi*np.asarray(pos)))/2

def rise_fall(n, pct, *vals):
    "`n` batches of half a cosine from the first of three values to the second, in a share `pct` of them, and another on to the third"
    pos = np.arange(n)/n
    a,b,c = (np.asarray(o) for o in vals)
    if a.ndim: pos = pos[:,None]
    return np.where(pos<pct, cos(a, b, pos/pct), cos(b, c, (pos-pct)/(1-pct)))

def a_b(m): return [[m.a],[m.b]]

def state(learn): return learn.opt.state_dict()['state']

class Fits(Watch):
    "The curves of each fit, and the weights it ended with"
    def __init__(self): self.lrs,self.moms,self.after = [],[],[]

    def after_fit(self):
        self.lrs.append(self.curve())
        self.moms.append(self.curve('mom'))
        self.after.append(weights(self.learn))

def test_what_is_replaced():
    "The tests below run fastai's own code, but for `fit_sgdr`"
    assert {getattr(Learner, o).__module__ for o in methods}=={'fastai.callback.schedule'} and Learner.fit_sgdr.__module__=='fastai_clr.fit'

# Annealing

@pytest.mark.parametrize('sched,vals', [(SchedNo(0, 2), [0,0,0,0,0]), (SchedLin(0, 2), [0,.5,1,1.5,2]), (SchedCos(0, 2), [0,1-.5**.5,1,1+.5**.5,2]),
    (SchedExp(1, 2), [1,2**.25,2**.5,2**.75,2]), (SchedPoly(0, 2, 2), [0,1/8,1/2,9/8,2])], ids=['no','lin','cos','exp','poly'])
def test_annealing(sched, vals):
    "At each quarter of the way"
    assert [sched(i/4) for i in range(5)]==pytest.approx(vals, rel=1e-12, abs=1e-12)

@pytest.mark.parametrize('kind', [SchedNo,SchedLin,SchedCos,SchedExp])
def test_annealing_pickles(kind):
    back = pickle.loads(pickle.dumps(kind(.5, 5)))
    assert [back(i/10) for i in range(11)]==[kind(.5, 5)(i/10) for i in range(11)]

def test_pickled_from_zero(): assert [pickle.loads(pickle.dumps(SchedCos(0, 5)))(o) for o in (0,.5,1)]==pytest.approx([0,2.5,5])

@pytest.mark.parametrize('pos,val', [(0,0), (.15,.5), (.3,1), (.4,1), (.5,1), (.7,(1+np.cos(.4*np.pi))/2), (1,0)])
def test_combined(pos, val):
    "Up in a line for 30%, flat for 20%, and down a cosine"
    assert combine_scheds([.3,.2,.5], [SchedLin(0, 1), SchedNo(1, 1), SchedCos(1, 0)])(pos)==near(val)

@pytest.mark.parametrize('scale', [1.,np.array([.5,1.])], ids=['one','groups'])
@pytest.mark.parametrize('pos,val', [(0,.5), (.1,cos(.5, 1, .4)), (.25,1), (.5,cos(1, 0, 1/3)), (1,0)])
def test_combined_cos(pos, val, scale):
    assert val==pytest.approx({0: .5, .1: .67275, .25: 1, .5: .75, 1: 0}[pos], abs=1e-5), 'the numbers in fastai\'s notebook'
    assert combined_cos(.25, .5*scale, 1*scale, 0*scale)(pos)==near(val*scale)

# ParamScheduler

def test_param_scheduler():
    learn,watch = learner(10),Watch()
    learn.fit(1, cbs=[ParamScheduler({'lr': SchedLin(1e-3, 1e-2)}), watch])
    assert learn.recorder.hps.keys()=={'lr'} and learn.recorder.hps['lr']==near(1e-3 + 9e-3*np.arange(10)/10)
    assert np.array_equal(watch.curve(), learn.recorder.hps['lr'])

def test_param_scheduler_of_groups():
    learn,watch,lrs = learner(10, splitter=a_b),Watch(),[np.array(o) for o in [(1e-4,1e-3),(1e-3,1e-2),(1e-5,1e-4)]]
    learn.fit(1, cbs=[ParamScheduler({'lr': combined_cos(.5, *lrs)}), watch])
    assert watch.curve()==near(rise_fall(10, .5, *lrs)) and np.array_equal(learn.recorder.hps['lr'], watch.curve()[:,-1])

# The fits

def test_one_cycle():
    "It makes the model better, by the curves that it is to have"
    learn = learner(10, lr=1e-2)
    before = learn.validate()[0]
    learn.fit_one_cycle(2)
    assert learn.validate()[0]<before
    assert learn.recorder.hps['lr']==near(rise_fall(20, .25, 1e-2/25, 1e-2, 1e-7)) and learn.recorder.hps['mom']==near(rise_fall(20, .25, .95, .85, .95))

def test_one_cycle_of_groups():
    learn,watch,lrs = learner(10, splitter=a_b),Watch(),np.array([1e-3,1e-2])
    learn.fit_one_cycle(1, lr_max=slice(1e-3,1e-2), cbs=watch)
    assert watch.curve()==near(rise_fall(10, .25, lrs/25, lrs, lrs/1e5)) and watch.curve('mom')==near(rise_fall(10, .25, *np.outer((.95,.85,.95), (1,1))))

def test_flat_cos():
    learn = learner(10)
    learn.fit_flat_cos(2)
    assert set(learn.recorder.lrs[:15])=={1e-3} and learn.recorder.lrs==near(rise_fall(20, .75, 1e-3, 1e-3, 1e-8))

def test_sgdr():
    "Each cycle whole: its first batch as well, which fastai's notebook leaves out because its own restart may be late"
    learn = learner(10)
    learn.fit_sgdr(3, 1)
    lrs = np.array(learn.recorder.lrs)
    assert learn.n_epoch==7 and len(lrs)==70
    for a,b in (0,10),(10,30),(30,70):
        n = b-a
        assert lrs[a]==learn.lr and lrs[a:b]==pytest.approx(cos(learn.lr, 0, np.arange(n)/n), rel=1e-9)

@pytest.mark.parametrize('fit,keys', [(lambda o: o.fit_one_cycle(2), ['lr','mom']), (lambda o: o.fit_flat_cos(2), ['lr']),
    (lambda o: o.fit_sgdr(3, 1), ['lr'])], ids=['one_cycle','flat_cos','sgdr'])
def test_plot_sched(fit, keys):
    learn = learner(10)
    fit(learn)
    learn.recorder.plot_sched()
    drawn = {o.get_ylabel(): o.lines[0].get_ydata() for o in plt.gcf().axes}
    plt.close('all')
    assert [*drawn]==keys and all(np.array_equal(drawn[k], learn.recorder.hps[k]) for k in keys) and np.array_equal(drawn['lr'], learn.recorder.lrs)

def test_fine_tune_after_sgdr():
    "As in the notebook: the Learner that `fit_sgdr` trained, and all that it recorded is the new fit's"
    learn,fits = learner(10),Fits()
    learn.fit_sgdr(3, 1)
    learn.fine_tune(1, cbs=fits)
    assert fits.lrs[0]==near(rise_fall(10, .99, 2e-3/25, 2e-3, 2e-8)) and fits.lrs[1]==near(rise_fall(10, .3, 2e-4, 1e-3, 1e-8)) and len(fits.lrs)==2
    assert all(o==near(rise_fall(10, p, .95, .85, .95)) for o,p in zip(fits.moms, (.99,.3)))
    assert np.array_equal(learn.recorder.lrs, fits.lrs[1]) and learn.recorder.hps.keys()=={'lr','mom'} and len(learn.recorder.values)==1

def test_fine_tune_of_groups():
    "The body is frozen first, and then has a 100 times lower lr than the head"
    learn,fits,lrs = two_groups(10),Fits(),np.array([1e-5,1e-3])
    before = weights(learn)
    learn.fine_tune(2, cbs=fits)
    frozen,tuned = ([k for k,v in before.items() if torch.equal(v, o[k])] for o in fits.after)
    assert frozen==['0.weight','0.bias'] and tuned==[]
    assert fits.lrs[0]==near(rise_fall(10, .99, *(np.array([2e-4,2e-3])/o for o in (25,1,1e5)))) and fits.lrs[1]==near(rise_fall(20, .3, lrs/5, lrs, lrs/1e5))

@pytest.mark.parametrize('fit,lrs', [(lambda o,**kw: o.fit_one_cycle(5, **kw), rise_fall(50, .25, 4e-5, 1e-3, 1e-8)),
    (lambda o,**kw: o.fit_sgdr(2, 2, cycle_mult=1.5, **kw), np.r_[cos(1e-3, 0, np.arange(20)/20),cos(1e-3, 0, np.arange(30)/30)])], ids=['one_cycle','sgdr'])
def test_resume(tmp_path, fit, lrs):
    "From a checkpoint with the optimizer's state, after an interruption before the third of five epochs: both parts make the whole curve"
    first,second = learner(10, path=tmp_path),learner(10, path=tmp_path)
    fit(first, cbs=[SaveModelCallback(with_opt=True, fname='ckpt'), Cancel('before_epoch', CancelFitException, lambda o: o.epoch==2)])
    second.load('ckpt')
    assert same(weights(first), weights(second)) and all(torch.equal(a['grad_avg'], b['grad_avg']) for a,b in zip(state(first), state(second), strict=True))
    fit(second, start_epoch=2)
    assert len(first.recorder.lrs)==20 and np.r_[first.recorder.lrs,second.recorder.lrs]==near(lrs)

# The lr finder

def exp_lrs(n, lo=1e-7, hi=10., num_it=100): return pytest.approx(lo*(hi/lo)**(np.arange(n)/num_it), rel=1e-12)

@pytest.mark.parametrize('start_lr', [1e-7,.1])
def test_lr_finder(tmp_path, start_lr):
    learn = learner(10, path=tmp_path)
    before = weights(learn)
    learn.fit(20, cbs=LRFinder(start_lr, num_it=100))
    lrs,losses = learn.recorder.lrs,np.array(learn.recorder.losses)
    n = len(lrs)
    assert 50<n<100 and len(losses)==n and lrs==exp_lrs(n, start_lr)
    assert np.array_equal(np.flatnonzero(losses>4*np.minimum.accumulate(losses)), [n-1]), 'it stops where it diverges, and only there'
    assert [len(o) for o in learn.recorder.values]==[1]*(n//10), 'a training loss alone, no validation'
    assert same(before, weights(learn)) and state(learn)==[{},{}] and not [*tmp_path.rglob('*.pth')]

@pytest.mark.parametrize('kw', [dict(stop_div=False), dict(end_lr=1e-3)])
def test_lr_finder_to_the_end(tmp_path, kw):
    learn = learner(10, path=tmp_path)
    learn.fit(20, cbs=LRFinder(num_it=100, **kw))
    assert len(learn.recorder.losses)==100 and learn.recorder.lrs==exp_lrs(100, hi=kw.get('end_lr', 10.))

def test_lr_finder_of_a_trained_learner(tmp_path):
    "What the optimizer had gathered is put back too"
    learn = learner(10, path=tmp_path)
    learn.fit(1)
    before,avgs = weights(learn),[o['grad_avg'].clone() for o in state(learn)]
    assert len(avgs)==2 and all(avgs)
    learn.fit(20, cbs=LRFinder(num_it=100))
    assert same(before, weights(learn)) and all(torch.equal(a, b['grad_avg']) for a,b in zip(avgs, state(learn), strict=True))

i100 = torch.arange(100.)

@pytest.mark.parametrize('f,losses,want', [(minimum, (i100-70)**2, 60), (steep, 1/(1 + (i100-40).exp()), 39), (valley, (i100-60).abs(), 29),
    (slide, (i100-60).clamp(min=0)**2, 45)], ids=['minimum','steep','valley','slide'])
def test_suggestion(f, losses, want):
    """Of curves whose answer is plain: 10 batches to a factor of 10. A tenth of the lr with the lowest loss; where a sigmoid falls most; half-way down
    the one valley; 15 batches before the loss turns upward"""
    lrs = 10**(i100/10 - 7)
    lr,(x,y) = f(lrs, losses, 100)
    assert lr==pytest.approx(lrs[want].item(), rel=1e-5) and y==pytest.approx(losses[70 if f is minimum else want].item(), rel=1e-4)
    assert x==pytest.approx(lr*10 if f is minimum else lr)

def test_lr_find(tmp_path):
    "All four suggestions, from the finder's own curve without its ends; the weights are put back; and the plot"
    learn,funcs = learner(10, path=tmp_path),(minimum,steep,valley,slide)
    before = weights(learn)
    res = learn.lr_find(suggest_funcs=funcs)
    assert same(before, weights(learn)) and res._fields==('minimum','steep','valley','slide') and 50<len(learn.recorder.lrs)<100
    lrs,losses = (torch.tensor(o)[10:-5] for o in (learn.recorder.lrs,learn.recorder.losses))
    assert res==tuple(f(lrs, losses, 100)[0] for f in funcs) and all(lrs[0]/10<=o<=lrs[-1] for o in res)
    assert res.minimum==pytest.approx(lrs[losses.argmin()]/10) and res.steep==lrs[(losses.diff()/lrs.log().diff()).argmin()]
    curve,*points = plt.gca().lines
    assert len(curve.get_xdata())==len(learn.recorder.lrs)-5 and [o.get_label() for o in points]==[*res._fields] and plt.gca().get_xscale()=='log'
    plt.close('all')

def test_lr_find_with_other_suggestions(tmp_path):
    "The valley unless told otherwise; one by its name; a function of one's own"
    learn,figs = learner(10, path=tmp_path),plt.get_fignums()
    def own(lrs, losses, num_it): return [len(lrs),len(losses),num_it],(lrs[0],losses[0])
    fields = [learn.lr_find(show_plot=False, **kw)._fields for kw in ({}, dict(suggest_funcs=SuggestionMethod.Slide))]
    assert fields==[('valley',),('slide',)] and plt.get_fignums()==figs
    res,n = learn.lr_find(show_plot=False, suggest_funcs=own),len(learn.recorder.lrs)
    assert res.own==[n-15,n-15,100]

# With and without this package, to the bit

work = '''
import json, numpy as np, random, sys, tempfile, torch
from fastai.callback.schedule import minimum, slide, steep, valley
from fastai.learner import Learner
from fastai.test_utils import synth_learner
from fastcore.basics import noop
from torch import nn

def params(m): return list(m.parameters())
def make(groups):
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    kw = dict(model=nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1)), splitter=lambda m: [params(m[0]), params(m[1])]) if groups else {}
    learn = synth_learner(n_trn=8, path=tempfile.mkdtemp(dir='.'), **kw)
    learn.logger,learn.create_mbar = noop,False
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn

def bits(o):
    "`o` for JSON, with each number as the text of all its bits"
    if o is None or isinstance(o, (str,bool)): return o
    if isinstance(o, (int,float)): return float(o).hex()
    if isinstance(o, dict): return {k: bits(v) for k,v in o.items()}
    return [bits(v) for v in o] if isinstance(o, (list,tuple)) else bits(o.tolist() if hasattr(o, 'tolist') else list(o))

def result(fit, groups=False):
    learn = make(groups)
    start = bits(learn.model.state_dict())
    got,rec,opt = fit(learn),learn.recorder,learn.opt.state_dict()
    return dict(start=start, weights=bits(learn.model.state_dict()), **{o: bits(getattr(rec, o, None)) for o in ('lrs','losses','hps','values','iters')},
        opt_state=bits(opt['state']), hypers=bits([dict(o) for o in opt['hypers']]), suggestions=bits(got),
        next_random=bits([random.random(), np.random.rand(), torch.rand(1)]))

finders = (minimum,steep,valley,slide)
print('RESULT'+json.dumps(dict(ours='fastai_clr' in sys.modules, sgdr=Learner.fit_sgdr.__module__, results=dict(
    fit_one_cycle=result(lambda o: o.fit_one_cycle(3, .1)), fit_flat_cos=result(lambda o: o.fit_flat_cos(3, .1, wd=.1)),
    lr_find=result(lambda o: o.lr_find(num_it=60, show_plot=False, suggest_funcs=finders)), fine_tune=result(lambda o: o.fine_tune(2, .1), groups=True)))))
'''

@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "What a process gives that imports this package before all else, and what one gives that knows fastai alone"
    outs = [run(sys.executable, '-W', 'ignore', '-c', o+work, cwd=tmp_path_factory.mktemp('fits')) for o in ('import fastai_clr.all','')]
    return [json.loads(o[o.index('RESULT')+6:]) for o in outs]

def test_one_process_has_this_package(both):
    assert [o['ours'] for o in both]==[True,False] and [o['sgdr'] for o in both]==['fastai_clr.fit','fastai.callback.schedule']
    assert [[*o['results']] for o in both]==[methods]*2

@pytest.mark.parametrize('name', methods)
def test_bitwise_the_same(both, name):
    "All that was recorded, the weights, the optimizer's state, the suggestions, and what the random generators would give next"
    ours,theirs = (o['results'][name] for o in both)
    assert ours.keys()==theirs.keys()
    for k in theirs: assert ours[k]==theirs[k], k
    n,is_find = len(ours['lrs']),name=='lr_find'
    assert 20<n<=60 if is_find else n==(16 if name=='fine_tune' else 24)
    assert len(ours['losses'])==n and len(set(ours['losses']))>n//2 and len(set(ours['lrs']))>5 and len(ours['values'])==n//8
    assert is_find or [*ours['hps']]==(['lr'] if name=='fit_flat_cos' else ['lr','mom'])
    assert (ours['weights']==ours['start'])==is_find and len(ours['suggestions'] or ())==4*is_find
