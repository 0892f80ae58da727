"Odd numbers and odd data, through the whole recipe: a clear word, never a silent wrong result"
import json, os, shutil, warnings
import numpy as np, pytest, torch
from fastai.learner import load_learner
from PIL import Image
from fastai_clr.all import picture_dls
from fastai_clr.recipe import RecipeReport, _judge
from fastai_clr import report as _   # adds `save` to the report; chkstyle: ignore
from learners import quiet
from pictures import small, some

def recipe(learn, **kw):
    with warnings.catch_warnings(), learn.no_logging():
        warnings.simplefilter('ignore')
        return learn.fit_recipe(**{**dict(head_epochs=2, head_cycles=1, n_cycles=1), **kw})

def finite(learn): return all(torch.isfinite(o).all() for o in learn.model.state_dict().values())

def test_training_that_diverges_is_not_kept(digits, tmp_path):
    "A lr that makes the whole network's loss nan: the model is that of an earlier step"
    learn = small(digits, tmp_path)
    r = recipe(learn, lr=1e30)
    assert r.finished and r.kept in ('step 3','step 4') and finite(learn) and r.ensemble is None
    assert not np.isfinite([o['valid_loss'] for o in r.candidates if o['name']=='step 8']).any()
    best = min(o['valid_loss'] for o in r.candidates if np.isfinite(o['valid_loss']))
    assert learn.validate()[0]==pytest.approx(best, rel=1e-4)

def test_a_head_that_diverges(digits, tmp_path):
    learn = small(digits, tmp_path)
    r = recipe(learn, head_lr=1e30, n_cycles=0)
    assert r.finished and not np.isfinite(r.steps[-1]['valid_loss'])
    r.save(tmp_path/'report')
    assert json.loads((tmp_path/'report/report.json').read_text())['steps'][-1]['valid_loss'] is None

def test_all_pictures_alike(tmp_path):
    "Nothing can be learned of them, and that they are in both sets is said"
    for c in 'ab':
        (tmp_path/'src'/c).mkdir(parents=True)
        for i in range(30): Image.new('RGB', (32,32), 'gray').save(tmp_path/'src'/c/f'{i}.png')
    with pytest.warns(UserWarning, match='12 of 12 pictures for validation are in the training set too'): dls = picture_dls(tmp_path/'src', size=32, bs=16, device='cpu')
    learn = small(dls, tmp_path/'run')
    r = recipe(learn)
    assert r.finished and finite(learn) and r.best['metric']==pytest.approx(.5, abs=.01) and len(r.steps)==8

def test_a_class_that_validation_has_not(digits, tmp_path):
    for i,f in enumerate(sorted(some(digits, tmp_path/'all', 100).rglob('*.png'))):
        to = tmp_path/'src'/('valid' if i%4==0 and f.parent.name!='3' else 'train')/f.parent.name
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    learn = small(picture_dls(tmp_path/'src', size=32, bs=16, flip=False, device='cpu'), tmp_path/'run')
    r = recipe(learn)
    assert r.finished and len(r.vocab)==10 and np.sum(r.confusion[3])==0 and np.sum(r.confusion)==len(learn.dls.valid_ds)

@pytest.mark.parametrize('n', [17,33])
def test_one_row_is_left_for_the_last_batch(digits, tmp_path, n):
    "BatchNorm could not train on it: it is left out of each epoch, as fastai does, and validation sees all rows"
    src = some(digits, tmp_path/'src', n+5)
    learn = small(picture_dls(src, size=32, bs=16, valid_pct=5.5/(n+5), flip=False, device='cpu'), tmp_path/'run')
    assert len(learn.dls.train_ds)%16==1
    r = recipe(learn)
    assert r.finished and finite(learn) and np.sum(r.confusion)==5

def judged(n, n_items=50):
    "A report on `n` classes"
    class Stub: pass
    learn = Stub()
    learn.dls,learn.loss_func = Stub(),None
    learn.dls.vocab,learn.dls.valid_ds = [f'c{i}' for i in range(n)],[(None,0)]*n_items
    r,gen = RecipeReport({}, {}, finished=True),torch.Generator().manual_seed(0)
    _judge(r, learn, torch.rand(n_items, n, generator=gen).softmax(1), torch.randint(n, (n_items,), generator=gen))
    return r

def test_ten_thousand_classes(tmp_path):
    "No matrix of a hundred million numbers; the worst mistakes all the same"
    r = judged(10_000)
    r.save(tmp_path)
    assert r.confusion==[] and len(r.mistakes)==12 and len(r.vocab)==10_000 and sum(o.stat().st_size for o in tmp_path.iterdir())<2e6
    assert np.sum(judged(1000).confusion)==50

def test_a_float16_store_that_overflows(digits, tmp_path):
    "Found as they are extracted, stored as float32 with a warning, and just as exact; the next call finds them"
    learn = small(digits, tmp_path)
    bn = learn.model[0][4][0].bn2
    with torch.no_grad(): bn.weight.mul_(1e6), bn.bias.add_(1e6)
    with pytest.warns(UserWarning, match="float16 can't hold these activations, the largest is .*: they are stored as float32 instead, which takes twice the room"): head = learn.precompute()
    assert head.stores['train'].info['x']['dtype']=='float32'
    with head.no_bar(), learn.no_bar(): torch.testing.assert_close(head.get_preds()[0], learn.get_preds()[0], rtol=1e-4, atol=1e-5)
    made = head.stores['train'].manifest['made']
    with pytest.warns(UserWarning, match='stored as float32'): assert learn.precompute().stores['train'].manifest['made']==made

@pytest.mark.skipif(not os.environ.get('STRESS'), reason='takes minutes: set STRESS=1')
def test_ten_thousand_classes_of_pictures(tmp_path):
    rnd = np.random.default_rng(0)
    for c in range(10_000):
        (tmp_path/f'src/c{c}').mkdir(parents=True)
        for i in range(2): Image.fromarray(rnd.integers(0, 255, (8,8,3), dtype=np.uint8)).save(tmp_path/f'src/c{c}/{i}.png')
    learn = small(picture_dls(tmp_path/'src', size=8, bs=256, flip=False, device='cpu', valid_pct=.5), tmp_path/'run')
    r = recipe(quiet(learn))
    r.save(tmp_path/'run')
    learn.export()
    assert r.finished and len(load_learner(tmp_path/'run/export.pkl').dls.vocab)==10_000

@pytest.mark.parametrize('counts', [(120,12,3),(20,20),(40,1,1,1)], ids=['unbalanced','two','nearly one'])
def test_sets_of_other_shapes(tmp_path, counts):
    rnd = np.random.default_rng(0)
    for c,n in enumerate(counts):
        (tmp_path/f'src/{c}').mkdir(parents=True)
        for i in range(n): Image.fromarray((rnd.integers(0, 80, (8,8,3))+60*c).clip(0, 255).astype(np.uint8)).save(tmp_path/f'src/{c}/{i}.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = small(picture_dls(tmp_path/'src', size=16, bs=8, flip=False, device='cpu'), tmp_path/'run')
    r = recipe(learn)
    assert r.finished and finite(learn) and len(r.vocab)==len(counts) and np.sum(r.confusion)==len(learn.dls.valid_ds)
