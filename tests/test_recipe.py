"The eight steps on real pictures"
import copy
from types import SimpleNamespace
import pytest, torch
from fastai.callback.core import Callback
from fastai.data.block import DataBlock, MultiCategoryBlock
from fastai.data.transforms import RandomSplitter, get_image_files
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
import fastai_clr.report   # adds `save`; chkstyle: ignore
from fastai_clr.data import picture_dls, picture_learner
from fastai_clr.recipe import RecipeInterrupted, RecipeReport, _before_blowup, _lr_text, _snapshot_name
import numpy as np

SHORT = dict(head_epochs=1, head_cycles=1, n_cycles=2, ratio=5)

def make_learner(digits, weights, path):
    set_seed(0, reproducible=True)
    dls = picture_dls(digits, size=32, bs=32, flip=False)
    return picture_learner(dls, 'tf_efficientnet_lite0', path=path, weights=weights)

class Watch(Callback):
    "Note what is trained at the first batch of each fit, the sweeps among them"
    _not_resumed = ('fits',)   # else a sweep would leave no trace here either
    def __init__(self): self.fits = []
    def before_fit(self): self.fits.append(None)
    def after_batch(self):
        if self.training and self.fits[-1] is None: self.fits[-1] = (self.opt.frozen_idx, [h['lr'] for h in self.opt.hypers])

@pytest.fixture(scope='module')
def done(digits, weights, tmp_path_factory):
    "A learner trained by the recipe, its report, its body before, and what a callback saw"
    learn = make_learner(digits, weights, tmp_path_factory.mktemp('recipe'))
    before,watch = copy.deepcopy(learn.model[0].state_dict()),Watch()
    with learn.no_bar(), learn.added_cbs(watch): report = learn.fit_recipe(**SHORT)
    return learn,report,before,watch

def test_all_eight_steps_are_reported(done):
    r = done[1]
    assert r.finished and [o['step'] for o in r.steps] == list(range(1,9))
    assert [o['step'] for o in r.steps if o.get('metric') is not None] == [3,4,8]
    assert list(r.table().columns) == ['step','title','lr','epochs','seconds','train_loss','valid_loss','accuracy']
    assert str(len(r.steps)) in repr(r) and '<table' in r._repr_html_()

def test_curves_have_every_batch_and_epoch(done):
    learn,r,*_ = done
    n = len(learn.dls.train)
    by_step = {s: [o for o in r.batches if o['step']==s] for s in (3,4,8)}
    assert [len(by_step[s])/n for s in (4,8)] == [1, r.steps[7]['epochs']]
    assert [len([o for o in r.epochs if o['step']==s]) for s in (3,4,8)] == [r.steps[s-1]['epochs'] for s in (3,4,8)]
    assert by_step[4][0]['lr'] == max(o['lr'] for o in by_step[4])

def test_the_result_is_the_model(done):
    learn,r,*_ = done
    loss,acc = learn.validate()
    row = r.steps[r.kept-1]
    assert row['valid_loss'] == pytest.approx(loss, rel=1e-2 if r.kept==3 else 1e-5) and row['metric'] == pytest.approx(acc)
    assert np.trace(r.confusion)/np.sum(r.confusion) == pytest.approx(acc)
    assert len(r.mistakes) == min(12, np.sum(r.confusion)-np.trace(r.confusion))
    assert all(m['true']!=m['predicted'] and m['picture'].shape[2]==3 for m in r.mistakes)
    assert [m['loss'] for m in r.mistakes] == sorted((m['loss'] for m in r.mistakes), reverse=True)

def test_steps_4_and_8_train_what_they_say(done):
    learn,r,before,watch = done
    lr2,lr7 = (o['lr'] for o in r.lr_finds)
    trained = [o for o in watch.fits if o is not None]
    assert len(trained)==3      # step 4, the sweep of step 7, step 8
    assert trained[0][0]==1 and trained[0][1]==pytest.approx([lr2]*2)
    last = min(lr2, lr7)
    assert trained[2][0]==0 and trained[2][1]==pytest.approx([last/5, last])
    assert trained[1][1][1]/trained[1][1][0] == pytest.approx(5)

def test_body_statistics_stay_and_its_weights_train(done):
    learn,_,before,_ = done
    after = torch.load(learn.path/'models/snapshots/recipe1-step8/cycle-000.pth', weights_only=True)
    same = {k: torch.equal(v, after[f'0.{k}']) for k,v in before.items()}
    assert all(v for k,v in same.items() if 'running' in k or 'num_batches' in k)
    assert not all(v for k,v in same.items() if k.endswith('weight'))

def test_the_learner_is_left_as_it_was(done):
    learn = done[0]
    assert learn.train_bn and learn.opt is None and not [o for o in learn.cbs if 'fastai_clr' in type(o).__module__]

def test_each_cycle_is_a_snapshot(done):
    learn,r,*_ = done
    assert list(learn.snapshots('recipe1-step4')['cycle']) == [0]
    assert (learn.path/'models/head/snapshots/recipe1-step3/cycle-000.pth').exists()

def test_ctrl_c_keeps_the_finished_steps(digits, weights, tmp_path):
    learn = make_learner(digits, weights, tmp_path)
    before = [o.name for o in learn.cbs]
    class Stop(Callback):
        def before_batch(self): raise KeyboardInterrupt
    with learn.no_bar(), learn.no_logging(), pytest.raises(RecipeInterrupted) as e, learn.added_cbs(Stop()): learn.fit_recipe(**SHORT)
    assert e.value.step==4 and [o['step'] for o in e.value.report.steps]==[1,2,3] and not e.value.report.finished
    assert learn.train_bn and [o.name for o in learn.cbs if o.name!='progress']==[o for o in before if o!='progress']

@pytest.mark.parametrize('name,value', [('head_epochs',0), ('head_cycles',1.5), ('n_cycles',True), ('patience',-1), ('ratio',.5), ('cycle_mult',0), ('ratio','3')])
def test_bad_arguments(done, name, value):
    with pytest.raises(ValueError, match=f'`{name}` must be .* got {value!r}'): done[0].fit_recipe(**{name: value})

def test_failure_keeps_the_finished_steps(digits, weights, tmp_path):
    learn = make_learner(digits, weights, tmp_path)
    class Fail(Callback):
        def before_batch(self): raise RuntimeError('out of memory')
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError, match='out of memory') as e, learn.added_cbs(Fail()): learn.fit_recipe(**SHORT)
    assert [o['step'] for o in e.value.report.steps]==[1,2,3]

def test_a_report_without_a_judgement(digits, weights, tmp_path, monkeypatch):
    "What fails after training costs the confusion matrix, not the model"
    learn = make_learner(digits, weights, tmp_path)
    def fail(*args, **kw): raise OSError('a picture is gone')
    monkeypatch.setattr(learn, 'get_preds', fail)
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match='a picture is gone'): r = learn.fit_recipe(**SHORT)
    assert r.finished and len(r.steps)==8 and not r.confusion

def test_several_labels_and_no_metric(digits, weights, tmp_path):
    set_seed(0)
    block = DataBlock((ImageBlock,MultiCategoryBlock), get_items=get_image_files, get_y=lambda o: [o.parent.name, 'odd' if int(o.parent.name)%2 else 'even'],
        splitter=RandomSplitter(seed=0), item_tfms=Resize(32))
    learn = picture_learner(block.dataloaders(digits, path=digits, bs=32, num_workers=0), 'tf_efficientnet_lite0', path=tmp_path, weights=weights, metrics=None)
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(**SHORT)
    assert r.finished and r.metric_name is None and r.steps[-1]['valid_loss']>0 and not r.confusion
    assert 'valid_loss' in repr(r) and (r.save(tmp_path/'report')).read_text()

def test_statistics_of_a_random_body_are_trained(digits, tmp_path):
    set_seed(0)
    learn = picture_learner(picture_dls(digits, size=32, bs=32, flip=False), 'resnet18', path=tmp_path, pretrained=False)
    before = copy.deepcopy(learn.model[0].state_dict())
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(**SHORT, freeze_stats=False)
    learn.load_snapshot('recipe1-step8')
    assert not [k for k,v in learn.model[0].state_dict().items() if 'running' in k and torch.equal(v, before[k])]

@pytest.mark.parametrize('there,name', [([], 'recipe1'), (['recipe1-step4'], 'recipe2'), (['recipe2-step8','recipe10-step3','recipes'], 'recipe11')])
def test_snapshot_names_are_new(tmp_path, there, name):
    for o in there: (tmp_path/'models/snapshots'/o).mkdir(parents=True)
    for model_dir in ('models', tmp_path/'models'): assert _snapshot_name(SimpleNamespace(path=tmp_path, model_dir=model_dir))==name

def test_lr_before_blowup():
    lrs = np.logspace(-6, 0, 601)
    assert _before_blowup(lrs, 1+(lrs/.01)**4) == pytest.approx(.01*.25**.25/10, rel=.03)
    assert _before_blowup(lrs, np.ones(601)) == pytest.approx(.1)
    assert 1e-7 < _before_blowup(lrs, -1+(lrs/.01)**4) < .1

@pytest.mark.parametrize('lr,text', [(1e-3, '1.0e-03'), ((1e-4,1e-3), '1.0e-04 to 1.0e-03'), (np.array([2e-3]), '2.0e-03')])
def test_lr_text(lr, text): assert _lr_text(lr) == text

def test_an_empty_report_prints(): assert 'step' in repr(RecipeReport({}, {}))

def test_the_best_step_is_kept(digits, weights, tmp_path, monkeypatch):
    "Step 8 with an lr that ruins the network: the model is that of the step before, weight for weight"
    learn = make_learner(digits, weights, tmp_path)
    monkeypatch.setattr('fastai_clr.recipe._before_blowup', lambda *args: 1.)
    monkeypatch.setattr('fastai_clr.recipe._valley', lambda *args: .01)
    group_lrs = type(learn).group_lrs
    monkeypatch.setattr(type(learn), 'group_lrs', lambda self, lr, ratio: group_lrs(self, lr, ratio)*100)
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(**SHORT)
    losses = {o['step']: o['valid_loss'] for o in r.steps if o.get('valid_loss') is not None}
    assert r.kept==min((3,4), key=losses.get) and losses[8]>min(losses.values())
    loss,acc = learn.validate()
    row = r.steps[r.kept-1]
    assert loss==pytest.approx(row['valid_loss'], rel=1e-2) and acc==pytest.approx(row['metric'], abs=.02)
    assert np.trace(r.confusion)/np.sum(r.confusion)==pytest.approx(acc)
    page = r.save(tmp_path/'report').read_text()
    assert f'the model is that of step {r.kept}' in page and f"{row['metric']:.2%}" in page

def test_the_step_of_the_lowest_loss_is_kept(done):
    r = done[1]
    losses = {o['step']: o['valid_loss'] for o in r.steps if o.get('valid_loss') is not None}
    assert r.kept==min(losses, key=losses.get)
