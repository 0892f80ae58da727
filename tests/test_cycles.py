"`cycles`: what the optimizer holds at each batch, when a cycle ends, and what is refused"
import numpy as np, pickle, pytest, torch
from fastai.callback.core import (Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException,
    CancelValidException)
from fastai.callback.schedule import ParamScheduler, SchedLin
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, ShortEpochCallback
from fastai.optimizer import SGD, Adam, ranger
from fastai_clr import fit # Patches Learner; chkstyle: ignore
from fastai_clr.cycles import CLR, SGDR, CycleScheduler, cycle_hypers, peak_lrs
from fastai_clr.schedules import CosineRestarts, ExpDecay, StepDecay, Triangular
from fastcore.basics import partial
from learners import Cancel, Watch, adamw, learner, same, split, two_groups, weights

optimizers = dict(sgd=partial(SGD, mom=.9), adam=Adam, ranger=ranger, adamw=adamw)
lr2,mom2 = CosineRestarts(2, lr_max=.01, lr_min=1e-3),CosineRestarts(2, lr_max=.8, lr_min=.9)

# What the optimizer holds

@pytest.mark.parametrize('opt', optimizers)
def test_held(opt):
    "Per-group lrs and a momentum the other way round, batch for batch"
    learn,watch = two_groups(7, optimizers[opt]),Watch()
    lr = CosineRestarts(3, .5, 2, (1e-3,1e-2), 1e-5, .5, .25)
    mom = CosineRestarts(3, .5, 2, .85, .95, 1., .25)
    learn.fit(4, cbs=[CycleScheduler(lr=lr, mom=mom), watch])
    assert np.array_equal(watch.curve(), lr.values(7))
    assert np.array_equal(watch.curve('mom')[:,0], mom.values(7)) and np.array_equal(watch.curve('mom')[:,1], mom.values(7))
    assert learn.recorder.hps.keys()=={'lr','mom'}
    assert np.array_equal(learn.recorder.hps['lr'], lr.values(7)[:,-1]) and np.array_equal(learn.recorder.hps['mom'], mom.values(7))
    assert np.array_equal(learn.recorder.lrs, lr.values(7)[:,-1])

@pytest.mark.parametrize('sched', [Triangular(2, 1, 1e-2), Triangular(3, .7, (1e-3,1e-2), mode='triangular2'), ExpDecay(1e-2, .5),
    CosineRestarts(2, 1.3, lr_max=(.1,.2)), StepDecay((1e-2,1e-3), .5, 2, 5)])
def test_held_by_any_schedule(sched):
    learn,watch = two_groups(9),Watch()
    n = int(np.ceil(sched.n_epochs or 3))
    learn.fit(n, cbs=[CycleScheduler(lr=sched), watch])
    assert np.array_equal(np.squeeze(watch.curve()[:,:1]), np.reshape(sched.values(9, None if sched.n_epochs else 27), (len(watch.batches),-1))[:,0])
    assert watch.batches==list(range(len(watch.batches)))

def test_weights_are_those_of_a_plain_loop():
    "SGD by hand, with torch's CosineAnnealingWarmRestarts"
    learn = learner(5)
    learn.opt_func = SGD
    model = pickle.loads(pickle.dumps(learn.model))
    opt = torch.optim.SGD(model.parameters(), lr=.05)
    sched = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, 5, 2)
    class Keep(Callback):
        run_valid = False
        def before_fit(self): self.bs = []
        def before_batch(self): self.bs.append((*self.xb,*self.yb))
    keep = Keep()
    learn.fit(3, cbs=[CycleScheduler(lr=CosineRestarts(2, 1, 2, .05)), keep])
    for x,y in keep.bs:
        torch.nn.functional.mse_loss(model(x).view(-1), y.view(-1)).backward()
        opt.step()
        opt.zero_grad()
        sched.step()
    assert torch.allclose(model.a, learn.model.a, rtol=1e-5) and torch.allclose(model.b, learn.model.b, rtol=1e-5)

@pytest.mark.parametrize('n_acc', [16,40,1000])
def test_gradient_accumulation(n_acc):
    learn,watch = learner(6),Watch()
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), watch, GradientAccumulation(n_acc)])
    assert np.array_equal(watch.curve(), lr2.values(6)) and watch.ends==[6,12]

@pytest.mark.parametrize('start_epoch', [1,2,3])
def test_start_epoch(start_epoch):
    learn,watch,sched = learner(4),Watch(),CosineRestarts(2, 1, 2, .01)
    learn.fit(3, cbs=[CycleScheduler(lr=sched), watch], start_epoch=start_epoch)
    assert np.array_equal(watch.curve() if watch.held else [], sched.values(4)[4*start_epoch:])
    assert watch.ends==([] if start_epoch==3 else [12])

def test_one_batch_an_epoch():
    learn,watch,sched = learner(1),Watch(),CosineRestarts(3, 1, 2, .01)
    learn.fit(7, cbs=[CycleScheduler(lr=sched), watch])
    assert np.array_equal(watch.curve(), sched.values(1)) and watch.ends==[1,3,7]

def test_cycle_of_one_batch():
    learn,watch = learner(4),Watch()
    learn.fit(1, cbs=[CycleScheduler(lr=CosineRestarts(4, .25, lr_max=.01)), watch])
    assert watch.curve()==pytest.approx([.01]*4) and watch.ends==[1,2,3,4]

# The end of a cycle

@pytest.mark.parametrize('cycle_len,mult,n_cycles,n_epoch,rows', [(1,1,3,3,[1,2,3]), (2,1,2,4,[2,4]), (1,2,3,7,[1,3,7]), (.5,1,4,2,[0,1,1,2]),
    (1.3,1,2,3,[1,2]), (.1,1,20,2,[0]*9+[1]*10+[2])])
def test_after_cycle(cycle_len, mult, n_cycles, n_epoch, rows):
    "Once a cycle; at the end of an epoch the recorder has its row already"
    learn,watch,sched = learner(10),Watch(),CosineRestarts(n_cycles, cycle_len, mult, .01)
    learn.fit(n_epoch, cbs=[CycleScheduler(lr=sched), watch])
    assert watch.ends==sched.bounds(10)[1:] and watch.rows==rows

@pytest.mark.parametrize('cycle_len', [1.3,.25,1.95])
def test_last_cycle_ends_inside_an_epoch(cycle_len):
    "The rest of the epoch is skipped, and it is validated and recorded as a whole one"
    learn,watch,sched = learner(10, metrics=lambda x,y: (x-y).abs().mean()),Watch(),CosineRestarts(1, cycle_len, lr_max=.01)
    n = sched.n_batches(10)
    n_epoch = -(-n//10)
    learn.fit(n_epoch, cbs=[CycleScheduler(lr=sched), watch])
    rec = learn.recorder
    assert watch.batches==list(range(n)) and watch.ends==[n] and len(rec.losses)==n
    assert [len(o) for o in rec.values]==[3]*n_epoch and len(rec.values[-1])==len(rec.metric_names)-2
    assert rec.values[-1][0]==pytest.approx(float(rec.losses[-1])) and rec.values[-1][1]==pytest.approx(learn.validate()[0])

def test_after_cycle_for_callables_and_own_callbacks():
    seen = []
    class Mine(Callback):
        def after_cycle(self): seen.append(self.learn.cycle_scheduler.cycle)
    learner(3).fit(2, cbs=[CycleScheduler(lr=lr2), Mine(), Callback(after_cycle=lambda self: seen.append('f'))])
    assert sorted(map(str, seen))==['0','1','f','f']

def test_after_cycle_may_stop_the_fit():
    learn,watch = learner(4),Watch()
    learn.fit(3, cbs=[CycleScheduler(lr=CosineRestarts(3, lr_max=.01)), watch, Cancel('after_cycle', CancelFitException, lambda o: o.epoch==1, 99)])
    assert watch.ends==[4,8] and len(learn.recorder.values)==2 and len(learn.recorder.hps['lr'])==8

def test_two_schedulers_announce_once():
    "And the lr's cycles are those that count"
    for scheds in [dict(mom=Triangular(1, 1, .8, .9)), dict(lr=lr2)], [dict(lr=lr2), dict(mom=Triangular(1, 1, .8, .9))]:
        learn,watch = learner(6),Watch()
        learn.fit(2, cbs=[*(CycleScheduler(**o) for o in scheds), watch])
        assert len(watch.ends)==2 and learn.recorder.hps.keys()=={'lr','mom'}
        assert np.array_equal(watch.curve('mom'), Triangular(1, 1, .8, .9).values(6)) and np.array_equal(watch.curve(), lr2.values(6))

@pytest.mark.parametrize('first', ['lr', 'mom'])
def test_two_schedulers_show_the_cycles_of_the_lr(first):
    learn,watch = learner(6),Watch()
    cbs = [CycleScheduler(lr=lr2),CycleScheduler(mom=Triangular(1, 1, .8, .9))]
    learn.fit(2, cbs=[*(cbs if first=='lr' else cbs[::-1]), watch])
    assert watch.ends==[6,12]

@pytest.mark.parametrize('cbs', [lambda: [CycleScheduler(mom=mom2), SGDR(1e-2)], lambda: [CycleScheduler(mom=mom2), CLR(1e-2)]])
def test_everyday_form_after_a_scheduler(cbs):
    learn,watch = learner(5),Watch()
    learn.fit(2, cbs=[*cbs(), watch])
    assert learn.recorder.hps.keys()=={'lr','mom'} and np.array_equal(watch.curve('mom'), mom2.values(5))

# Callbacks that cancel

def cancelled(event, ex, when, order, n_iter=10, n_epoch=2, **kw):
    learn,watch,sched = learner(n_iter),Watch(),CosineRestarts(lr_max=.01, **kw)
    learn.fit(n_epoch, cbs=[CycleScheduler(lr=sched), watch, Cancel(event, ex, lambda o: o.training and when(o), order)])
    assert np.array_equal(watch.curve(), sched.values(n_iter)[watch.batches]), 'the lr is exact for the batches that were trained'
    return learn,watch,sched

@pytest.mark.parametrize('event,order', [('before_batch',99), ('after_loss',0), ('before_step',0)])
@pytest.mark.parametrize('at', [(0,0), (0,4), (0,5), (0,9), (1,4), (1,9)])
@pytest.mark.parametrize('cycle_len', [.5,1])
def test_cancel_batch(event, order, at, cycle_len):
    _,watch,sched = cancelled(event, CancelBatchException, lambda o: (o.epoch,o.iter)==at, order, n_cycles=int(2/cycle_len), cycle_len=cycle_len)
    assert watch.ends==sched.bounds(10)[1:]

@pytest.mark.parametrize('at,cycle_len', [((0,0),1), ((0,4),.5), ((0,5),.5), ((1,5),.5)])
def test_cancel_batch_early(at, cycle_len):
    _,watch,sched = cancelled('before_batch', CancelBatchException, lambda o: (o.epoch,o.iter)==at, 0, n_cycles=int(2/cycle_len), cycle_len=cycle_len)
    assert watch.ends==sched.bounds(10)[1:]

def test_cancel_the_last_batch_early():
    learn,watch,_ = cancelled('before_batch', CancelBatchException, lambda o: (o.epoch,o.iter)==(1,4), 0, n_cycles=3, cycle_len=.5)
    assert watch.ends==[5,10,15] and len(learn.recorder.values[-1])==2

@pytest.mark.parametrize('order', [0,99])
@pytest.mark.parametrize('every', [2,3])
def test_cancel_many_batches(order, every):
    _,watch,sched = cancelled('before_batch', CancelBatchException, lambda o: o.iter%every==1, order, n_cycles=2)
    assert watch.ends==[10,20]

@pytest.mark.parametrize('event', ['before_batch','after_batch','after_loss'])
@pytest.mark.parametrize('at', [(0,0), (0,5), (1,9)])
def test_cancel_epoch(event, at):
    "The cycle is over at the end of the epoch all the same"
    order = 99 if event=='before_batch' else 0
    _,watch,_ = cancelled(event, CancelEpochException, lambda o: (o.epoch,o.iter)==at, order, n_cycles=2)
    assert watch.ends==[10,20]

@pytest.mark.parametrize('at', [(0,3), (1,3)])
def test_cancel_epoch_in_a_longer_cycle(at):
    _,watch,_ = cancelled('after_batch', CancelEpochException, lambda o: (o.epoch,o.iter)==at, 0, n_cycles=2, cycle_len=2, n_epoch=4)
    assert watch.ends==[20,40]

@pytest.mark.parametrize('epoch', [0, 1])
@pytest.mark.parametrize('ex', [CancelEpochException, CancelTrainException, CancelValidException])
def test_cancel_before_training(ex, epoch, request):
    "An epoch of which no batch was trained"
    learn,watch = learner(5),Watch()
    sched = CosineRestarts(1, 3, lr_max=.01)
    event = 'before_validate' if ex is CancelValidException else 'before_train'
    learn.fit(3, cbs=[CycleScheduler(lr=sched), watch, Cancel(event, ex, lambda o: o.epoch==epoch)])
    assert watch.ends==[15] and np.array_equal(watch.curve(), sched.values(5)[watch.batches])

def test_short_epochs():
    learn,watch = learner(10),Watch()
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), watch, ShortEpochCallback(.3)])
    assert watch.ends==[10,20] and np.array_equal(watch.curve(), lr2.values(10)[watch.batches]) and len(watch.batches)==8

# Beside fastai's own callbacks

def test_early_stopping():
    "The cycle that ends with the stop is announced still"
    learn,watch = learner(4),Watch()
    learn.fit(6, cbs=[CycleScheduler(lr=CosineRestarts(6, lr_max=1e-9)), watch, EarlyStoppingCallback(min_delta=1., patience=2)])
    assert watch.ends==[4,8,12] and len(learn.recorder.values)==3

def test_save_model(tmp_path):
    learn,watch = learner(4, path=tmp_path),Watch()
    learn.fit(4, cbs=[CycleScheduler(lr=CosineRestarts(2, 2, lr_max=.1)), watch, SaveModelCallback()])
    best = min(o[1] for o in learn.recorder.values)
    assert (tmp_path/'models/model.pth').is_file() and watch.ends==[8,16] and learn.validate()[0]==pytest.approx(best)

def test_reduce_lr_on_plateau():
    "Its lr holds till the next batch: the schedule goes on"
    learn,watch = learner(4),Watch()
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), watch, ReduceLROnPlateau(min_delta=1e9, patience=1)])
    assert np.array_equal(watch.curve(), lr2.values(4))

def test_lr_find_with_an_attached_scheduler(tmp_path):
    for cb in CycleScheduler(lr=lr2), SGDR(.01), CLR(.01):
        learn = learner(10, path=tmp_path, cbs=cb)
        before = weights(learn)
        learn.lr_find(num_it=10, show_plot=False)
        assert np.array(learn.recorder.lrs)==pytest.approx(1e-7*1e8**(np.arange(len(learn.recorder.lrs))/10)) and same(before, weights(learn))
        learn.fit(2)
        assert learn.recorder.hps['lr'][0]==(.0025 if isinstance(cb, CLR) else .01) and len(learn.recorder.hps['lr'])==20

@pytest.mark.parametrize('cb', [SGDR(.01), CLR(.01),
    CycleScheduler(lr=lr2)])
def test_validate_with_an_attached_scheduler(cb):
    learn = learner(5, cbs=cb)
    assert len(learn.validate())==1 and learn.get_preds()[0].shape==(32,1)

def test_validate_keeps_the_recorded_values():
    learn = learner(5, cbs=SGDR(.01))
    learn.fit(2)
    learn.validate()
    assert len(learn.recorder.hps['lr'])==10

def test_validate_leaves_the_optimizer_alone():
    learn = learner(5, cbs=SGDR(.01))
    learn.create_opt()
    learn.validate()
    assert learn.opt.hypers[0]['lr']==learn.lr

@pytest.mark.parametrize('cb', [CycleScheduler(lr=lr2, mom=mom2), SGDR(.01, moms=(.8,.9)), CLR(slice(.01))])
@pytest.mark.parametrize('fitted', [False,True])
def test_pickle_a_learner(cb, fitted):
    learn = learner(4, cbs=pickle.loads(pickle.dumps(cb)))
    if fitted: learn.fit(2)
    new,watch = pickle.loads(pickle.dumps(learn)),Watch()
    torch.manual_seed(1)
    new.fit(2, cbs=watch)
    torch.manual_seed(1)
    learn.fit(2)
    assert len(watch.batches)==8 and same(weights(learn), weights(new))

def test_plot_sched():
    import matplotlib.pyplot as plt
    learn = learner(5)
    learn.fit(2, cbs=CycleScheduler(lr=lr2, mom=mom2))
    learn.recorder.plot_sched()
    assert [ax.get_ylabel() for ax in plt.gcf().axes]==['lr','mom']
    assert np.array_equal(plt.gcf().axes[0].lines[0].get_ydata(), lr2.values(5))
    plt.close('all')

def test_hps_beside_a_param_scheduler():
    learn = learner(5)
    learn.fit(2, cbs=[CycleScheduler(lr=lr2), ParamScheduler({'mom': SchedLin(.9, .8)})])
    assert learn.recorder.hps.keys()=={'lr','mom'} and learn.recorder.hps['mom'][0]==.9

# What is refused

def refused(match, *cbs, n_epoch=2, make=learner, err=ValueError, **kw):
    learn = make(5, **kw)
    before = weights(learn)
    with pytest.raises(err, match=match): learn.fit(n_epoch, cbs=list(cbs))
    assert same(before, weights(learn)) and not [o for o in cbs if o in learn.cbs]
    learn.fit(1)

def test_two_schedulers_of_one():
    both = 'only one scheduler may drive `lr` in a fit'
    refused(f'{both}, got CycleScheduler and CycleScheduler', CycleScheduler(lr=lr2), CycleScheduler(lr=lr2))
    refused(f'{both}, got CycleScheduler and ParamScheduler', CycleScheduler(lr=lr2), ParamScheduler({'lr': SchedLin(1, 2)}))
    refused(both, SGDR(.01), CycleScheduler(lr=lr2))
    refused('may drive `mom`', CycleScheduler(lr=lr2, mom=mom2), ParamScheduler({'mom': SchedLin(.8, .9)}))

@pytest.mark.parametrize('cbs', [lambda: [SGDR(.01), CLR(.01)], lambda: [SGDR(.01), SGDR(.02)], lambda: [CycleScheduler(lr=lr2), SGDR(.01)]])
def test_two_everyday_forms(cbs): refused('only one scheduler may drive `lr`', *cbs())

@pytest.mark.parametrize('cb', [SGDR(.01), CycleScheduler(lr=lr2)])
def test_attached_scheduler_and_other_fits(cb):
    learn = learner(5, cbs=cb)
    for f in learn.fit_one_cycle, learn.fit_flat_cos:
        with pytest.raises(ValueError, match='only one scheduler may drive `lr`'): f(2)
    if isinstance(cb, SGDR): return
    with pytest.raises(ValueError, match='only one scheduler may drive `lr`'): learn.fit_sgdr(2, cycle_mult=1)

def test_unknown_hyper_parameter():
    refused('`foo` is not a hyper-parameter that this optimizer uses: it uses lr, mom, wd', CycleScheduler(foo=mom2))

@pytest.mark.parametrize('opt,name', [(SGD,'mom'), (SGD,'sqr_mom'), (partial(SGD, mom=.9),'eps'), (partial(adamw, opt=torch.optim.SGD),'sqr_mom')])
def test_hyper_parameter_that_no_step_reads(opt, name):
    learn = two_groups(5, opt)
    with pytest.raises(ValueError, match=f'`{name}` is not a hyper-parameter that this optimizer uses: it uses .*lr'):
        learn.fit(2, cbs=CycleScheduler(**{name: mom2}))

def test_moms_without_momentum():
    learn = two_groups(5, SGD)
    with pytest.raises(ValueError, match='`mom` is not a hyper-parameter'): learn.fit(2, cbs=SGDR(.01, moms=(.8,.9)))

@pytest.mark.parametrize('n_epoch', [1,3])
def test_length(n_epoch):
    refused(f'the schedule of `lr` lasts 2 epochs, the fit {n_epoch}: they must be equal', CycleScheduler(lr=lr2), n_epoch=n_epoch)

def test_length_of_the_others():
    refused('the schedule of `mom` lasts 2 epochs, the fit 3', CycleScheduler(lr=CosineRestarts(3, lr_max=.1), mom=mom2), n_epoch=3)
    refused('the schedule of `mom` lasts 1.5 epochs', CycleScheduler(lr=lr2, mom=CosineRestarts(1, 1.5, lr_max=.8, lr_min=.9)))

def test_length_beside_an_endless_one():
    refused('the schedule of `lr` lasts 3 epochs, the fit 2', CycleScheduler(mom=CosineRestarts(None, lr_max=.8, lr_min=.9), lr=CosineRestarts(3, lr_max=.1)))

@pytest.mark.parametrize('sched,match', [(CosineRestarts(2, lr_max=1e-3, lr_min=1e-2), '`lr_max` must be above `lr_min`'),
    (CosineRestarts(2, lr_max=(.1,.01), lr_min=.05), '`lr_max` must be above `lr_min`'), (CosineRestarts(2, lr_max=.1, lr_min=.1), 'above `lr_min`'),
    (CosineRestarts(2, lr_max=.1, lr_min=-.1), '`lr_min` must be at least 0'), (Triangular(1, 1, .1, .2), 'above `lr_min`'), (StepDecay(-1.), 'lr')])
def test_bounds_of_the_lr(sched, match): refused(match, CycleScheduler(lr=sched), make=two_groups)

def test_peak_that_decays_below_the_minimum():
    refused('lr_min', CycleScheduler(lr=CosineRestarts(3, lr_max=.01, lr_min=.005, cycle_decay=.4)), n_epoch=3)

def test_groups():
    refused('the schedule of `lr` has values for 3 parameter groups, the optimizer has 2', CycleScheduler(lr=CosineRestarts(2, lr_max=(1,2,3))), make=two_groups)

def test_empty_cycles(): refused('each cycle needs at least one batch', CycleScheduler(lr=CosineRestarts(20, .1, lr_max=.1)))

@pytest.mark.parametrize('v', [.1, None, 'cosine', CosineRestarts, lambda x: x])
def test_not_a_schedule(v):
    with pytest.raises(TypeError, match='`lr` must be a schedule such as'): CycleScheduler(lr=v)

# SGDR and CLR

@pytest.mark.parametrize('cb,sched', [
    (SGDR(.01), CosineRestarts(None, lr_max=.01)),
    (SGDR(slice(1e-3,1e-2), 1, 2, 1e-4, .5, .1), CosineRestarts(None, 1, 2, (1e-3,1e-2), 1e-4, .5, .1)),
    (CLR(.01), Triangular(None, 2, .01)),
    (CLR([1e-3,1e-2], (1e-4,1e-3), .7, 'triangular2'), Triangular(None, .7, (1e-3,1e-2), (1e-4,1e-3), 'triangular2')),
    (CLR(.01, step_size=1, mode='exp_range', gamma=.99), Triangular(None, 1, .01, mode='exp_range', gamma=.99))])
@pytest.mark.parametrize('n_epoch', [1,5])
def test_everyday(cb, sched, n_epoch):
    "They cycle for as long as the fit lasts; a second fit begins anew"
    learn = two_groups(6)
    for _ in range(2):
        watch = Watch()
        learn.fit(n_epoch, cbs=[cb, watch])
        want = sched.values(6, 6*n_epoch)
        assert np.array_equal(watch.curve(), want if want.ndim==2 else np.stack([want]*2, 1))
    ends = [o for o in sched.bounds(6, 6*n_epoch+1)[1:-1] if o<=6*n_epoch]
    assert watch.ends==ends

@pytest.mark.parametrize('cb', [SGDR(None), CLR(None)])
def test_everyday_default_lr(cb):
    learn,watch = learner(4, lr=3e-3),Watch()
    learn.fit(2, cbs=[cb, watch])
    assert watch.curve().max()<=3e-3 and watch.curve()[0]==(3e-3 if isinstance(cb, SGDR) else 3e-3/4)

@pytest.mark.parametrize('cb', [SGDR(.01, moms=(.8,.95)), CLR(.01, moms=(.8,.95), step_size=1)])
def test_moms(cb):
    "Momentum is the first value where the lr is highest, the other where it is lowest"
    learn,watch = learner(8),Watch()
    learn.fit(2, cbs=[cb, watch])
    lr,mom = watch.curve(),watch.curve('mom')
    lo = 0. if isinstance(cb, SGDR) else .01/4
    assert mom==pytest.approx(.95 + (.8-.95)*(lr-lo)/(.01-lo))

@pytest.mark.parametrize('f,err', [
    (lambda: SGDR(.1, cycle_len=0),ValueError), (lambda: SGDR(.1, cycle_mult=.5),ValueError), (lambda: SGDR(.1, warmup_pct=1),ValueError),
    (lambda: CLR(.1, step_size='2'),TypeError), (lambda: CLR(.1, mode='up'),ValueError), (lambda: CLR(.1, mode='exp_range'),ValueError)])
def test_everyday_errors_come_at_the_call(f, err):
    with pytest.raises(err, match='`'): f()

# Lrs per group

@pytest.mark.parametrize('lr,want', [(None,1e-3), (.1,.1), (slice(.1),(.01,.1)), (slice(1e-3,1e-1),(1e-3,1e-1)), ([.1,.2],(.1,.2)), (np.array([.1,.2]),(.1,.2)),
    ((.1,.1),.1), ([.1],.1), (1,1)])
def test_peak_lrs(lr, want):
    learn = two_groups(3, lr=1e-3)
    assert peak_lrs(learn, lr)==(pytest.approx(want) if isinstance(want, tuple) else want)

def test_peak_lrs_default_slice(): assert peak_lrs(two_groups(3, lr=slice(1e-4,1e-2)), None)==pytest.approx((1e-4,1e-2))

@pytest.mark.parametrize('lr', [0, -1, np.nan, np.inf, 'high', [.1,0]])
def test_bad_peak_lrs(lr):
    with pytest.raises(ValueError, match='`lr_max` must be finite and above 0, got'): peak_lrs(two_groups(3), lr)

@pytest.mark.parametrize('lr', [[.1,.2,.3], ()])
def test_peak_lrs_of_other_groups(lr):
    with pytest.raises(ValueError, match=f'`lr_max` must have one value, or one for each of the 2 parameter groups, got {len(lr)}'): peak_lrs(two_groups(3), lr)

@pytest.mark.parametrize('lr', [np.float32(.01), np.array([.01,.02], dtype=np.float32)])
def test_peak_lrs_float32(lr): assert np.array(peak_lrs(two_groups(3), lr))==pytest.approx(lr)

def test_group_lrs():
    learn = two_groups(3)
    assert learn.group_lrs(.09)==pytest.approx([.03,.09]) and learn.group_lrs(1., 10)==pytest.approx([.1,1])
    assert learn.group_lrs(.1, .5)==pytest.approx([.2,.1])
    for r in 0,-1,float('nan'):
        with pytest.raises(ValueError, match='`ratio` must be a number above 0, got'): learn.group_lrs(.1, r)
    watch = Watch()
    learn.fit(1, cbs=[SGDR(learn.group_lrs(.09)), watch])
    assert watch.curve()[0]==pytest.approx([.03,.09])

def test_cycle_hypers():
    learn = two_groups(3)
    got = cycle_hypers(learn, CosineRestarts, .1, (.8,.9), n_cycles=2, lr_min=.01, cycle_decay=.5, warmup_pct=.1)
    assert got==dict(lr=CosineRestarts(2, lr_max=.1, lr_min=.01, cycle_decay=.5, warmup_pct=.1), mom=CosineRestarts(2, lr_max=.8, lr_min=.9, warmup_pct=.1))
    assert list(cycle_hypers(learn, Triangular, .1, None, n_cycles=2))==['lr']

@pytest.mark.parametrize('moms', [(.9,), (.8,.9,.8), (.8,1), (-.1,.9), (np.nan,.9)])
def test_bad_moms(moms):
    with pytest.raises(ValueError, match='`moms` must be two momenta from 0 to below 1'): cycle_hypers(learner(3), CosineRestarts, .1, moms, n_cycles=1)

@pytest.mark.parametrize('moms', [.9, ('a','b'), (None,.9)])
def test_moms_of_other_types(moms):
    with pytest.raises((ValueError,TypeError), match='`moms` must be'): cycle_hypers(learner(3), CosineRestarts, .1, moms, n_cycles=1)

def test_split_is_what_the_groups_are(): assert [len(o) for o in split(two_groups(3).model)]==[2,2]
