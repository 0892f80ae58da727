"The eight steps on real pictures"
import copy, json
from types import SimpleNamespace
import pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from fastai.callback.core import CancelFitException, Callback
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock
from fastai.data.transforms import RandomSplitter, get_image_files, parent_label
from fastai.layers import ConvLayer
from fastai.learner import Learner, mk_metric
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score, accuracy
from fastai.text.learner import text_classifier_learner
from fastai.text.data import TextDataLoaders
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config
from fastai.torch_core import params, set_seed
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
import fastai_clr.report   # adds `save`; chkstyle: ignore
from fastai_clr.data import picture_dls, picture_learner
from fastai_clr.recipe import BodyStatsFrozen, RecipeInterrupted, RecipeReport, score_test
from fastai_clr.recipe import _as_seconds, _before_blowup, _default_epochs, _lr_text, _new_notes, _Notes, _OnTime, _plan, _probabilities, _Run, _written_loss
import numpy as np
from fastcore.foundation import L
from torch import nn
from learners import learner

SHORT = dict(head_epochs=1, head_cycles=1, n_cycles=2, ratio=5)

def make_learner(digits, weights, path):
    set_seed(0, reproducible=True)
    dls = picture_dls(digits, size=32, bs=32, flip=False)
    return picture_learner(dls, 'tf_efficientnet_lite0', path=path, weights=weights)

def small_learner(digits, path):
    "For what does not depend on the network"
    set_seed(0, reproducible=True)
    return picture_learner(picture_dls(digits, size=16, bs=32, flip=False), 'test_byobnet', path=path, pretrained=False)

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
    assert str(len(r.steps)) in repr(r) and '<table' in r._repr_html_() and 'NA' not in repr(r)+r._repr_html_()

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
    kept = next(o for o in r.candidates if o['name']==r.kept)
    assert kept['valid_loss'] == pytest.approx(loss, rel=1e-5) and kept['metric'] == pytest.approx(acc)
    assert np.trace(r.confusion)/np.sum(r.confusion) == pytest.approx((r.ensemble or kept)['metric'])
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
    assert list(learn.snapshots('recipe1-step4')['cycle']) == list(learn.snapshots('recipe1-step3')['cycle']) == [0]
    assert len(learn.snapshots('recipe1-step8')) == len([o for o in r.candidates if o['name'].startswith('step 8')])

def test_ctrl_c_keeps_the_finished_steps(digits, tmp_path):
    learn = small_learner(digits, tmp_path)
    before = [o.name for o in learn.cbs]
    class Stop(Callback):
        def before_batch(self): raise KeyboardInterrupt
    with learn.no_bar(), learn.no_logging(), pytest.raises(RecipeInterrupted) as e, learn.added_cbs(Stop()): learn.fit_recipe(**SHORT)
    assert e.value.step==4 and [o['step'] for o in e.value.report.steps]==[1,2,3] and not e.value.report.finished
    assert learn.train_bn and [o.name for o in learn.cbs if o.name!='progress']==[o for o in before if o!='progress']

@pytest.mark.parametrize('name,value', [('head_epochs',-1), ('head_cycles',1.5), ('n_cycles',True), ('patience',-1), ('ratio',.5), ('cycle_mult',0), ('ratio','3'), ('cycle_mult',1.5), ('lr',0), ('head_lr','1e-3'),
    ('time_budget','soon'), ('time_budget',-3), ('time_budget','10 min'), ('time_budget',True)])
def test_bad_arguments(done, name, value):
    with pytest.raises(ValueError, match=f'`{name}` must be .* got {value!r}'): done[0].fit_recipe(**{name: value})

def test_failure_keeps_the_finished_steps(digits, tmp_path):
    learn = small_learner(digits, tmp_path)
    class Fail(Callback):
        def before_batch(self): raise RuntimeError('out of memory')
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError, match='out of memory') as e, learn.added_cbs(Fail()): learn.fit_recipe(**SHORT)
    assert [o['step'] for o in e.value.report.steps]==[1,2,3]

@pytest.mark.parametrize('kw', [SHORT,dict(time_budget=1200, lr=1e-3)], ids=['','clock'])
def test_a_report_without_a_judgement(digits, tmp_path, monkeypatch, kw):
    "What fails after training costs the confusion matrix, not the model; a snapshot within an epoch has no loss of its own"
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: dict(whole=120., frozen=1., valid=.001))
    learn = small_learner(digits, tmp_path)
    def fail(*args, **kw): raise OSError('a picture is gone')
    monkeypatch.setattr(learn, 'get_preds', fail)
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match='a picture is gone'): r = learn.fit_recipe(**kw)
    assert r.finished and r.steps[-1]['step']==8 and not r.confusion and ('valid_loss' in learn.snapshots('recipe1-step8'))==(kw is SHORT)
    assert r.best['valid_loss']==min(o['valid_loss'] for o in r.steps if 'valid_loss' in o) and r.kept.startswith(f"step {r.best['step']}")

def test_the_best_of_what_was_written_is_kept(digits, tmp_path, monkeypatch):
    "Where models can't be compared, not the last cycle but the best, by the losses written down with each"
    learn = small_learner(digits, tmp_path)
    def fail(run):
        info = tmp_path/'models/snapshots/recipe1-step8/cycle-000.json'
        info.write_text(json.dumps({**json.loads(info.read_text()), 'valid_loss': 1e-3}))
        raise OSError('a picture is gone')
    monkeypatch.setattr('fastai_clr.recipe._choose', fail)
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match='a picture is gone'): r = learn.fit_recipe(**{**SHORT, 'patience': 2})
    of = [torch.load(tmp_path/f'models/snapshots/recipe1-step8/cycle-00{i}.pth', weights_only=True) for i in range(2)]
    same = [all(torch.equal(v, o[k]) for k,v in learn.model.state_dict().items()) for o in of]
    assert r.kept=='step 8, cycle 1' and same==[True,False]

def test_the_model_named_is_the_one_that_was_loaded(digits, tmp_path, monkeypatch):
    "Though the best of the comparison can't be read"
    learn,load,tried = small_learner(digits, tmp_path),fastai_clr.recipe._load,[]
    def fail_once(learn, file):
        tried.append(file)
        if len(tried)==1: raise OSError('the disk is gone')
        load(learn, file)
    monkeypatch.setattr('fastai_clr.recipe._load', fail_once)
    monkeypatch.setattr('fastai_clr.recipe._compare', lambda run: ([dict(name=worst(run), valid_loss=0., metric=1.)], [], None, None))
    def worst(run): return max(run.models, key=lambda o: _written_loss(run.report, *o))[0]
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match='OSError: the disk is gone'): r = learn.fit_recipe(**SHORT)
    assert len(tried)==2 and tried[0]!=tried[1]
    state = torch.load(tried[1], weights_only=True)
    assert all(torch.equal(v, state[k]) for k,v in learn.model.state_dict().items()) and r.best['valid_loss']==min(o['valid_loss'] for o in r.steps if 'valid_loss' in o)

class Cut(nn.Module):
    "A model that shows no cut from outside"
    def __init__(self, body, head):
        super().__init__()
        self.body,self.head = body,head
    def forward(self, x): return self.head(self.body(x))

def cut(learn): return learn.model.body,learn.model.head

def test_a_cut_of_ones_own(digits, tmp_path):
    "`split` says where the body ends: the same numbers as those of a Sequential"
    def run(wrap, path, **kw):
        set_seed(0, reproducible=True)
        dls = picture_dls(digits, size=16, bs=32, flip=False)
        body,head = nn.Sequential(ConvLayer(3, 8, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),nn.Sequential(nn.Linear(8, 10))
        learn = Learner(dls, wrap(body, head), loss_func=CrossEntropyLossFlat(), metrics=accuracy, splitter=lambda m: [params(body),params(head)], path=path)
        stats = body[0][1].running_mean.clone()
        with learn.no_bar(), learn.no_logging():
            plan = learn.fit_recipe(dry_run=True, **SHORT, **kw)
            r = learn.fit_recipe(**SHORT, **kw)
        assert torch.equal(body[0][1].running_mean, stats) and [o['step'] for o in plan.steps]==list(range(1, 9))
        return learn,[(o['lr'],o.get('valid_loss')) for o in r.steps]
    learn,own = run(Cut, tmp_path/'own', split=cut)
    assert own==run(nn.Sequential, tmp_path/'sequential')[1]
    with pytest.raises(TypeError, match="can't tell where the head of a Cut starts"): learn.fit_recipe()
    bn,was = learn.model.body[0][1],learn.model.body[0][1].running_mean.clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=BodyStatsFrozen(cut))
    assert torch.equal(bn.running_mean, was)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert not torch.equal(bn.running_mean, was)

def test_the_best_of_steps_that_were_not_compared():
    "That of the step whose model was kept, not the last one"
    steps = [dict(step=3, valid_loss=.5, metric=.8), dict(step=4, valid_loss=.4, metric=.9), dict(step=8, valid_loss=.6, metric=.7)]
    assert RecipeReport({}, {}, steps=steps, kept='step 4').best['metric']==.9 and RecipeReport({}, {}, steps=steps).best['metric']==.7
    assert RecipeReport({}, {}).best is None

@pytest.mark.parametrize('loss', [torch.nn.CrossEntropyLoss(),torch.nn.functional.cross_entropy], ids=['module','function'])
def test_mistakes_with_a_loss_of_torchs(digits, tmp_path, loss):
    "Which leaves predictions as they come out of the network"
    learn = small_learner(digits, tmp_path)
    learn.loss_func = loss
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(head_epochs=1, head_cycles=0, n_cycles=0)
    logits,targs = learn.get_preds()
    losses = torch.nn.functional.cross_entropy(logits, targs, reduction='none')[logits.argmax(1)!=targs].sort(descending=True).values[:12]
    assert [o['loss'] for o in r.mistakes]==pytest.approx(losses.tolist(), rel=1e-4) and all(.1<=o['prob']<=1 for o in r.mistakes) and len(losses)==12

@pytest.mark.parametrize('preds,known', [([[.2,.8],[1,0]], True), ([[-1,2.],[1,0]], False), ([[.2,.9],[1,0]], False), ([[float('nan'),.8],[1,0]], False)])
def test_what_are_no_probabilities(preds, known):
    assert (_probabilities(SimpleNamespace(loss_func=None), torch.tensor(preds)) is not None)==known

@pytest.mark.parametrize('metrics', [[accuracy,F1Score(average=None)],[F1Score(average=None)]], ids=['second','first'])
def test_a_metric_with_a_value_a_class(digits, tmp_path, metrics):
    "It is shown nowhere, and stops nothing"
    learn = small_learner(digits, tmp_path)
    learn.metrics = L(metrics).map(mk_metric)
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(head_epochs=1, head_cycles=0, n_cycles=1)
    assert r.finished and all(o['f1_score'] is None for o in r.epochs) and ('accuracy' in r.epochs[0])==(len(metrics)==2)
    assert (r.best['metric'] is not None)==(len(metrics)==2) and 'step' in repr(r)
    score_test(learn, r, learn.dls.valid_ds.items, torch.tensor([learn.dls.vocab.o2i[o.parent.name] for o in learn.dls.valid_ds.items]))
    assert 'f1_score' not in r.test and r.save(tmp_path/'report').exists()

def test_metrics_of_the_training_set(digits, tmp_path):
    "They stand between the losses, and are not taken for one"
    learn = small_learner(digits, tmp_path)
    learn.recorder.train_metrics = True
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(head_epochs=1, head_cycles=1, n_cycles=1)
    losses = {o['name']: o for o in r.candidates}
    for k in (3,4,8): assert [r.steps[k-1][o] for o in ('valid_loss','metric')]==pytest.approx([losses[f'step {k}'][o] for o in ('valid_loss','metric')], rel=1e-4)
    assert {'train_accuracy','accuracy','valid_loss'}<=r.epochs[-1].keys() and r.save(tmp_path/'report').exists()

def test_an_lr_that_is_a_slice(digits, tmp_path, monkeypatch):
    learn = small_learner(digits, tmp_path)
    learn.lr = slice(1e-5, 4e-4)
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: dict(whole=120., frozen=1., valid=.001))
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(head_epochs=1, head_cycles=0, n_cycles=1, head_lr=1e-2, time_budget=1000)
    assert max(o['lr'] for o in r.batches if o['step']==8)==pytest.approx(2e-4)

def test_a_model_of_many_parts(digits, tmp_path):
    "The splitter says where its head begins"
    set_seed(0)
    dls = picture_dls(digits, size=16, bs=32, flip=False)
    model = nn.Sequential(ConvLayer(3, 8, stride=2), ConvLayer(8, 16, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, splitter=lambda m: [params(m[:4]),params(m[4])], path=tmp_path)
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(head_epochs=1, head_cycles=1, n_cycles=1)
    assert r.finished and len(r.steps)==8

def test_a_model_that_cannot_be_cut(digits, tmp_path):
    "It leaves nothing behind"
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.Linear(16, 10))
    learn = Learner(picture_dls(digits, size=16, bs=32), model, loss_func=CrossEntropyLossFlat(), path=tmp_path)
    with pytest.raises(TypeError, match="can't tell where the head"): learn.fit_recipe()
    assert not [o for o in tmp_path.rglob('*') if o.is_file()]

class EndEarly(Callback):
    order = -9
    def after_loss(self): raise CancelFitException()

@pytest.mark.parametrize('kw', [dict(dry_run=True), dict(time_budget='1h'), {}], ids=str)
def test_nothing_to_train_on_or_to_choose_by(digits, weights, tmp_path, kw):
    "One sentence, at once"
    def learner(splitter, bs, **more):
        block = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=splitter, item_tfms=Resize(16))
        return picture_learner(block.dataloaders(digits, path=digits, bs=bs, num_workers=0), 'tf_efficientnet_lite0', path=tmp_path, weights=weights, **more)
    with pytest.raises(ValueError, match='validation set is empty'): learner(RandomSplitter(0.), 32).fit_recipe(**kw)
    with pytest.raises(ValueError, match='160 items at `bs` of 200'): learner(RandomSplitter(.2), 200).fit_recipe(**kw)
    silent = learner(RandomSplitter(.2), 32)
    silent.recorder.valid_metrics = False
    with pytest.raises(ValueError, match='has `valid_metrics=False`'): silent.fit_recipe(**kw)
    if kw.get('dry_run'):
        learn = learner(RandomSplitter(.2), 32, cbs=EndEarly())
        with learn.no_bar(), pytest.raises(ValueError, match='no batch can be timed'): learn.fit_recipe(**kw)

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

@pytest.mark.parametrize('there,n', [([], 1), (['recipe1-step4'], 2), (['recipe2-step8','recipe10-step3','recipes'], 11)])
def test_numbers_are_new(done, tmp_path, monkeypatch, there, n):
    learn = done[0]
    for o in there: (tmp_path/'models/snapshots'/o).mkdir(parents=True)
    monkeypatch.setattr(learn, 'path', tmp_path)
    for k in range(2):
        monkeypatch.setattr(learn, 'model_dir', ('models',tmp_path/'models')[k])
        assert _new_notes(learn, {}, '').file==tmp_path/f'models/resume/recipe{n+k}.json'

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
    losses = {o['name']: o['valid_loss'] for o in r.candidates if not o['name'].startswith('ensemble')}
    assert r.kept==min(losses, key=losses.get) and r.kept[:6] in ('step 3','step 4','averag') and min(losses['step 3'], losses['step 4'])<losses['step 8, cycle 1']
    loss,acc = learn.validate()
    kept = next(o for o in r.candidates if o['name']==r.kept)
    assert loss==pytest.approx(kept['valid_loss'], rel=1e-5) and acc==pytest.approx(kept['metric'])
    page = r.save(tmp_path/'report').read_text()
    assert f"The model that was kept: {r.kept}" in page and f"{(r.ensemble or kept)['metric']:.2%}" in page

def test_the_candidate_of_the_lowest_loss_is_kept(done):
    r = done[1]
    losses = {o['name']: o['valid_loss'] for o in r.candidates}
    single = {k:v for k,v in losses.items() if not k.startswith('ensemble')}
    assert r.kept==min(single, key=single.get) and {'step 3','step 4','step 8, cycle 1'}<=single.keys() and any(k.startswith('average') for k in single)
    assert (r.ensemble is not None)==(min(losses.values())<single[r.kept])
    together = {int(k.split()[-1]): v for k,v in losses.items() if k.startswith('ensemble')}
    assert list(together)==list(range(2, 1+len([k for k in single if k.startswith('step')]))) and f'average of the last {min(together, key=together.get)}' in single

def test_an_ensemble_that_is_best(digits, weights, tmp_path, monkeypatch):
    "Its loss and metric are those of its snapshots' mean predictions, on validation and test sets; the model is the best single one"
    learn = make_learner(digits, weights, tmp_path)
    monkeypatch.setattr('fastai_clr.recipe._loss_of', lambda o: o['valid_loss']-99*o['name'].startswith('ensemble'))
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(head_epochs=2, head_cycles=1, n_cycles=0)
    name,n = r.ensemble['name'],r.ensemble['n']
    assert len(learn.snapshots(name))==n==2 and r.kept!='ensemble'
    with learn.no_bar(): preds,targs,losses = learn.snapshot_preds(name, with_loss=True)
    acc = float((preds.argmax(1)==targs).float().mean())
    assert float(losses.mean())==pytest.approx(r.ensemble['valid_loss'], rel=1e-5) and acc==pytest.approx(r.ensemble['metric'])
    assert np.trace(r.confusion)/np.sum(r.confusion)==pytest.approx(acc)
    assert learn.validate()[0]==pytest.approx(next(o['valid_loss'] for o in r.candidates if o['name']==r.kept), rel=1e-5)
    with learn.no_bar(): score_test(learn, r, learn.dls.valid_ds.items, targs)
    assert r.test==dict(pictures=len(targs), loss=pytest.approx(r.ensemble['valid_loss'], rel=1e-5), accuracy=pytest.approx(acc))
    r.ensemble = None
    with learn.no_bar(): score_test(learn, r, learn.dls.valid_ds.items, targs)
    loss,acc = learn.validate()
    assert r.test['loss']==pytest.approx(loss, rel=1e-5) and r.test['accuracy']==pytest.approx(acc)

# A clock

@pytest.mark.parametrize('text,secs', [('90s',90), ('10m',600), ('1h30m',5400), ('1.5m',90), (45,45), (.5,.5), ('600',600), (' 2M ',120), ('1h 5s',3605)])
def test_times(text, secs): assert _as_seconds(text)==secs

a_batch = st.floats(1e-3, 10)   # seconds

@settings(deadline=None, derandomize=True)
@given(left=st.floats(-10, 1e6), n_iter=st.integers(1, 10_000), n_valid=st.integers(1, 1000), whole=a_batch, frozen=a_batch, valid=a_batch,
       head_cycles=st.integers(0, 5), n_cycles=st.integers(0, 5), lr=st.sampled_from([None,1e-3]))
def test_a_plan_keeps_to_its_clock(left, n_iter, n_valid, whole, frozen, valid, head_cycles, n_cycles, lr):
    "What is planned fits into the time, and an epoch more of the whole network would not"
    secs = dict(whole=whole, frozen=frozen, valid=valid)
    p = _plan(dict(head_cycles=head_cycles, n_cycles=n_cycles, patience=1, lr=lr), left, n_iter, n_valid, secs)
    n = round(p['cycle_len']*n_iter)*p['n_cycles']
    v = n_valid*valid
    need = p['head_cycles']*(n_iter*frozen+v) + n*whole + -(-n//n_iter)*v + (p['sweep'] and p['n_cycles']>0)*max(50, min(100, n_iter))*whole + 3*v
    assert p['n_cycles']<=min(1, n_cycles) and p['head_cycles']<=head_cycles and not (p['n_cycles'] and p['head_cycles'])
    if p['n_cycles'] or p['head_cycles']: assert need<=left*(.97 if p['n_cycles'] else .92)*(1+1e-9)
    if p['n_cycles']: assert n>=n_iter and need+whole+2*v+n_iter*whole>.97*left-1e-6 and p['reserve']==pytest.approx(.03*left+4*v)

def test_without_a_clock_all_is_as_asked():
    s = dict(head_cycles=3, n_cycles=2, patience=1, lr=None)
    assert _plan(s, np.inf, 10, 2, None)==dict(head_cycles=3, n_cycles=2, cycle_len=1, patience=1, sweep=True)

def test_a_clock_is_kept(digits, tmp_path, monkeypatch):
    "The whole network gets one cosine, a quarter longer than there is time for at the pace that was measured; here no time passes, and all of it is trained"
    learn = small_learner(digits, tmp_path)
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: dict(whole=120., frozen=1., valid=.001))
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(time_budget='1000s')
    assert [o['step'] for o in r.steps]==[1,2,3,5,6,8] and r.finished and r.settings['time_budget']=='1000s'
    n = len([o for o in r.batches if o['step']==8])
    assert n in (9,10) and r.steps[-1]['detail'].startswith(f'one cycle by the clock: {n/5:.2f} epochs; BatchNorm statistics of the body kept; the lr half the Learner\'s') and r.steps[-1]['epochs']==2   # a quarter more than planned

class Pace(Callback):
    "A time that only batches of training the whole network take, `slow(n)` seconds the n-th"
    def __init__(self, slow): self.now,self.slow,self.n = 0.,slow,0
    def monotonic(self): return self.now
    def perf_counter(self): return self.now
    def after_batch(self):
        if self.training and not self.opt.frozen_idx: self.now,self.n = self.now+self.slow(self.n),self.n+1

@pytest.mark.parametrize('slow,unused', [(lambda n: 120,120), (lambda n: 100,100), (lambda n: 180,180), (lambda n: 120+40*n,0), (lambda n: 900 if n==3 else 120,360),
    (lambda n: 60,None)], ids=['as measured','faster','slower','ever slower','one that hangs','twice as fast'])
def test_a_machine_of_another_pace(slow, unused, digits, tmp_path, monkeypatch):
    "The schedule is stretched over the time: it falls to its end, in even steps where batches are, no more than two of them come after the time is up, and little of it is left"
    learn,pace = small_learner(digits, tmp_path),Pace(slow)
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: dict(whole=120., frozen=1., valid=.001))
    monkeypatch.setattr('fastai_clr.recipe.time', pace)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(pace): r = learn.fit_recipe(time_budget=2000, lr=1e-3)
    plan = json.loads((tmp_path/'models/resume/recipe1.json').read_text())['plan']
    lrs,n,secs = np.array([o['lr'] for o in r.batches if o['step']==8]),int(np.ceil(1.25*round(5*plan['cycle_len']))),2000-plan['reserve']
    ends = np.cumsum([slow(i) for i in range(len(lrs))])
    at = np.arccos(lrs/5e-4-1)/np.pi*n   # of a cosine of n batches
    assert at[0]==pytest.approx(0, abs=1e-6) and at[-1]==pytest.approx(n-1) and (np.diff(at)>=-1e-6).all()
    if slow(3)==slow(0)==slow(1): assert at==pytest.approx(np.linspace(0, n-1, len(at)), abs=1)
    assert ends[-3]<secs and (len(lrs)==n)==(unused is None) and (unused is None or ends[-1]>=secs-unused)
    assert r.steps[-1]['detail'].startswith(f'one cycle by the clock: {len(lrs)/5:.2f} epochs')
    assert r.finished and r.steps[-1]['epochs']==-(-len(lrs)//5)==len([o for o in r.epochs if o['step']==8])
    info = learn.snapshots('recipe1-step8')
    assert len(info)==1 and info['batches'][0]==len(lrs) and r.steps[-1]['valid_loss']==pytest.approx(r.candidates[1]['valid_loss'], rel=1e-5)

def test_the_clock_goes_on_after_a_break(tmp_path):
    "The schedule goes on from where it was, and ends with the time, though fewer batches are done; half as many as the cycle's 40 have time to begin with"
    runs,used = [],0
    class Count(Callback):
        order,_not_resumed = 80,('lrs',)
        def __init__(self): self.lrs = []
        def after_batch(self):
            nonlocal used
            if not self.training: return
            self.lrs.append(self.opt.hypers[-1]['lr'])
            used += 1
            if len(runs)==1 and used==15: raise KeyboardInterrupt
    def fit():
        learn,count = learner(n_iter=10, path=tmp_path),Count()
        runs.append(count.lrs)
        learn.fit_sgdr(1, cycle_len=4, lr_max=.1, cbs=[count,_OnTime(lambda: 21-used)], resume='clock')
    with pytest.raises(KeyboardInterrupt): fit()
    fit()
    first,second = (np.arccos(np.array(o)/.05-1)/np.pi*40 for o in runs)
    assert len(first)==15 and first==pytest.approx(np.arange(15)*39/20, abs=.51)
    assert len(second)==6 and second[0]==pytest.approx(first[9]+1, abs=1) and second[1:]==pytest.approx(np.linspace(second[0], 39, 6)[1:], abs=1)

def test_no_time_and_no_head(digits, tmp_path, monkeypatch):
    learn = small_learner(digits, tmp_path)
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: dict(whole=1e6, frozen=1e6, valid=.001))
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match='`time_budget` of 1000 s is too little for an epoch, and `head_epochs` is 0'): learn.fit_recipe(head_epochs=0, time_budget=1000)

def test_a_clock_too_short(digits, weights, tmp_path):
    learn = make_learner(digits, weights, tmp_path)
    with pytest.raises(ValueError, match=r"`time_budget` of 0.001 s is too little: the pass over all 200 items takes about .* give at least \d+ s"): learn.fit_recipe(time_budget=.001)
    assert not list(tmp_path.rglob('*'))

# A dry run

def test_a_dry_run_does_nothing(digits, weights, tmp_path):
    learn = make_learner(digits, weights, tmp_path)
    before,rng = copy.deepcopy(learn.model.state_dict()),torch.get_rng_state()
    with learn.no_bar(): r = learn.fit_recipe(dry_run=True, **SHORT)
    assert r.dry_run and not r.finished and [o['step'] for o in r.steps]==list(range(1,9)) and [o['epochs'] for o in r.steps if o['epochs']]==[1,1,3]
    assert all(o['seconds']>0 for o in r.steps if o['step'] in (2,3,4,7,8)) and 'None' not in repr(r)+r._repr_html_()
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()) and torch.equal(rng, torch.get_rng_state()) and not list(tmp_path.rglob('*'))
    with learn.no_bar(): r = learn.fit_recipe(dry_run=True, n_cycles=0, head_cycles=2)
    assert [o['step'] for o in r.steps]==[1,2,3,4]

def test_a_dry_run_knows_the_clock(digits, tmp_path, monkeypatch):
    "The head gets a quarter of the time that is left after the pass, and the whole network the rest"
    learn = small_learner(digits, tmp_path)
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: dict(whole=20., frozen=1., valid=.001))
    monkeypatch.setattr('fastai_clr.recipe._head_seconds', lambda learn, split: 5.)
    with learn.no_bar(): r = learn.fit_recipe(dry_run=True, time_budget=1500, lr=1e-3)
    secs = {o['step']: o['seconds'] for o in r.steps}
    assert secs[2]==pytest.approx(500, abs=1) and secs[3]==9*5*5 and .94*1500<sum(secs.values())<1500

# Steps left out

@pytest.mark.parametrize('kw,steps', [(dict(n_cycles=0, head_cycles=0), [1,2,3]), (dict(head_epochs=0, n_cycles=0), [1,2,4]),
    (dict(head_epochs=0, head_cycles=0), [1,2,5,6,7,8]), (dict(head_cycles=0, lr=1e-4, head_lr=1e-3), [1,2,3,5,6,8])])
def test_steps_left_out(digits, tmp_path, kw, steps):
    learn = small_learner(digits, tmp_path)
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(**{**SHORT, **kw})
    assert [o['step'] for o in r.steps]==steps and r.finished and r.candidates
    if 'lr' in kw: assert [o['lr'] for o in r.steps if o['step'] in (3,8)]==['1.0e-03','2.0e-05 to 1.0e-04'] and not r.lr_finds
    loss = learn.validate()[0]
    assert loss==pytest.approx(next(o['valid_loss'] for o in r.candidates if o['name']==r.kept), rel=1e-5)

def test_nothing_to_do(done):
    with pytest.raises(ValueError, match='are all 0: nothing would be trained'): done[0].fit_recipe(head_epochs=0, head_cycles=0, n_cycles=0)

@pytest.mark.parametrize('began,ratio', [(1e3,10), (1e-3,3)])
def test_the_ratio_is_measured(digits, tmp_path, monkeypatch, began, ratio):
    "10 if the head took more than half off the loss that it began with, else 3"
    learn = small_learner(digits, tmp_path)
    monkeypatch.setattr('fastai_clr.recipe._Run.find_lr', lambda self, row, *args: dict(lr=1e-3, losses=[began], batch=.01))
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(head_epochs=1, head_cycles=0, n_cycles=1)
    assert f'each group {ratio} times lower' in next(o['detail'] for o in r.steps if o['step']==6)

def test_one_process_only(done, monkeypatch):
    monkeypatch.setattr('fastai_clr.recipe.num_distrib', lambda: 2)
    with pytest.raises(ValueError, match='runs in one process'): done[0].fit_recipe()

# Going on

class StopAt(Callback):
    "Break off before a batch of training"
    _not_resumed = ('n',)
    order = 100
    def __init__(self, n): self.n = n
    def before_batch(self):
        if not self.training or hasattr(self.learn, 'lr_finder'): return
        self.n -= 1
        if self.n<0: raise RuntimeError('cut')

def trained(digits, weights, path, cuts=()):
    "A recipe broken off at batches of its fits, by a new Learner each time; the last one, and its report"
    for n in [*cuts,None]:
        learn = make_learner(digits, weights, path)
        with learn.no_bar(), learn.no_logging(), learn.added_cbs(StopAt(10**9 if n is None else n)):
            if n is None: return learn,learn.fit_recipe(head_epochs=2, head_cycles=2, n_cycles=2, ratio=5, resume=bool(cuts))
            with pytest.raises(RuntimeError, match='cut'): learn.fit_recipe(head_epochs=2, head_cycles=2, n_cycles=2, ratio=5, resume=True)

def test_a_run_that_goes_on_ends_bitwise(digits, weights, tmp_path):
    one,r = trained(digits, weights, tmp_path/'one')
    two,r2 = trained(digits, weights, tmp_path/'two', cuts=[0,7,12])
    assert all(torch.equal(v, two.model.state_dict()[k]) for k,v in one.model.state_dict().items())
    def rows(r): return [{k:v for k,v in o.items() if k!='seconds'} for o in r.steps]
    assert rows(r)==rows(r2) and r.candidates==r2.candidates and r.batches==r2.batches and r.epochs==r2.epochs and r.kept==r2.kept
    left = [o.name for o in (tmp_path/'two').rglob('*') if 'step' in o.name and 'resume' in o.parts]
    assert not left and (tmp_path/'two/models/resume/recipe1.json').exists() and not (tmp_path/'two/models/resume/recipe2.json').exists()

def test_a_run_with_other_data_does_not_go_on(digits, weights, tmp_path):
    "Another size, and another split"
    def learner(**kw):
        set_seed(0, reproducible=True)
        return picture_learner(picture_dls(digits, **{**dict(size=32, bs=32, flip=False), **kw}), 'tf_efficientnet_lite0', path=tmp_path, weights=weights)
    learn = learner()
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError, match='cut'), learn.added_cbs(StopAt(0)): learn.fit_recipe(**SHORT)
    for kw in (dict(size=40), dict(seed=1)):
        learn = learner(**kw)
        with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match='was begun with other data'): learn.fit_recipe(**SHORT, resume=True)

def test_a_plan_is_used_again(digits, tmp_path, monkeypatch):
    "A run with a clock that goes on measures nothing anew, and has the same cycle"
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: dict(whole=120., frozen=1., valid=.001))
    learn = small_learner(digits, tmp_path)
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError, match='cut') as e, learn.added_cbs(StopAt(2)): learn.fit_recipe(time_budget=1000)
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: pytest.fail('measured again'))
    plan = json.loads((tmp_path/'models/resume/recipe1.json').read_text())['plan']
    learn = small_learner(digits, tmp_path)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(StopAt(10**9)): r = learn.fit_recipe(time_budget=1000, resume=True)
    assert len([o for o in r.batches if o['step']==8])==np.ceil(1.25*round(plan['cycle_len']*len(learn.dls.train))) and r.finished

def test_seconds_of_a_step_broken_off_count(done, tmp_path):
    learn = done[0]
    run = _Run(learn, RecipeReport({}, {}), _Notes(tmp_path/'notes.json', {'part 4': 100.}), None)
    with learn.no_logging(), pytest.raises(KeyboardInterrupt), run.step(4): raise KeyboardInterrupt
    assert 100<=run.notes['part 4']<130
    with learn.no_logging(), run.step(4) as row: pass
    assert 100<=row['seconds']<130 and json.loads((tmp_path/'notes.json').read_text())['seconds 4']==row['seconds']
    again = _Run(learn, RecipeReport({}, {}), run.notes, None)
    with learn.no_logging(), again.step(4) as now: pass
    assert now['seconds']==row['seconds']

def test_time_counts_after_a_kill(digits, tmp_path, monkeypatch):
    "The notes hold what an epoch of step 8 took, while that step is not finished"
    learn,pace,seen = small_learner(digits, tmp_path),Pace(lambda n: 120),[]
    class Look(Callback):
        def before_epoch(self):
            if self.opt is not None and not self.opt.frozen_idx and self.epoch==1: seen.append(json.loads((tmp_path/'models/resume/recipe1.json').read_text()))
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: dict(whole=120., frozen=1., valid=.001))
    monkeypatch.setattr('fastai_clr.recipe.time', pace)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs([pace,Look()]): learn.fit_recipe(time_budget=2000, lr=1e-3)
    assert [(o['spent'],o['part 8']) for o in seen]==[(600,600)]

def test_a_full_disk_for_the_time_ends_no_fit(tmp_path):
    learn,tries = learner(n_iter=5, path=tmp_path),[]
    def note():
        tries.append(1)
        raise OSError(28, 'No space left on device')
    learn.fit_sgdr(1, cycle_len=3, lr_max=.1, cbs=_OnTime(lambda: 100-len(tries), note))
    assert len(tries)==len(learn.recorder.values)>1

def test_what_cannot_go_on(digits, tmp_path):
    learn = small_learner(digits, tmp_path)
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError, match='cut'), learn.added_cbs(StopAt(0)): learn.fit_recipe(**SHORT)
    with pytest.raises(ValueError, match='was begun otherwise: head_cycles: 1 became 2'): learn.fit_recipe(**{**SHORT, 'head_cycles': 2}, resume=True)
    with pytest.raises(ValueError, match='was begun otherwise: time_budget: None became 600.0'): learn.fit_recipe(**SHORT, time_budget='10m', resume=True)
    other = small_learner(digits, tmp_path)
    with torch.no_grad(): next(other.model[0].parameters()).mul_(2)
    with pytest.raises(ValueError, match='the body of the model is not the one'): other.fit_recipe(**SHORT, resume=True)
    file = tmp_path/'models/resume/recipe1.json'
    whole = file.read_text()
    file.write_text(whole[:50])
    with pytest.raises(ValueError, match="can't read .*recipe1.json"): learn.fit_recipe(**SHORT, resume=True)
    file.write_text(whole)
    learn = small_learner(digits, tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(**SHORT, resume=True)
    with pytest.raises(ValueError, match='has been finished'): small_learner(digits, tmp_path).fit_recipe(**SHORT, resume=True)

def test_a_run_broken_off_in_its_last_call_goes_on(digits, weights, tmp_path):
    "What `then` writes may be lost, and is written anew"
    kw,seen = dict(head_epochs=1, head_cycles=0, n_cycles=0),[]
    def fail(report): raise OSError('the disk is full')
    learn = make_learner(digits, weights, tmp_path)
    with learn.no_bar(), learn.no_logging(), pytest.raises(OSError, match='the disk is full') as e: learn.fit_recipe(**kw, then=fail)
    assert e.value.report.finished
    again = make_learner(digits, weights, tmp_path)
    with again.no_bar(), again.no_logging(): again.fit_recipe(**kw, resume=True, then=seen.append)
    assert seen[0].finished and seen[0].candidates==e.value.report.candidates
    assert all(torch.equal(v, again.model.state_dict()[k]) for k,v in learn.model.state_dict().items())
    with pytest.raises(ValueError, match='has been finished'): make_learner(digits, weights, tmp_path).fit_recipe(**kw, resume=True)

def test_measuring_takes_some_of_the_time(digits, tmp_path, monkeypatch):
    "The plan is made of what is left once the batches have been measured"
    learn,left = small_learner(digits, tmp_path),[]
    real_measure,real_plan = fastai_clr.recipe._measure,fastai_clr.recipe._plan
    def measure(learn, budget):
        left.append(run_of[0].left())
        return real_measure(learn, budget)
    def plan(s, secs_left, *args):
        left.append(secs_left)
        return real_plan(s, secs_left, *args)
    run_of,real_init = [],fastai_clr.recipe._Run.__init__
    def init(self, *args):
        real_init(self, *args)
        run_of.append(self)
    monkeypatch.setattr('fastai_clr.recipe._Run.__init__', init)
    monkeypatch.setattr('fastai_clr.recipe._measure', measure)
    monkeypatch.setattr('fastai_clr.recipe._plan', plan)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(head_cycles=0, n_cycles=0, time_budget=1000)
    assert 1000>left[0]>left[1]>0

# Not only pictures

def test_texts(tmp_path):
    df = pd.DataFrame(dict(text=[f'{w} {w} the film is {w} indeed number {i}' for i in range(40) for w in ('good','bad')], label=['p','n']*40))
    set_seed(0)
    dls = TextDataLoaders.from_df(df, path=tmp_path, text_col='text', label_col='label', bs=16, seq_len=16, valid_pct=.25, seed=0)
    config = dict(awd_lstm_clas_config, emb_sz=16, n_hid=16, n_layers=1)
    learn = text_classifier_learner(dls, AWD_LSTM, pretrained=False, metrics=accuracy, path=tmp_path, config=config)
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(head_cycles=1, n_cycles=2)
    assert r.finished and [o['step'] for o in r.steps]==list(range(1,9)) and r.confusion
    assert learn.validate()[0]==pytest.approx(next(o['valid_loss'] for o in r.candidates if o['name']==r.kept), rel=1e-4)

# Rules that are written down

class Losses(Callback):
    "What each epoch of the whole network is told to have"
    order,_not_resumed = 51,('vals',)
    def __init__(self, *vals): self.vals = vals
    def after_epoch(self):
        if not self.opt.frozen_idx and not hasattr(self.learn, 'lr_finder'): self.learn.recorder.values[-1][1] = self.vals[self.epoch]

@pytest.mark.parametrize('kw,epochs', [(dict(n_cycles=3, patience=3),3), (dict(n_cycles=5),4)], ids=['all','stopped'])
def test_step_8(digits, tmp_path, kw, epochs):
    "Cycles of one length; it says why it stopped, and its row is that of the best epoch"
    learn = small_learner(digits, tmp_path)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(Losses(3.,2.,1.5,4.,.1,.1,.1)):
        r = learn.fit_recipe(head_epochs=1, head_cycles=0, lr=1e-4, head_lr=1e-3, cycle_mult=1, **kw)
    assert r.steps[-1]['epochs']==epochs and r.steps[-1]['valid_loss']==1.5
    assert (r.stopped or '').startswith('stopped after cycle 3 (epoch 3): valid_loss was 4, the best was cycle 2 with 1.5')==(epochs==4)

@pytest.mark.parametrize('left,done', [(10_000., True), (1_000., False)])
def test_the_sweep_of_a_clock(left, done):
    "Step 7 is done if it takes less than a tenth of the time"
    assert _plan(dict(head_cycles=3, n_cycles=3, patience=1, lr=None), left, 100, 10, dict(whole=1., frozen=.5, valid=.1))['sweep']==done

@pytest.mark.parametrize('n_iter,epochs', [(1,50), (3,50), (5,30), (75,2), (1000,2)])
def test_epochs_of_the_head(n_iter, epochs): assert _default_epochs(n_iter)==epochs

def test_no_higher_lr_than_the_heads(digits, tmp_path, monkeypatch):
    "Where step 7 is left out"
    learn = small_learner(digits, tmp_path)
    learn.lr = 1e-2
    monkeypatch.setattr('fastai_clr.recipe._measure', lambda learn, budget: dict(whole=120., frozen=1., valid=.001))
    with learn.no_bar(), learn.no_logging(): r = learn.fit_recipe(head_epochs=1, head_cycles=0, n_cycles=1, head_lr=1e-3, time_budget=1000)
    assert 7 not in [o['step'] for o in r.steps] and max(o['lr'] for o in r.batches if o['step']==8)==pytest.approx(1e-3)

def test_what_was_frozen_and_how_the_lr_was_found(done):
    of = {o['step']: o['detail'] for o in done[1].steps}
    assert 'the body frozen; the lr of step 2' in of[3] and 'the body frozen; the lr as in step 3' in of[4]
    assert 'BatchNorm statistics of the body kept; the lr of step 7, no more than that of step 3' in of[8]

def test_cycles_that_no_one_can_train(digits, tmp_path):
    "Are refused at once, not when step 8 comes"
    learn = small_learner(digits, tmp_path)
    with pytest.raises(ValueError, match='more epochs than can ever be trained'): learn.fit_recipe(n_cycles=80)
    assert not list(tmp_path.rglob('*.json'))

def test_a_batch_of_one(digits, tmp_path):
    set_seed(0)
    learn = picture_learner(picture_dls(digits, size=16, bs=1, flip=False), 'test_byobnet', path=tmp_path, pretrained=False)
    with pytest.raises(ValueError, match='`bs` must be at least 2 for a head with BatchNorm, got 1'): learn.fit_recipe(**SHORT)
    assert not list(tmp_path.rglob('*.json'))

@pytest.mark.parametrize('gone', ['settings','body','finished'])
def test_notes_that_lack_something(tmp_path, gone):
    "Though they are sealed"
    notes = _Notes(tmp_path/'recipe1.json', dict(settings={}, body='', finished=False))
    del notes[gone]
    notes.put({})
    with pytest.raises(ValueError, match='it is not what was written'): _Notes.read(notes.file)

def test_no_model_is_of_use(digits, tmp_path):
    "Where all losses are no numbers it is said"
    learn = small_learner(digits, tmp_path)
    learn.loss_func = lambda x,y: torch.nn.functional.cross_entropy(x, y)*float('nan')
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match='no model has a finite validation loss'): learn.fit_recipe(head_epochs=1, head_cycles=0, n_cycles=0, head_lr=1e-3)
