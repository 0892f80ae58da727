"`snapshots`: what is kept at a cycle's end, what comes back, and when training stops"
import copy, gc, json, random, re, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, sklearn.metrics as skm, torch, torch.nn.functional as F
from fastai.callback.core import Callback, CancelEpochException, CancelFitException, CancelValidException
from fastai.callback.schedule import LRFinder
from fastai.data.core import DataLoaders, Datasets
from fastai.data.load import DataLoader
from fastai.learner import AvgMetric, Learner, load_learner, mk_metric
from fastai.losses import BaseLoss, BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai.metrics import F1Score, LossMetric, Perplexity, accuracy, error_rate
from fastcore.basics import noop
from fastcore.foundation import L
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset
from fastai_clr import fit # Patches Learner; chkstyle: ignore
from fastai_clr.cycles import SGDR, CycleScheduler
from fastai_clr.schedules import CosineRestarts
from fastai_clr.snapshots import SnapshotSaver, StopOnOverfit, _before_activation, _check_state, _direction, _inputs
from learners import Cancel, Script, Watch, learner, quiet, same, two_groups, weights

CR = CosineRestarts

def folder(path, name='run'): return path/'models/snapshots'/name

def test_a_sweep_is_no_fit_of_theirs(tmp_path):
    "`lr_find`, before anything was trained, with what belongs to the Learner"
    learn = learner(20, path=tmp_path, cbs=[SGDR(1e-2), SnapshotSaver('run'), StopOnOverfit()])
    learn.lr_find(num_it=20, show_plot=False)
    assert not list(tmp_path.rglob('cycle-*'))
    learn.fit(2)
    assert [o.name for o in sorted(folder(tmp_path).glob('*.pth'))]==['cycle-000.pth','cycle-001.pth'] and learn.recorder.best_epoch is not None
    learn.lr_find(num_it=20, show_plot=False)
    learn('before_fit'), learn('before_epoch'), learn('after_epoch'), learn('after_fit')   # as `tta` has it
    with pytest.raises(ValueError, match="named 'run' are there already"): learn.fit(1)

def test_a_sweep_by_a_finder_of_ones_own(tmp_path):
    "All callbacks agree on what a sweep is"
    class Finder(LRFinder): pass
    learn = learner(20, path=tmp_path, cbs=[SGDR(1e-2), SnapshotSaver('run'), StopOnOverfit()])
    was = weights(learn)
    learn.fit(2, cbs=Finder(num_it=20))
    assert not list(tmp_path.rglob('cycle-*')) and weights(learn)==was
    learn.fit(2)
    assert learn.recorder.best_epoch is not None and len(list(tmp_path.rglob('cycle-*.pth')))==2

class Counted(nn.Linear):
    "Its state holds more than tensors"
    seen = 0
    def forward(self, x):
        self.seen += self.training
        return super().forward(x)
    def get_extra_state(self): return {'seen': self.seen}
    def set_extra_state(self, state): self.seen = state['seen']

def test_a_model_whose_state_is_not_all_tensors(tmp_path):
    "Its snapshots, and the best cycle that comes back"
    learn = learner(5, path=tmp_path)
    learn.model = nn.Sequential(Counted(1, 1))
    with learn.no_logging(): learn.fit_sgdr(3, 1, 1e-2, 1, snapshots='run', patience=1, monitor='valid_loss', cbs=Script([.1,.2,.3]))
    assert learn.recorder.best_epoch==0 and learn.model[0].seen==5 and len(learn.recorder.values)==2
    assert learn.load_snapshot('run', 1).model[0].seen==10

def test_a_metric_that_asks_the_loss_function(tmp_path):
    class Loss(BaseLoss):
        def __init__(self): super().__init__(nn.MSELoss, floatify=True, is_2d=False)
        def __call__(self, *args, **kw):
            res = super().__call__(*args, **kw)
            self.part = 2*res
            return res
    learn = learner(5, path=tmp_path)
    learn.loss_func,learn.metrics = Loss(),L(LossMetric('part'))
    learn.fit_sgdr(2, 1, 1e-2, 1, snapshots='run')
    df = learn.snapshot_scores('run', average=False)
    assert df['part'].to_numpy()==pytest.approx(2*df['valid_loss'].to_numpy(), rel=1e-5)

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
    assert not list(tmp_path.rglob('cycle-*')) and not list(tmp_path.rglob('.cycle-*'))
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
    with pytest.raises(ValueError, match=f"`snapshots` named 'run' are there already: choose another name, pass `overwrite=True`, or delete {folder(tmp_path)}"):
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
    with pytest.raises(ValueError, match="can't be read .*(?i:weights.only)"): learn.load_snapshot('run')

def test_another_model(fitted, tmp_path):
    fitted[0]
    other = two_groups(2, path=tmp_path)
    before = weights(other)
    with pytest.raises(ValueError, match='is of another model than this one: it is without 0.bias, 0.weight, 1.bias, 1.weight; it has besides a, b'): other.load_snapshot('run')
    assert same(before, weights(other))

@pytest.mark.parametrize('n,said', [(5, 'it is without a0, a1, a2, a3, a4'), (6, 'it is without a0, a1, a2, a3, a4 and 1 more')])
def test_five_names_of_what_is_missing_are_told(n, said):
    with pytest.raises(ValueError, match=f'^the file is of another model than this one: {said}$'): _check_state({f'a{i}': torch.ones(1) for i in range(n)}, {}, 'the file')

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
        k = mk_metric(o).name
        assert _direction(k, None) is (np.less if re.search('loss|error|mse|mae|msle|rmspe|perplexity|brier', k) else np.greater), k

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

# Keeping some, and taking another's place

def names(path, name='run'): return sorted(o.name for o in folder(path, name).iterdir())

@pytest.mark.parametrize('keep,left', [(1,[3]), (2,[2,3]), (4,[0,1,2,3]), (9,[0,1,2,3])])
def test_keep(tmp_path, keep, left):
    learn,watch = learner(3, path=tmp_path),Watch()
    learn.fit_sgdr(4, 1, .02, 1, snapshots='run', keep=keep, cbs=watch)
    assert names(tmp_path)==[f'cycle-{i:03d}.{e}' for i in left for e in ('json','pth')] and list(learn.snapshots('run')['cycle'])==left
    for i in left: assert same(weights(learn.load_snapshot('run', i)), watch.states[i])

@pytest.mark.parametrize('keep', [0, -1, 1.5, True, '1'])
def test_bad_keep(tmp_path, keep):
    with pytest.raises(ValueError, match='`keep` must be a whole number of snapshots, at least 1, or None for all, got'): learner(2, path=tmp_path).fit_sgdr(1, snapshots='run', keep=keep)

@pytest.mark.parametrize('kw', [dict(keep=1), dict(overwrite=True)])
def test_keep_and_overwrite_are_for_snapshots(kw):
    with pytest.raises(ValueError, match='`keep` and `overwrite` are for `snapshots`: pass a name'): learner(2).fit_sgdr(1, **kw)

def test_overwrite(fitted, tmp_path):
    "The old ones stay until the first new one is whole, then go"
    learn,_ = fitted
    before = {o.name: o.read_bytes() for o in folder(tmp_path).iterdir()}
    with pytest.raises(KeyboardInterrupt): learn.fit_sgdr(2, 2, .01, 1, snapshots='run', overwrite=True, cbs=Cancel('after_batch', KeyboardInterrupt, lambda o: o.epoch==1))
    assert {o.name: o.read_bytes() for o in folder(tmp_path).iterdir()}==before
    learn.fit_sgdr(2, 1, .01, 1, snapshots='run', overwrite=True)
    assert names(tmp_path)==['cycle-000.json','cycle-000.pth','cycle-001.json','cycle-001.pth'] and (folder(tmp_path)/'cycle-000.pth').read_bytes()!=before['cycle-000.pth']

def test_a_run_that_failed_leaves_its_name_free(tmp_path):
    learn = learner(3, path=tmp_path)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError): learn.fit_sgdr(2, snapshots='run', cbs=Callback(after_batch=lambda self: 1/0))
    learn.fit_sgdr(1, snapshots='run')

def test_another_process_has_the_name(tmp_path):
    (tmp_path/'models/snapshots').mkdir(parents=True)
    code = "import sys\nfrom filelock import FileLock\nl = FileLock(sys.argv[1])\nl.acquire()\nprint('held', flush=True)\ninput()"
    p = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'models/snapshots/.run.lock')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline()=='held\n'
        learn = learner(2, path=tmp_path)
        before = weights(learn)
        for kw in {},dict(overwrite=True):
            with pytest.raises(ValueError, match="`snapshots` named 'run': another run is writing there now; choose another name"): learn.fit_sgdr(1, lr_max=.1, snapshots='run', **kw)
        assert same(before, weights(learn))
    finally:
        p.kill()
        p.wait()
    learn.fit_sgdr(1, snapshots='run')

def test_no_room(tmp_path, monkeypatch):
    "Said before training, from what all of them need"
    learn = two_groups(2, path=tmp_path)
    one = sum(o.numel()*o.element_size() for o in weights(learn).values())
    for n,kw,free in [(5,{},5*one), (5,dict(keep=2),3*one), (1,{},one)]:
        monkeypatch.setattr('fastai_clr.snapshots.shutil.disk_usage', lambda o: SimpleNamespace(free=free-1))
        with pytest.raises(OSError, match="`snapshots` named 'run' need .* MB, and .* has .* MB left: make room, or keep fewer"): learn.fit_sgdr(n, 1, .1, 1, snapshots='run', overwrite=True, **kw)
        monkeypatch.setattr('fastai_clr.snapshots.shutil.disk_usage', lambda o: SimpleNamespace(free=free))
        learn.fit_sgdr(n, 1, .1, 1, snapshots='run', overwrite=True, **kw)

def test_a_folder_that_cant_be_written(tmp_path):
    (tmp_path/'models').write_text('a file')
    learn = learner(2, path=tmp_path)
    before = weights(learn)
    with pytest.raises(OSError, match="`snapshots` can't be written to .* set `learn.path` or `learn.model_dir`"): learn.fit_sgdr(1, lr_max=.1, snapshots='run')
    assert same(before, weights(learn))

# Ensembles

class Two(nn.Module):
    "Two inputs, BatchNorm and dropout"
    def __init__(self, n):
        super().__init__()
        self.l = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(.2), nn.Linear(6, n))

    def forward(self, a, b): return self.l(torch.cat([a,b], 1))

X,Y = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)),torch.arange(50)%3
TARGETS = dict(softmax=(3, CrossEntropyLossFlat(), Y), sigmoid=(3, BCEWithLogitsLossFlat(), F.one_hot(Y).float()), none=(1, MSELossFlat(), Y[:,None].float()))

def tasks(kind, path, two=False, **kw):
    "A trained Learner with four snapshots named run"
    n,loss,y = copy.deepcopy(TARGETS[kind])
    torch.manual_seed(0)
    random.seed(0)
    ins = (X[:,:1],X[:,1:]) if two else (X,)
    sets = [TensorDataset(*[o[s] for o in (*ins,y)]) for s in (slice(0,30),slice(30,None))]
    dls = DataLoaders(*(DataLoader(o, bs=8, shuffle=s, drop_last=s, num_workers=0) for o,s in zip(sets, (True,False))))
    dls.n_inp = len(ins)
    model = Two(n) if two else nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(.2), nn.Linear(6, n))
    learn = quiet(Learner(dls, model, loss_func=loss, path=path, metrics=kw.pop('metrics', None)))
    learn.fit_sgdr(4, 1, .1, 1, snapshots='run', **kw)
    return learn

def by_hand(learn, cycles, shares, xs, n=1):
    "The mean of the activations of each model"
    model,res = copy.deepcopy(learn.model).eval(),0
    for c,w in zip(cycles, shares):
        model.load_state_dict(torch.load(folder(learn.path)/f'cycle-{c:03d}.pth'))
        with torch.no_grad(): out = model(*(x.to(next(model.parameters()).device) for x in xs)).cpu()
        res = res + w*{'CrossEntropyLoss': lambda o: o.softmax(1), 'BCEWithLogitsLoss': torch.sigmoid, 'MSELoss': lambda o: o}[type(learn.loss_func.func).__name__](out)
    return res

@pytest.mark.parametrize('two', [False,True])
@pytest.mark.parametrize('kind', TARGETS)
def test_an_ensemble_is_the_mean(tmp_path, kind, two):
    learn = tasks(kind, tmp_path, two)
    xs = [o[30:] for o in ((X[:,:1],X[:,1:]) if two else (X,))]
    before = weights(learn)
    weighted = dict(last=3, weights=[1,0,3]),[1,2,3],[.25,0,.75]
    for kw,cycles,shares in [({}, range(4), [.25]*4), (dict(last=1), [3], [1]), (dict(last=2), [2,3], [.5,.5]), weighted]:
        preds,targs = learn.snapshot_preds('run', **kw)
        torch.testing.assert_close(preds, by_hand(learn, cycles, shares, xs))
        assert torch.equal(targs, TARGETS[kind][2][30:]) and same(before, weights(learn))

def test_an_ensemble_on_other_data(tmp_path):
    learn = tasks('softmax', tmp_path)
    preds,targs = learn.snapshot_preds('run', ds_idx=0)
    torch.testing.assert_close(preds, by_hand(learn, range(4), [.25]*4, [X[:30]]))
    dl = DataLoader(TensorDataset(X[5:9], Y[5:9]), bs=3, num_workers=0)
    preds,targs = learn.snapshot_preds('run', dl=dl)
    torch.testing.assert_close(preds, by_hand(learn, range(4), [.25]*4, [X[5:9]]))
    assert torch.equal(targs, Y[5:9])

LOSSES = dict(softmax=lambda p,y: F.nll_loss(p.log(), y, reduction='none'), none=lambda p,y: ((p-y)**2).mean(1),
    sigmoid=lambda p,y: F.binary_cross_entropy(p, y, reduction='none').mean(1))

@pytest.mark.parametrize('kind', TARGETS)
def test_the_loss_of_an_ensemble(tmp_path, kind):
    "That of its mean probabilities, item by item"
    preds,targs,losses = tasks(kind, tmp_path).snapshot_preds('run', with_loss=True)
    torch.testing.assert_close(losses, LOSSES[kind](preds, targs), rtol=1e-4, atol=1e-5)

def test_the_loss_of_an_odd_activation(tmp_path):
    learn = tasks('none', tmp_path)
    learn.loss_func.activation = lambda o: o**3+7
    with pytest.raises(ValueError, match='whose activation is softmax, sigmoid or none'): learn.snapshot_preds('run', with_loss=True)
    learn.snapshot_preds('run')
    new = exported('none', tmp_path/'b')
    new.loss_func = learn.loss_func
    with pytest.raises(ValueError, match='whose activation is softmax, sigmoid or none'): new.export_ensemble('e.pkl')

def test_certain_predictions_have_a_finite_loss(tmp_path):
    "As those of a float that is 0 or 1"
    for kind in 'softmax','sigmoid':
        raw = _before_activation(TARGETS[kind][1], torch.tensor([[0.,1.,0.]]))
        assert torch.isfinite(raw).all()
        torch.testing.assert_close(TARGETS[kind][1].activation(raw), torch.tensor([[0.,1.,0.]]))

def test_memory_does_not_grow_with_snapshots(tmp_path, monkeypatch):
    "Models and predictions alive while the last snapshot predicts"
    learn,live = tasks('softmax', tmp_path),{}
    real = learn.get_preds
    def get_preds(*args):
        live[last] = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
        return real(*args)
    monkeypatch.setattr(learn, 'get_preds', get_preds)
    for last in 3,4: learn.snapshot_preds('run', last)
    assert live[4]<=live[3]

def test_weights_come_back_after_an_error(tmp_path):
    learn,n = tasks('softmax', tmp_path),[]
    before = weights(learn)
    class Fails(Callback):
        def after_validate(self):
            n.append(1)
            if len(n)==3: 1/0
    learn.add_cb(Fails())
    with pytest.raises(ZeroDivisionError): learn.snapshot_preds('run')
    assert len(n)==3 and same(before, weights(learn))

def test_a_loader_that_shuffles(tmp_path):
    learn = tasks('softmax', tmp_path)
    dl = torch.utils.data.DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    with pytest.raises(ValueError, match='`dl` gives its items in another order each time'): learn.snapshot_preds('run', dl=dl)

@pytest.mark.parametrize('last', [0, -1, 5, 1.5, True, '2'])
def test_bad_last(tmp_path, last):
    learn = tasks('softmax', tmp_path)
    before = weights(learn)
    for f in learn.snapshot_preds,learn.average_snapshots,learn.snapshot_scores,lambda n,last: learn.export_ensemble('x.pkl', n, last):
        with pytest.raises((ValueError,TypeError), match='`last` must be a whole number from 1 to the 4 snapshots|fastai exports'): f('run', last)
    assert same(before, weights(learn))

@pytest.mark.parametrize('ws', [[1], [1]*5, [0]*4, [1,1,1,-1], [1,1,1,float('nan')], [1,1,1,'1'], [True,'',None,1]])
def test_bad_weights(tmp_path, ws):
    with pytest.raises(ValueError, match='`weights` must be 4 numbers from 0 up, one a snapshot and not all 0, got'): tasks('softmax', tmp_path).snapshot_preds('run', weights=ws)

@pytest.mark.parametrize('f', ['snapshot_preds','average_snapshots','snapshot_scores','plot_snapshots','load_snapshot','snapshots'])
def test_unknown_names(tmp_path, f):
    learn = tasks('softmax', tmp_path)
    with pytest.raises(FileNotFoundError, match="no snapshots named 'other' in .*: there are run"): getattr(learn, f)('other')
    with pytest.raises(ValueError, match='`snapshots` must be a plain name'): getattr(learn, f)('../run')

@pytest.mark.parametrize('how,words', [('truncated',"can't be read"), ('missing','is gone'), ('other','is of another model than this one: it has in other shapes 0.weight')])
@pytest.mark.parametrize('f', ['snapshot_preds','average_snapshots','load_snapshot'])
def test_a_bad_file(tmp_path, f, how, words):
    "The Learner's weights stay"
    learn = tasks('softmax', tmp_path)
    file,before = folder(tmp_path)/'cycle-003.pth',weights(learn)
    if how=='truncated': file.write_bytes(file.read_bytes()[:99])
    elif how=='missing': file.unlink()
    else: torch.save({**before, '0.weight': torch.zeros(6, 5)}, file)
    with pytest.raises((ValueError,FileNotFoundError), match=words): getattr(learn, f)('run')
    assert same(before, weights(learn))

# An ensemble to hand on

BARE = """
import sys
sys.modules['fastai_clr'] = None   # as if it were not installed
import torch
from fastai.learner import load_learner
learn = load_learner(sys.argv[1])
preds = learn.get_preds(dl=learn.dls.test_dl(list(range(30, 50))))[0]
torch.save(preds, sys.argv[2])
assert 'fastai_clr.snapshots' not in sys.modules
"""

def exported(kind, path):
    learn,(n,loss,y) = tasks(kind, path),TARGETS[kind]
    data = Datasets(list(range(50)), [[X.__getitem__],[y.__getitem__]], splits=[range(30),range(30,50)])
    new = quiet(Learner(data.dataloaders(bs=8, num_workers=0), learn.model, loss_func=loss, path=path))
    new.snapshot_name = learn.snapshot_name
    return new

@pytest.mark.parametrize('kind', TARGETS)
def test_export(tmp_path, kind):
    "Predicts with the ensemble; the Learner is as before"
    learn = exported(kind, tmp_path)
    before,model,opt,splitter = weights(learn),learn.model,learn.opt,learn.splitter
    learn.export_ensemble('e.pkl', last=3, weights=[1,1,2])
    assert (learn.model,learn.opt,learn.splitter)==(model,opt,splitter) and same(before, weights(learn))
    opened = quiet(load_learner(tmp_path/'e.pkl'))
    torch.testing.assert_close(opened.get_preds(dl=learn.dls.valid)[0], by_hand(learn, [1,2,3], [.25,.25,.5], [X[30:]]), rtol=1e-5, atol=1e-5)
    learn.fit(1)

def test_export_opens_without_this_package(tmp_path):
    learn = exported('softmax', tmp_path)
    learn.export_ensemble(tmp_path/'e.pkl', 'run')
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', BARE, str(tmp_path/'e.pkl'), str(tmp_path/'preds.pth')], capture_output=True, text=True)
    assert p.returncode==0, p.stderr
    torch.testing.assert_close(torch.load(tmp_path/'preds.pth'), by_hand(learn, range(4), [.25]*4, [X[30:]]), rtol=1e-5, atol=1e-5)

def test_export_refuses(tmp_path):
    learn = tasks('softmax', tmp_path/'a', two=True)
    with pytest.raises(ValueError, match='for models of one input, and this one has 2'): learn.export_ensemble('e.pkl', 'run')
    with pytest.raises(TypeError, match='fastai exports Learners whose data are its own Datasets'): tasks('softmax', tmp_path/'b').export_ensemble('e.pkl', 'run')
    learn = exported('softmax', tmp_path/'c')
    del learn.snapshot_name
    with pytest.raises(ValueError, match='`name` is needed'): learn.export_ensemble('e.pkl')
    assert not list(tmp_path.rglob('*.pkl'))

# Averages

@pytest.mark.parametrize('last', [None,1,3])
@pytest.mark.parametrize('two', [False,True])
def test_an_average(tmp_path, two, last):
    "The mean of the weights by hand, BatchNorm by PyTorch's update_bn over the same batches"
    learn = tasks('softmax', tmp_path, two)
    states = [torch.load(folder(tmp_path)/f'cycle-{c:03d}.pth') for c in range(4)][-(last or 4):]
    ref = copy.deepcopy(learn.model)
    ref.load_state_dict({k: sum(s[k] for s in states)/len(states) if states[0][k].is_floating_point() else states[-1][k] for k in states[0]})
    rng,dl = torch.get_rng_state(),copy.deepcopy(learn.dls.train.rng)
    with torch.no_grad():
        class All(nn.Module):
            def __init__(self):
                super().__init__()
                self.m = ref
            def forward(self, xs): return self.m(*xs)
        update_bn([[tuple(b[:-1])] for b in learn.dls.train], All())
    torch.set_rng_state(rng)
    learn.dls.train.rng = dl
    assert learn.average_snapshots('run', last) is learn
    for k,v in learn.model.state_dict().items(): torch.testing.assert_close(v, ref.state_dict()[k], rtol=1e-5, atol=1e-6)
    assert torch.equal(rng, torch.get_rng_state())

def test_an_average_that_fails_leaves_all_as_it_was(tmp_path):
    learn = tasks('softmax', tmp_path)
    before = weights(learn)
    learn.dls.train.after_batch = lambda b: 1/0
    with pytest.raises(ZeroDivisionError): learn.average_snapshots('run')
    assert same(before, weights(learn))

@pytest.mark.parametrize('n,want', [(1,1), (2,1), (3,2)])
def test_inputs_of_loaders_that_do_not_tell_them(n, want):
    "All but the last of a batch are taken for inputs, and the only one for one"
    batch = tuple(torch.full((2,), i) for i in range(n))
    (got,), = _inputs(SimpleNamespace(model=nn.Linear(1, 1), dls=SimpleNamespace(train=[batch])))
    assert len(got)==want and all(torch.equal(a, b) for a,b in zip(got, batch))

# Scores

def test_scores(tmp_path):
    "Those of `validate` for single models, those of the predictions for ensembles; the Learner is as before"
    learn = tasks('softmax', tmp_path, metrics=[accuracy,F1Score(average='macro')])
    before,rng = weights(learn),torch.get_rng_state()
    df = learn.snapshot_scores('run')
    assert same(before, weights(learn)) and torch.equal(rng, torch.get_rng_state())
    assert list(df['kind'])==['snapshot']*4+['ensemble']*4+['average']*4 and list(df['first'])==[0,1,2,3]*3
    for c in range(4):
        learn.load_snapshot('run', c)
        assert df.iloc[c,2:].tolist()==pytest.approx(list(learn.validate()), abs=1e-6)
        preds,targs,losses = learn.snapshot_preds('run', 4-c, with_loss=True)
        row = df.iloc[4+c]
        assert row['valid_loss']==pytest.approx(float(losses.mean()), abs=1e-6) and row['accuracy']==pytest.approx(float((preds.argmax(1)==targs).float().mean()))
        assert row['f1_score']==pytest.approx(skm.f1_score(targs, preds.argmax(1), average='macro'))
        assert df.iloc[8+c,2:].tolist()==pytest.approx(list(learn.average_snapshots('run', 4-c).validate()), rel=.2, abs=.1)   # other batches for BatchNorm
    assert list(learn.snapshot_scores('run', 2, average=False)['kind'])==['snapshot']*2+['ensemble']*2

@pytest.mark.parametrize('ds_idx', [0,1])
def test_averages_without_batch_norm(tmp_path, ds_idx):
    "Which are those of so many snapshots, to the digit"
    learn = learner(5, path=tmp_path)
    learn.fit_sgdr(4, 1, .05, 1, snapshots='run')
    v = learn.snapshot_scores('run', ds_idx=ds_idx)['valid_loss']
    for c in range(4): assert v[8+c]==pytest.approx(learn.average_snapshots('run', 4-c).validate(ds_idx=ds_idx)[0], rel=1e-6)
    assert v[8:].nunique()==4

def test_scores_on_other_data(tmp_path):
    learn = tasks('softmax', tmp_path, metrics=accuracy)
    dl = DataLoader(TensorDataset(X[:30], Y[:30]), bs=10, num_workers=0)   # what it was trained on
    for kw in dict(ds_idx=0),dict(dl=dl):
        df = learn.snapshot_scores('run', average=False, **kw)
        for c in range(4): assert df.iloc[c,2:].tolist()==pytest.approx(list(learn.load_snapshot('run', c).validate(dl=dl)), rel=1e-5)

def test_monitor_with_metrics_of_the_training_set():
    learn = learner(3, metrics=metric('mae', lambda x,y: (x-y).abs().mean()))
    learn.recorder.train_metrics = True
    learn.fit_sgdr(2, 1, .01, 1, patience=2, monitor='train_mae', comp=np.less)
    assert learn.recorder.best_epoch is not None
    with pytest.raises(ValueError, match="one of train_loss, train_mae, valid_loss, valid_mae, got 'mae'"): learn.fit_sgdr(2, patience=2, monitor='mae')

def test_plots_in_figures_of_ones_own(tmp_path):
    learn,(ax,bx) = tasks('softmax', tmp_path, metrics=accuracy),plt.subplots(1, 2)[1]
    assert learn.plot_cycles(ax) is ax and len(ax.lines)==4
    assert learn.plot_snapshots('run', ax=bx, last=2, average=False) is bx and [len(o.get_xdata()) for o in bx.lines]==[2,2]

def test_plots(tmp_path):
    learn = tasks('softmax', tmp_path, metrics=accuracy)
    ax = learn.plot_cycles()
    assert len(ax.lines)==4 and [len(o.get_ydata()) for o in ax.lines]==[3]*4
    np.testing.assert_allclose(np.concatenate([o.get_ydata() for o in ax.lines]), [float(o) for o in learn.recorder.losses])
    df,ax = learn.snapshot_scores('run'),learn.plot_snapshots('run', 'accuracy')
    for line,kind in zip(ax.lines, ['snapshot','ensemble','average'], strict=True):
        np.testing.assert_allclose(line.get_ydata(), df.loc[df.kind==kind, 'accuracy'])
        assert list(line.get_xdata())==[0,1,2,3]
    with pytest.raises(ValueError, match="`metric` must be one of valid_loss, accuracy, got 'mae'"): learn.plot_snapshots('run', 'mae')
    with pytest.raises(ValueError, match='the recorder has no losses of cycles'): learn.plot_cycles()
    learn.fit(1)
    with pytest.raises(ValueError, match='the recorder has no losses of cycles'): learn.plot_cycles()

# What the odd Learner needs

def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = exported('softmax', Path('runs/one'))
    learn.export_ensemble('e.pkl', 'run')
    assert (tmp_path/'runs/one/e.pkl').is_file()

def test_sure_ensembles_are_numbers(tmp_path):
    "Ten shares of a tenth are a little more than one, of which there is no logit"
    for kind in 'sigmoid','softmax':
        learn = exported(kind, tmp_path/kind)
        for o in folder(tmp_path/kind).glob('*.pth'):
            state = torch.load(o)
            torch.save({**state, '4.weight': state['4.weight']*0, '4.bias': torch.tensor([40.,-40,40])}, o)
        learn.export_ensemble('e.pkl', 'run', weights=[.1,.1,.1,.7])
        preds = quiet(load_learner(tmp_path/kind/'e.pkl')).get_preds(dl=learn.dls.valid)[0]
        assert torch.isfinite(preds).all() and preds.min()>=0 and preds.max()<=1
        torch.testing.assert_close(preds, learn.snapshot_preds('run', weights=[.1,.1,.1,.7])[0], rtol=1e-5, atol=1e-5)

def test_an_export_has_nothing_of_this_package(tmp_path):
    "Also where a callback of it is attached to the Learner, which stays"
    learn = exported('softmax', tmp_path)
    learn.add_cb(SGDR(.01))
    learn.export_ensemble('e.pkl', 'run')
    assert any(isinstance(o, SGDR) for o in learn.cbs) and b'fastai_clr' not in (tmp_path/'e.pkl').read_bytes()

class Stateful(nn.Module):
    "Weights that are computed in each pass, and a `reset`, as in AWD_LSTM"
    def __init__(self):
        super().__init__()
        self.raw,self.l = nn.Parameter(torch.eye(3)),nn.Linear(4, 3)
    def reset(self): self.w = self.raw*1
    def forward(self, x): return self.l(x)@(self.raw*1 if self.training else self.w)

def test_models_that_cant_be_copied(tmp_path):
    "Averages go; an export is refused with a reason"
    learn = exported('softmax', tmp_path)
    learn.model = Stateful()
    learn.model.reset()
    learn.opt = None
    learn.fit_sgdr(3, 1, .01, 1, snapshots='odd')
    learn.model.reset()
    learn.snapshot_scores('odd')
    learn.average_snapshots('odd')
    with pytest.raises(TypeError, match="can't be exported of models with a state of their own"): learn.export_ensemble('e.pkl', 'odd')

def test_scores_are_those_of_the_loss(tmp_path):
    "Also of one with weights of classes, and of one that ignores some"
    for i,loss in enumerate([CrossEntropyLossFlat(weight=torch.tensor([1.,5,9])), CrossEntropyLossFlat(ignore_index=1)]):
        learn = tasks('softmax', tmp_path/str(i))
        learn.loss_func = loss
        df = learn.snapshot_scores('run', average=False)
        preds,targs = learn.load_snapshot('run', 2).get_preds(act=noop)
        assert df['valid_loss'][2]==pytest.approx(float(loss(preds, targs)), rel=1e-5)

def test_modules_are_as_before_an_average(tmp_path):
    "After Ctrl-C too: BatchNorm's momentum, and what trains"
    learn = tasks('softmax', tmp_path)
    learn.model.eval()
    learn.average_snapshots('run')
    assert learn.model[1].momentum==.1 and not any(m.training for m in learn.model.modules())
    learn.dls.train.after_batch = lambda b: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): learn.average_snapshots('run')
    assert learn.model[1].momentum==.1 and not any(m.training for m in learn.model.modules())

def test_training_after_an_average_or_scores_is_as_without(tmp_path):
    "The order in which the data are shuffled included"
    def go(path, f):
        learn = tasks('softmax', path)
        f(learn)
        learn.load_snapshot('run')
        learn.fit_sgdr(2, 1, .01, 1)
        return weights(learn)
    a = go(tmp_path/'a', noop)
    assert same(a, go(tmp_path/'b', lambda o: o.average_snapshots('run'))) and same(a, go(tmp_path/'c', lambda o: o.snapshot_scores('run')))

def test_metrics_that_look_at_the_loss(tmp_path):
    learn = tasks('softmax', tmp_path, metrics=Perplexity())
    df = learn.snapshot_scores('run', average=False)
    np.testing.assert_allclose(df['perplexity'], np.exp(df['valid_loss']), rtol=1e-5)

def test_several_inputs_by_fastais_rule(tmp_path):
    "Where the data don't say how many inputs there are, all but the last"
    learn = tasks('softmax', tmp_path, two=True)
    del learn.dls.n_inp
    assert learn.average_snapshots('run') is learn

def test_data_without_targets(tmp_path):
    learn = exported('softmax', tmp_path)
    dl = learn.dls.test_dl(list(range(30, 50)))
    torch.testing.assert_close(learn.snapshot_preds('run', dl=dl)[0], by_hand(learn, range(4), [.25]*4, [X[30:]]))
    with pytest.raises(ValueError, match='a loss needs targets, and `dl` has none'): learn.snapshot_preds('run', dl=dl, with_loss=True)
    shuffled = torch.utils.data.DataLoader(TensorDataset(X), batch_size=8, shuffle=True)
    with pytest.raises(ValueError, match="pass one that doesn't shuffle"): learn.snapshot_preds('run', dl=shuffled)

@pytest.mark.parametrize('kw', [dict(snapshots='s'), dict(patience=1)])
def test_metrics_that_are_no_numbers(tmp_path, kw):
    learn = tasks('softmax', tmp_path, metrics=F1Score(average=None))
    learn.fit_sgdr(2, 1, .01, 1, **kw)
    if 'snapshots' in kw: assert len(learn.snapshots('s')['f1_score'][0])==3
    with pytest.raises(TypeError, match='`monitor` must be a value that is a number'): learn.fit_sgdr(2, 1, .01, 1, patience=1, monitor='f1_score')

def test_predictions_keep_their_dtype(tmp_path):
    learn = tasks('none', tmp_path)
    learn.model.double()
    learn.dls = DataLoaders(*(DataLoader(TensorDataset(X.double(), Y[:,None].double()), bs=10, num_workers=0) for _ in range(2)))
    learn.fit_sgdr(1, 1, .01, snapshots='double')
    assert learn.snapshot_preds('double')[0].dtype==torch.float64

@pytest.mark.parametrize('change', [lambda v: v.to(torch.complex64)*1j, lambda v: v.long(), lambda v: v.bool()], ids=['complex','int','bool'])
def test_other_kinds_of_numbers(fitted, tmp_path, change):
    "Which torch would make fit"
    learn,f = fitted[0],folder(tmp_path)/'cycle-002.pth'
    before = weights(learn)
    torch.save({k: change(v) for k,v in torch.load(f, weights_only=True).items()}, f)
    with pytest.raises(ValueError, match='other kinds of numbers'): learn.load_snapshot('run')
    assert same(before, weights(learn))

@pytest.mark.parametrize('state', [[1], torch.ones(1), 3], ids=['list','tensor','number'])
def test_no_state_at_all(fitted, tmp_path, state):
    torch.save(state, folder(tmp_path)/'cycle-002.pth')
    with pytest.raises(ValueError, match='not the state of a model'): fitted[0].load_snapshot('run')
