"fastai's callbacks and optimizers beside a schedule: the lr of every batch is the schedule's, cycles leave snapshots, and a run that was broken off ends as one that was not"
import pickle
from functools import partial
import numpy as np, pytest, torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import BnFreeze, GradientAccumulation, GradientClip
from fastai.interpret import ClassificationInterpretation
from fastai.learner import load_learner
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.optimizer import SGD, Adam, RMSProp, ranger
from fastai.torch_core import set_seed
from fastai_clr import fit, precompute   # for the Learner methods they add; chkstyle: ignore
from fastai_clr.cycles import SGDR
from fastai_clr.recipe import BodyStatsFrozen, GroupRatios
from fastai_clr.schedules import CosineRestarts, Triangular
from fastai_clr.snapshots import SnapshotSaver, StopOnOverfit
from learners import Cancel, Watch, adamw, learner, quiet, same, weights
from pictures import small

CALLBACKS = dict(nothing=list, save=lambda: [SaveModelCallback()], early=lambda: [EarlyStoppingCallback(patience=9)], nan=lambda: [TerminateOnNaNCallback()],
    csv=lambda: [CSVLogger()], bf16=lambda: [MixedPrecision(amp_mode='bf16')], accumulate=lambda: [GradientAccumulation(40)], clip=lambda: [GradientClip(.5)],
    mixup=lambda: [MixUp()], cutmix=lambda: [CutMix()], channels_last=lambda: [ChannelsLast()], bn_freeze=lambda: [BnFreeze()])
OPTIMIZERS = dict(adam=Adam, sgd=partial(SGD, mom=.9), rmsprop=RMSProp, ranger=ranger, adamw=adamw)
CASES = [pytest.param(v, {}, id=k) for k,v in CALLBACKS.items()] + [pytest.param(list, dict(opt_func=v), id=k) for k,v in OPTIMIZERS.items()]
CASES.append(pytest.param(list, dict(loss_func=LabelSmoothingCrossEntropyFlat()), id='label smoothing'))
every_case = pytest.mark.parametrize('cbs,kw', CASES)

@pytest.fixture
def new(digits, tmp_path):
    "Makes the Learner, always the same"
    def f(cbs=list, **kw):
        set_seed(0, reproducible=True)
        return small(digits, tmp_path, cbs=cbs(), **kw)
    yield f
    torch.use_deterministic_algorithms(False)

def last_group(watch): return watch.curve().reshape(len(watch.held), -1)[:,-1]

@every_case
def test_fits_are_exact(new, cbs, kw):
    learn = new(cbs, **kw)
    n = len(learn.dls.train)
    for fit,sched in ((lambda **k: learn.fit_sgdr(2, .5, lr_max=1e-2, **k), CosineRestarts(2, .5, 2, lr_max=1e-2)),
                      (lambda **k: learn.fit_clr(1, step_size=.5, lr_max=1e-2, lr_min=1e-3, **k), Triangular(1, .5, lr_max=1e-2, lr_min=1e-3))):
        watch = Watch()
        fit(cbs=watch)
        np.testing.assert_allclose(last_group(watch), sched.values(n), rtol=1e-12)

@every_case
def test_snapshots_and_going_on_after_a_break(new, cbs, kw):
    whole = new(cbs, **kw)
    whole.fit_sgdr(2, 1, lr_max=1e-2, snapshots='whole')
    learn = new(cbs, **kw)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_sgdr(2, 1, lr_max=1e-2, snapshots='cut', resume='cut', cbs=Cancel('after_batch', KeyboardInterrupt, lambda o: o.training and o.epoch==1))
    learn,seen = new(cbs, **kw),set()
    learn.fit_sgdr(2, 1, lr_max=1e-2, snapshots='cut', resume='cut', cbs=Cancel('after_batch', KeyboardInterrupt, lambda o: seen.add(o.epoch)))   # never
    assert 0 not in seen
    assert same(weights(whole), weights(learn)) and len(learn.snapshots('cut'))==2

@every_case
@pytest.mark.filterwarnings('ignore:MixUp mixes')
def test_the_head_on_activations(new, cbs, kw):
    "The same beside the schedule of a head's fit, broken off and gone on with; what can't be is refused in a sentence"
    def fit(name, when=lambda o: False):
        head,seen = quiet(new(**kw).precompute(dtype='float32')),set()
        head.fit_sgdr(2, 1, lr_max=1e-2, snapshots=name, resume=name,
            cbs=[*cbs(), Cancel('after_batch', KeyboardInterrupt, lambda o: when(o) or seen.add(o.epoch) if o.training else False)])
        return head,seen
    if cbs is CALLBACKS['cutmix']:
        with pytest.raises(ValueError, match='CutMix cuts patches out of pictures'): fit('no')
        return
    whole,_ = fit('whole')
    np.testing.assert_allclose(whole.recorder.hps['lr'], CosineRestarts(2, 1, 2, lr_max=1e-2).values(len(whole.dls.train)), rtol=1e-12)
    with pytest.raises(KeyboardInterrupt): fit('cut', lambda o: o.epoch==1)
    again,seen = fit('cut')
    assert 0 not in seen and same(weights(whole), weights(again)) and len(again.snapshots('cut'))==2
    torch.testing.assert_close(again.get_preds()[0], again.whole.get_preds()[0], rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('cb', [BodyStatsFrozen(), GroupRatios(3.), StopOnOverfit(2), SnapshotSaver('s', keep=2), SGDR(1e-2)], ids=lambda o: o.name)
def test_a_learner_with_one_of_ours_is_pickled(tmp_path, cb):
    "After a fit with snapshots, checkpoints and a stop too"
    learn = learner(4, path=tmp_path)
    learn.fit_sgdr(2, 1, 1e-2, 1, snapshots='a', resume='a', patience=2)
    learn.add_cb(cb)
    new = pickle.loads(pickle.dumps(learn))
    assert same(weights(learn), weights(new)) and [o.name for o in new.cbs]==[o.name for o in learn.cbs]
    assert np.array_equal(new.recorder.hps['lr'], learn.recorder.hps['lr'])

def test_a_plateau_is_warned_of(new):
    "A schedule sets the lr at each batch, so that what ReduceLROnPlateau changes is gone with the next"
    learn,watch = new(),Watch()
    with pytest.warns(UserWarning, match='ReduceLROnPlateau'): learn.fit_sgdr(2, 1, lr_max=1e-2, cycle_mult=1, cbs=[watch, ReduceLROnPlateau(min_delta=9e9)])
    np.testing.assert_allclose(last_group(watch), CosineRestarts(2, 1, lr_max=1e-2).values(len(learn.dls.train)), rtol=1e-12)

@pytest.mark.parametrize('cbs', [[],[ProgressCallback],[ProgressCallback,ShowGraphCallback]], ids=['none','bars','graph'])
def test_output(new, capsys, cbs):
    "Bars, a graph or nothing: a row an epoch is printed, or none by `no_logging`"
    learn = new()
    learn.create_mbar = bool(cbs)
    learn.add_cbs(cbs)
    learn.logger = print
    learn.fit_sgdr(2, 1, lr_max=1e-2, cycle_mult=1)
    assert capsys.readouterr().out.count('00:0')>=2
    if ShowGraphCallback in cbs: learn.remove_cbs(ShowGraphCallback)   # which wants a bar to draw below
    with learn.no_bar(), learn.no_logging(): learn.fit_sgdr(1, 1, lr_max=1e-2)
    assert '00:0' not in capsys.readouterr().out

def test_what_comes_after_a_fit(new, tmp_path, digits):
    learn = new()
    learn.fit_sgdr(1, 1, lr_max=1e-2, snapshots='s', resume='s')
    probs,targs = learn.get_preds()
    seen = ClassificationInterpretation.from_learner(learn)
    counts = np.zeros((10,10), int)
    np.add.at(counts, (targs.numpy(),probs.argmax(1).numpy()), 1)
    assert (seen.confusion_matrix()==counts).all()
    learn.export('export.pkl')
    file = learn.dls.valid.items[0]
    assert load_learner(tmp_path/'export.pkl').predict(file)[0]==learn.predict(file)[0]==learn.dls.vocab[probs[0].argmax()]

def test_tensorboard_gets_the_lr_of_each_batch(new, tmp_path):
    pytest.importorskip('tensorboard', reason='tensorboard is not installed')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = new()
    learn.fit_sgdr(1, 1, lr_max=1e-2, cbs=TensorBoardCallback(tmp_path/'log', trace_model=False, log_preds=False))
    log = EventAccumulator(str(tmp_path/'log'))
    log.Reload()
    tag = [o for o in log.Tags()['scalars'] if o.startswith('lr')][-1]
    got = {o.step: o.value for o in log.Scalars(tag)}   # fastai's callback repeats the last one for each batch of validation
    assert [*got]==list(range(1, len(learn.dls.train)+1))
    np.testing.assert_allclose([*got.values()], CosineRestarts(1, 1, lr_max=1e-2).values(len(learn.dls.train)), rtol=1e-5)
