"`snapshots`: what is kept at a cycle's end, what comes back, and when training stops"
import json, numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException, CancelValidException
from fastai.learner import AvgMetric, mk_metric
from fastai.metrics import accuracy, error_rate
from fastai_clr import fit # Patches Learner; chkstyle: ignore
from fastai_clr.cycles import SGDR, CycleScheduler
from fastai_clr.schedules import CosineRestarts
from fastai_clr.snapshots import SnapshotSaver, StopOnOverfit, _direction
from learners import Cancel, Watch, learner, same, two_groups, weights

CR = CosineRestarts

def folder(path, name='run'): return path/'models/snapshots'/name

class Script(Callback):
    "Overwrite a value of each epoch's row by what it is to be"
    order = 51
    def __init__(self, values, col=1): self.vals,self.col = values,col
    def after_epoch(self): self.learn.recorder.values[-1][self.col] = self.vals[self.learn.epoch]

@pytest.fixture
def fitted(tmp_path):
    "A learner with three snapshots, and what the callback saw at the ends of the cycles"
    learn,watch = learner(5, path=tmp_path),Watch()
    learn.fit(7, cbs=[CycleScheduler(lr=CR(3, 1, 2, .02)), SnapshotSaver('run'), watch])
    return learn,watch

# Saving

def test_files(fitted, tmp_path):
    learn,watch = fitted
    assert sorted(o.name for o in folder(tmp_path).iterdir())==[f'cycle-{i:03d}.{e}' for i in range(3) for e in ('json','pth')]
    for i,state in enumerate(watch.states): assert same(torch.load(folder(tmp_path)/f'cycle-{i:03d}.pth', weights_only=True), state)
    assert not same(watch.states[0], watch.states[1]) and same(watch.states[2], weights(learn))

def test_info(fitted, tmp_path):
    learn,_ = fitted
    for i,(epoch,batches) in enumerate([(0,5), (2,15), (6,35)]):
        info = json.loads((folder(tmp_path)/f'cycle-{i:03d}.json').read_text(encoding='utf-8'))
        row = learn.recorder.values[epoch]
        assert info==dict(cycle=i, epoch=epoch, batches=batches, train_loss=row[0], valid_loss=row[1], schedule=repr(CR(3, 1, 2, .02)))

def test_metrics_are_written(tmp_path):
    learn = learner(3, path=tmp_path, metrics=[lambda x,y: (x-y).abs().mean(), lambda x,y: torch.tensor(2.)])
    learn.metrics[0].func.__name__,learn.metrics[1].func.__name__ = 'mae','two'
    learn.fit_sgdr(1, lr_max=.01, snapshots='run')
    info = learn.snapshots('run').iloc[0]
    assert info['mae']==pytest.approx(learn.recorder.values[-1][2]) and info['two']==2

def test_nan_loss_is_written(tmp_path):
    learn = learner(3, path=tmp_path)
    learn.fit_sgdr(1, lr_max=1e30, snapshots='run')
    assert not np.isfinite(learn.snapshots('run')['valid_loss'][0])

def test_cycles_inside_epochs(tmp_path):
    "The weights are those after the cycle's last batch; there are no losses where an epoch isn't over"
    learn,watch = learner(10, path=tmp_path),Watch()
    learn.fit_sgdr(3, .5, .02, 1, cbs=watch, snapshots='run')
    df = learn.snapshots('run')
    assert list(df['batches'])==watch.ends==[5,10,15] and list(df['epoch'])==[0,0,1]
    assert df['valid_loss'].isna().tolist()==[True,False,True]
    for i,state in enumerate(watch.states): assert same(weights(learn.load_snapshot('run', i)), state)

def test_attached_to_sgdr(tmp_path):
    learn = learner(4, path=tmp_path, cbs=SGDR(.01))
    learn.fit(3, cbs=SnapshotSaver('run'))
    assert len(learn.snapshots('run'))==3

def test_stopped_midway(tmp_path):
    "What was saved till then is there, and whole"
    learn = learner(4, path=tmp_path)
    learn.fit_sgdr(3, lr_max=.01, cycle_mult=1, snapshots='run', cbs=Cancel('after_batch', CancelFitException, lambda o: (o.epoch,o.iter)==(2,1)))
    assert list(learn.snapshots('run')['cycle'])==[0,1]

@pytest.mark.parametrize('at', ['save','replace'])
def test_failing_write_leaves_nothing(tmp_path, monkeypatch, at):
    "Neither half a file under a snapshot's name nor a temporary one"
    learn,real = learner(3, path=tmp_path),torch.save
    def save(o, f, *args, **kw):
        if at=='save': f.write_bytes(b'half')
        real(o, f, *args, **kw)
        raise OSError(28, 'No space left on device')
    def replace(a, b): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(*((torch, 'save', save) if at=='save' else ('fastai_clr.snapshots.os.replace', replace)))
    with pytest.raises(OSError): learn.fit_sgdr(1, lr_max=.01, snapshots='run')
    assert not list(folder(tmp_path).iterdir())
    monkeypatch.undo()
    learn.fit_sgdr(1, lr_max=.01, snapshots='run')
    assert len(learn.snapshots('run'))==1, 'an empty folder is free'

def test_a_crash_never_damages_the_last_snapshot(tmp_path, monkeypatch):
    learn,real,watch = learner(3, path=tmp_path),torch.save,Watch()
    def save(o, f, *args, **kw):
        if 'cycle-001' in str(f): raise RuntimeError('crash')
        real(o, f, *args, **kw)
    monkeypatch.setattr(torch, 'save', save)
    with pytest.raises(RuntimeError, match='crash'): learn.fit_sgdr(2, lr_max=.01, cycle_mult=1, snapshots='run', cbs=watch)
    assert sorted(o.name for o in folder(tmp_path).iterdir())==['cycle-000.json','cycle-000.pth']
    assert same(weights(learn.load_snapshot('run')), watch.states[0])

def test_names_that_are_there(fitted, tmp_path):
    learn,_ = fitted
    before = {o.name: o.read_bytes() for o in folder(tmp_path).iterdir()}
    state = weights(learn)
    with pytest.raises(ValueError, match=f"`snapshots` named 'run' are there already: choose another name, or delete {folder(tmp_path)}"):
        learn.fit_sgdr(1, lr_max=.1, snapshots='run')
    assert {o.name: o.read_bytes() for o in folder(tmp_path).iterdir()}==before and same(state, weights(learn))
    learn.fit_sgdr(1, lr_max=.1, snapshots='other')
    assert len(learn.snapshots('other'))==1 and len(learn.snapshots('run'))==3

@pytest.mark.parametrize('name', ['../x', '', '.x', 'a/b', '..', '.', '/x', 'a/', '/', 3, True, b'x'])
def test_bad_names(tmp_path, name):
    learn = learner(3, path=tmp_path)
    for f in lambda: learn.fit_sgdr(1, snapshots=name), lambda: learn.snapshots(name), lambda: learn.load_snapshot(name):
        with pytest.raises(ValueError, match='`snapshots` must be a plain name, without path separators or a leading dot, got'): f()
    assert not list(tmp_path.rglob('*.pth'))

@pytest.mark.parametrize('name', ['run', 'a b', 'lr=1e-3', 'größe', 'x.y'])
def test_good_names(tmp_path, name):
    learn = learner(2, path=tmp_path)
    learn.fit_sgdr(1, snapshots=name)
    assert len(learn.snapshots(name))==1 and folder(tmp_path, name).is_dir()

def test_model_dir(tmp_path):
    learn = learner(2, path=tmp_path, model_dir='kept/here')
    learn.fit_sgdr(1, snapshots='run')
    assert (tmp_path/'kept/here/snapshots/run/cycle-000.pth').is_file()

# Listing and loading

def test_listing(fitted):
    learn,_ = fitted
    df = learn.snapshots('run')
    assert isinstance(df, pd.DataFrame) and list(df.columns)==['cycle','epoch','batches','train_loss','valid_loss','schedule']
    assert list(df['cycle'])==[0,1,2] and list(df['batches'])==[5,15,35]

def test_loading(fitted):
    learn,watch = fitted
    for i in 1,0,2: assert learn.load_snapshot('run', i) is learn and same(weights(learn), watch.states[i])
    learn.load_snapshot('run', 0)
    assert same(weights(learn.load_snapshot('run')), watch.states[2]), 'the last one by default'

@pytest.mark.parametrize('cycle', [3, -1, '0', 1.5])
def test_wrong_cycle(fitted, cycle):
    learn,_ = fitted
    before = weights(learn)
    with pytest.raises(ValueError, match=r"`cycle` must be one of \[0, 1, 2\] for the snapshots 'run', got"): learn.load_snapshot('run', cycle)
    assert same(before, weights(learn))

def test_there_are_none(tmp_path):
    learn = learner(2, path=tmp_path)
    for f in learn.snapshots, learn.load_snapshot:
        with pytest.raises(FileNotFoundError, match="no snapshots named 'run' in"): f('run')

def test_loading_runs_no_code(fitted, tmp_path):
    learn,_ = fitted
    torch.save(Watch(), folder(tmp_path)/'cycle-002.pth')
    with pytest.raises(Exception, match='(?i)weights.only'): learn.load_snapshot('run')

def test_another_model(fitted, tmp_path):
    fitted[0]
    other = two_groups(2, path=tmp_path)
    with pytest.raises(RuntimeError, match='state_dict'): other.load_snapshot('run')

def test_more_than_999_cycles_stay_in_order(tmp_path):
    learn = learner(2, path=tmp_path)
    learn.fit_sgdr(1, snapshots='run')
    d = folder(tmp_path)
    for i in 999,1000,1001: (d/f'cycle-{i:03d}.json').write_text(json.dumps(dict(cycle=i)))
    assert list(learn.snapshots('run')['cycle'])==[0,999,1000,1001]

# Stopping on over-fitting

def stopped(vals, patience=1, n_cycles=None, col=1, cycle_len=1, **kw):
    "Fit with `vals` as the monitored values of the epochs"
    learn,watch = learner(4),Watch()
    sched = CR(n_cycles or len(vals)//cycle_len, cycle_len, lr_max=.05)
    learn.fit(int(sched.n_epochs), cbs=[CycleScheduler(lr=sched), Script(vals, col), StopOnOverfit(patience, **kw), watch])
    return learn,watch

@pytest.mark.parametrize('vals,patience,n,best', [
    ([3,2,1,2,0,0], 1, 4, 2), ([3,2,1,2,0,0], 2, 6, 4), ([1,2,3,4], 1, 2, 0), ([1,2,3,4,5], 3, 4, 0),
    ([4,3,2,1], 1, 4, 3), ([2,2,1], 1, 2, 0), ([3,4,2,3,4], 2, 5, 2), ([1,2,3,0], 3, 4, 3),
    ([float('nan'),1,2], 1, 1, None), ([float('nan'),1,2,3], 2, 4, 1), ([1,float('nan'),0], 1, 2, 0), ([1,float('inf'),.5,2], 2, 4, 2),
    ([float('nan')]*3, 2, 2, None)])
def test_patience(vals, patience, n, best):
    "Stops after so many cycles without a better value, and the best cycle's weights come back bitwise"
    learn,watch = stopped(vals, patience)
    rec = learn.recorder
    assert len(rec.values)==n and rec.best_epoch==best
    assert same(weights(learn), [*watch.states, weights(learn)][-1 if best is None else best])
    assert (rec.stopped is not None)==(n<len(vals))   # a fit that came to its own end was not stopped

def test_watch_saw_the_last_cycle_too():
    "The callback that copies the weights comes after the one that stops; the last state is not among them"
    learn,watch = stopped([1,2,3])
    assert len(learn.recorder.values)==2 and len(watch.states)==1 and same(weights(learn), watch.states[0])

def test_ends_by_itself_with_the_last_cycle_not_the_best():
    learn,watch = stopped([3,1,2], patience=2)
    assert learn.recorder.stopped is None and learn.recorder.best_epoch==1
    assert same(weights(learn), watch.states[1]) and not same(watch.states[1], watch.states[2])

def test_whole_cycles_count():
    "Epochs inside a cycle may be worse, as long as its end is better"
    learn,_ = stopped([1,3, 9,2, 9,1, 0,5], cycle_len=2)
    assert learn.recorder.best_epoch==5 and len(learn.recorder.values)==8

def test_message():
    learn,_ = stopped([3,1,2.5,0])
    assert learn.recorder.stopped=='stopped after cycle 2 (epoch 2): valid_loss was 2.5, the best was cycle 1 with 1'
    learn,_ = stopped([float('nan'),1])
    assert learn.recorder.stopped=='stopped after cycle 0 (epoch 0): valid_loss was nan, no cycle gave a finite value'

def test_batchnorm_and_integers_come_back(tmp_path):
    from torch import nn
    learn = learner(4, path=tmp_path)
    learn.model = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    watch = Watch()
    learn.fit_sgdr(3, lr_max=.05, cycle_mult=1, patience=2, cbs=[Script([1,2,3]), watch])
    assert same(weights(learn), watch.states[0]) and weights(learn)['1.num_batches_tracked']==4

@pytest.mark.parametrize('monitor,comp,vals,best', [('train_loss',None,[2,1,3],1), ('valid_loss',np.greater,[2,3,1],1), ('train_loss',np.less,[2,1,3],1)])
def test_monitor_and_comp(monitor, comp, vals, best):
    assert stopped(vals, col=monitor=='valid_loss', monitor=monitor, comp=comp)[0].recorder.best_epoch==best

def metric(name, f=lambda x,y: torch.tensor(0.)):
    m = AvgMetric(f)
    f.__name__ = name
    return m

@pytest.mark.parametrize('name,vals,best', [('accuracy',[.5,.7,.6],1), ('error_rate',[.5,.3,.4],1), ('rmse',[5,3,4],1), ('perplexity',[5,3,4],1), ('dice',[.5,.7,.6],1)])
def test_metrics(name, vals, best):
    "The way a metric goes is known for fastai's: rmse and perplexity are lower, the better"
    learn,watch = learner(4, metrics=metric(name, lambda x,y: torch.tensor(0.))),Watch()
    learn.fit_sgdr(3, lr_max=.01, cycle_mult=1, patience=1, monitor=name, cbs=[Script(vals, 2), watch])
    assert learn.recorder.best_epoch==best and same(weights(learn), watch.states[best])

@pytest.mark.parametrize('name,better', [('valid_loss',np.less), ('train_loss',np.less), (error_rate.__name__,np.less), (accuracy.__name__,np.greater),
    ('mse',np.less), ('rmse',np.less), ('mae',np.less), ('perplexity',np.less), ('f1_score',np.greater), ('roc_auc_score',np.greater),
    ('matthews_corrcoef',np.greater), ('hamming_loss',np.less), ('brier_score',np.less), ('r2_score',np.greater)])
def test_direction(name, better):
    assert _direction(name, None) is better
    for c in np.less, np.greater: assert _direction(name, c) is c

def test_direction_of_all_of_fastais_metrics():
    "But for the base classes, and what only makes metrics of other functions"
    import fastai.metrics as m
    not_metrics = {'AccumMetric','skm_to_fastai','optim_metric','ActivationType'}
    for name in set(m.__all__)-not_metrics:
        o = getattr(m, name)
        try: o = o() if isinstance(o, type) or name[0].isupper() else o
        except TypeError: continue # It needs arguments, such as another metric
        assert _direction(mk_metric(o).name, None) in (np.less,np.greater), name

def test_direction_of_another():
    with pytest.raises(ValueError, match="`comp` is needed for `monitor='mine'`: np.less if lower is better, np.greater"): StopOnOverfit(1, 'mine')
    assert StopOnOverfit(1, 'mine', np.greater).better is np.greater

@pytest.mark.parametrize('comp', [np.equal, min, 'less', 1])
def test_bad_comp(comp):
    with pytest.raises(ValueError, match='`comp` must be np.less, np.greater or None, got'): StopOnOverfit(comp=comp)

@pytest.mark.parametrize('patience', [0, -1, 1.5, True, '1', None])
def test_bad_patience(patience):
    with pytest.raises(ValueError, match='`patience` must be a whole number of cycles, at least 1, got'): StopOnOverfit(patience)

def test_unknown_monitor():
    learn = learner(3, metrics=metric('mae'))
    with pytest.raises(ValueError, match='`monitor` must be one of train_loss, valid_loss, mae, got \'accuracy\''):
        learn.fit_sgdr(2, patience=1, monitor='accuracy')
    learn.fit(1)

@pytest.mark.parametrize('monitor', ['epoch','time'])
def test_monitor_that_is_no_measure(monitor):
    with pytest.raises(ValueError, match='`monitor` must be one of'): learner(3).fit_sgdr(1, patience=1, monitor=monitor, comp=np.less)

@pytest.mark.parametrize('cycle_len,mult', [(.5,1), (1.5,1), (1,1.5), (.3,1)])
def test_cycles_inside_epochs_are_refused(cycle_len, mult):
    learn = learner(10)
    before = weights(learn)
    with pytest.raises(ValueError, match='`patience` needs cycles that end with an epoch, where valid_loss is measured'):
        learn.fit_sgdr(3, cycle_len, .1, mult, patience=1)
    assert same(before, weights(learn))

def test_endless_schedules_are_fine():
    learn = learner(3)
    learn.fit(4, cbs=[SGDR(.01), StopOnOverfit(1), Script([3,2,9,9])])
    assert len(learn.recorder.values)==3 and learn.recorder.best_epoch==1

@pytest.mark.parametrize('event,ex', [('after_batch',CancelEpochException), ('before_validate',CancelValidException)])
def test_an_epoch_that_was_not_validated(event, ex):
    "No value is no better value"
    learn = learner(4)
    learn.fit_sgdr(3, lr_max=.01, cycle_mult=1, patience=2, cbs=Cancel(event, ex, lambda o: o.epoch==1))
    assert learn.recorder.best_epoch in (0,2)

def test_with_snapshots(tmp_path):
    "The snapshot of the cycle that stopped it is there as well"
    learn = learner(4, path=tmp_path)
    learn.fit_sgdr(5, lr_max=.05, cycle_mult=1, patience=1, snapshots='run', cbs=Script([2,1,3,0,0]))
    assert len(learn.snapshots('run'))==3
    best = weights(learn)
    assert same(best, weights(learn.load_snapshot('run', 1)))

def test_the_next_fit_knows_nothing_of_it():
    learn,_ = stopped([1,2,3])
    assert learn.recorder.stopped
    learn.fit_sgdr(2, patience=1, lr_max=1e-4, cycle_mult=1)
    assert learn.recorder.stopped is None
