"The head on stored activations is the whole model with its body frozen; and a store is used for nothing that it was not made from"
import gc, json, os, random, re, shutil, sys, warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, timm, torch, torch.utils.data as tud
import fastai_clr.fit, fastai.callback.schedule   # chkstyle: ignore (they patch Learner)
from PIL import Image
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import BnFreeze
from fastai.data.block import MultiCategoryBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter, Normalize, Transform
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, accuracy_multi, rmse
from fastai.optimizer import Adam, OptimWrapper
from fastai.torch_core import TensorImage, get_random_states, set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageBlock, MaskBlock
from fastai.vision.learner import unet_learner
from fasttransform import DisplayedTransform, ItemTransform
from torch import nn
from torchvision.models import resnet18
from fastai_clr.activations import CannotDescribe
from fastai_clr.data import picture_dls, picture_learner
from fastai_clr.precompute import StaleActivations, split_model, store_parts
from conftest import root, run
from pictures import calls, listing, lite0, nudge, plain_dls, png_files, quiet, small, some

@pytest.fixture
def few(digits, tmp_path): return some(digits, tmp_path/'pictures')

@pytest.fixture
def learn(few, tmp_path): return small(few, tmp_path/'run')

@pytest.fixture(scope='module')
def shared(digits, tmp_path_factory):
    "A learner and its head, which these tests leave as they are"
    path = tmp_path_factory.mktemp('shared')
    learn = small(some(digits, path/'pictures'), path/'run')
    return learn,learn.precompute()

def agree(head, learn, rel=1e-5):
    "The loss and the metrics of both must be the same"
    a,b = head.validate(),learn.validate()
    assert list(a) == pytest.approx(list(b), rel=rel)

def stores(learn): return sorted((learn.path/'activations').glob('*'))

def arrays(head): return {k:np.array(v) for k,v in head.store.arrays.items()}

def same_arrays(a, b, **kw):
    for k in {**a,**b}: np.testing.assert_allclose(a[k], b[k], **kw)

# Cached equals frozen

def resnet(digits, path, weights):
    set_seed(0)
    return quiet(picture_learner(picture_dls(digits, size=32, bs=32, device='cpu'), 'resnet18', path=path, pretrained=False))

MAKE = dict(resnet18=resnet, lite0=lite0)

@pytest.mark.parametrize('dtype,rel', [('float32', 1e-5), ('float16', 2e-3)])
@pytest.mark.parametrize('make', MAKE.values(), ids=MAKE)
def test_head_and_whole_model_agree(digits, weights, tmp_path, make, dtype, rel):
    learn = make(digits, tmp_path, weights)
    head = learn.precompute(dtype=dtype)
    for _ in range(2):
        (loss,acc),(want,want_acc) = head.validate(),learn.validate()
        assert loss==pytest.approx(want, rel=rel) and acc==pytest.approx(want_acc, abs=0 if dtype=='float32' else .026)   # one of 40 may tip over
        for a,b in zip(head.get_preds(), learn.get_preds()): np.testing.assert_allclose(a, b, atol=rel)
        head.fit_one_cycle(1, 5e-3)
    assert acc>want_acc-.03 and head.validate()[0]<loss   # it has learned

def by_hand(body, files, size=32, mean=.5, std=.5):
    "Features by PIL, numpy and torch alone"
    res = []
    for f in files:
        x = np.asarray(Image.open(f).convert('RGB').resize((size,size), Image.BILINEAR), np.float32)/255
        x = torch.from_numpy((x-mean)/std).permute(2,0,1)[None]
        with torch.no_grad(): o = body(x)[0].flatten(1)
        res.append(torch.cat([o.max(1)[0], o.mean(1)]).numpy())
    return np.stack(res)

@pytest.mark.parametrize('dtype,tol', [('float32', 2e-4), ('float16', 2e-3)])
def test_rows_are_the_features_in_the_order_of_the_items(few, weights, tmp_path, dtype, tol):
    "The picture's way into timm's own model, without fastai and fastai_clr"
    learn = lite0(few, tmp_path/'run', weights)
    head,net = learn.precompute(dtype=dtype, bs=13),timm.create_model('tf_efficientnet_lite0').eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    for k,dl in dict(train=learn.dls.train, valid=learn.dls.valid).items():
        x,y = head.store.arrays[f'{k}_x'],head.store.arrays[f'{k}_y']
        assert x.shape==(len(dl.items),2560) and x.dtype==dtype
        np.testing.assert_allclose(x, by_hand(net.forward_features, dl.items), rtol=tol, atol=tol)
        assert y.tolist() == [int(f.parent.name) for f in dl.items]

def test_training_the_head_is_training_the_frozen_model(few, tmp_path):
    "Epoch by epoch the same weights: body in eval mode, no augmentation, the same order of pictures and the same dropout"
    def make(): return small(plain_dls(few), tmp_path/'run', train_bn=False)
    whole,learn = make(),make()
    whole.freeze()
    head = learn.precompute(dtype='float32')
    for o in whole,head:
        o.dls.train.shuffle = False
        torch.manual_seed(1)
        with o.no_logging(): o.fit(2, 1e-3, cbs=[BnFreeze()] if o is whole else [])
    assert list(o.recorder.values[-1]) == pytest.approx(list(whole.recorder.values[-1]), rel=1e-3)
    for k,v in whole.model.state_dict().items(): torch.testing.assert_close(learn.model.state_dict()[k], v, rtol=1e-3, atol=1e-4, msg=k)

def test_the_modules_are_those_of_the_whole_model(shared):
    learn,head = shared
    assert all(a is b for a,b in zip(head.model, list(learn.model[1])[2:], strict=True))
    features,_ = split_model(learn.model)
    assert features[0] is learn.model[0] and [type(o).__name__ for o in features[1:]]==['AdaptiveConcatPool2d','Flatten']
    assert head.path==learn.path and head.model_dir==Path('models/head') and head.dls.vocab==learn.dls.vocab

@pytest.mark.parametrize('kw,n', [({},64), (dict(concat_pool=False),32), (dict(custom_head=nn.Sequential(nn.Flatten(), nn.Linear(32*64,10))),32*64),
    (dict(custom_head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Flatten(), nn.Dropout(), nn.Linear(32,10))),32),
    (dict(custom_head=nn.Sequential(nn.Conv2d(32,10,1), nn.AdaptiveAvgPool2d(1), nn.Flatten())),(32,8,8))], ids=['concat','avg','flatten','dropout','conv'])
def test_other_heads(few, tmp_path, kw, n):
    learn = small(few, tmp_path/'run', **kw)
    head = learn.precompute(dtype='float32')
    assert head.store.arrays['train_x'].shape[1:]==(n if isinstance(n, tuple) else (n,))
    with head.no_logging(): head.fit(1)
    agree(head, learn, 1e-5)

def even(f): return [f.parent.name, 'even' if int(f.parent.name)%2==0 else 'odd']
def number(f): return float(f.parent.name)
def two_numbers(f): return [number(f), -number(f)]

@pytest.mark.parametrize('block,get_y,metric,kw', [(MultiCategoryBlock, even, accuracy_multi, {}), (RegressionBlock, number, rmse, dict(y_range=(0,10))),
    (partial(RegressionBlock, 2), two_numbers, rmse, {})], ids=['several labels','a number','two numbers'])
def test_other_targets(few, tmp_path, block, get_y, metric, kw):
    dls = plain_dls(few, blocks=(ImageBlock,block), get_y=get_y, batch_tfms=aug_transforms())
    learn = small(dls, tmp_path/'run', metrics=metric, **kw)
    head = learn.precompute(dtype='float32')
    with head.no_logging(): head.fit(1)
    agree(head, learn, 1e-5)
    for a,b in zip(head.get_preds(), learn.get_preds()): np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('bs', [7, 1000])
def test_batch_size_does_not_matter(learn, bs):
    want = arrays(learn.precompute(path=learn.path/'other', dtype='float32'))
    head = learn.precompute(dtype='float32', bs=bs)
    same_arrays(arrays(head), want, rtol=1e-4, atol=1e-5)
    assert [o.bs for o in head.dls] == [min(bs, 48), min(bs, 12)]
    with head.no_logging(): head.fit(1)
    assert head.recorder.values

# One pass, and none where it was made before

def test_a_hit_runs_no_pass_but_the_probe(learn, capsys):
    n = calls(learn.model[0])
    first = learn.precompute()
    assert len(n)==3+1+1 and 'Extracted the activations of 48 + 12 items' in capsys.readouterr().out   # 48/20, 12/20, and the probe
    del n[:]
    second = learn.precompute()
    assert len(n)==1 and 'Found the activations of 48 + 12 items' in capsys.readouterr().out
    assert second.store.folder==first.store.folder and second.probe_diff is not None
    del n[:]
    assert learn.precompute(check=False).probe_diff is None and len(n)==0
    assert len(stores(learn)) == 1

def test_training_the_head_runs_no_pass(learn):
    head,n = learn.precompute(),calls(learn.model[0])
    with head.no_logging(): head.fit(2)
    head.validate(), head.get_preds()
    assert not n

_again = """
import sys
import fastai_clr.precompute
from pathlib import Path
from pictures import calls, small
learn = small(Path(sys.argv[1]), Path(sys.argv[2]))
n = calls(learn.model[0])
head = learn.precompute(dtype='float32')
print(head.store.folder.name, len(n), len(list(head.store.folder.parent.iterdir())), head.validate()[0])
"""

def test_another_process_finds_it(few, learn):
    head = learn.precompute(dtype='float32')
    *_,name,n,kept,loss = run(sys.executable, '-c', _again, few, learn.path, cwd=root/'tests').split()
    assert (name,n,kept)==(head.store.folder.name,'1','1') and float(loss)==pytest.approx(head.validate()[0], rel=1e-5)

def test_messages_can_be_turned_off(learn, capsys):
    with learn.no_logging(): learn.precompute(), learn.precompute()
    assert 'activations' not in capsys.readouterr().out

# Misses, and hits

def replace_content(path, i=0):
    "Another picture under the same name, of the same size in bytes and the same time"
    f = png_files(path)[i]
    was,new = f.stat(),next(o.read_bytes() for o in png_files(path) if o!=f and o.stat().st_size<=f.stat().st_size)
    f.write_bytes(new.ljust(was.st_size, b'\0'))
    os.utime(f, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert f.stat().st_size==was.st_size and f.stat().st_mtime_ns==was.st_mtime_ns

def reverse(path): return png_files(path)[::-1]
def label_of_0_is_1(f): return '1' if f.name=='0000.png' else f.parent.name

MISSES = {   # name: (change of the files, arguments of plain_dls, change of the learner, arguments of precompute, parts)
    'weight': (None, {}, lambda l: nudge(l.model[0][3][0].conv1.weight), {}, 'body'),
    'BatchNorm weight': (None, {}, lambda l: nudge(l.model[0][1].bias), {}, 'body'),
    'BatchNorm statistic': (None, {}, lambda l: nudge(l.model[0][1].running_var), {}, 'body'),
    'layer': (None, {}, lambda l: l.model[0].__setitem__(2, nn.Tanh()), {}, 'architecture'),
    'size': (None, dict(size=40), None, {}, 'transforms'),
    'resize method': (None, dict(item_tfms=[Resize((32,30))]), None, {}, 'transforms'),
    'normalization': (None, dict(batch_tfms=[Normalize.from_stats(*imagenet_stats)]), None, {}, 'transforms'),
    'content': (replace_content, {}, None, {}, 'items'),
    'added': (lambda p: shutil.copy(p/'3/0003.png', p/'3/0203.png'), {}, None, {}, 'items, targets'),
    'removed': (lambda p: (p/'3/0003.png').unlink(), {}, None, {}, 'items, targets'),
    'renamed': (lambda p: (p/'3/0003.png').rename(p/'3/1003.png'), {}, None, {}, 'items, targets'),
    'reordered': (None, dict(get_items=reverse), None, {}, 'items, targets'),
    'label': (None, dict(get_y=label_of_0_is_1), None, {}, 'targets'),
    'moved': (lambda p: shutil.move(p/'3/0003.png', p/'4/0003.png'), {}, None, {}, 'items, targets'),
    'dtype': (None, {}, None, dict(dtype='float32'), 'dtype'),
    'pool': (None, {}, lambda l: l.model[1].__setitem__(0, nn.AdaptiveMaxPool2d(1)), {}, 'architecture, cut'),
    'autocast': (None, {}, lambda l: l.add_cb(MixedPrecision()), {}, 'compute')}

def with_pool(learn, pool): learn.model[1] = nn.Sequential(pool, nn.Flatten(), nn.Linear(32, 10))

@pytest.mark.parametrize('files,data,model,kw,parts', MISSES.values(), ids=MISSES)
def test_misses(few, tmp_path, capsys, files, data, model, kw, parts):
    def make(**kw):
        learn = small(plain_dls(few, **kw), tmp_path/'run')
        with_pool(learn, nn.AdaptiveAvgPool2d(1))
        return learn
    was = make().precompute(check=False)
    if files: files(few)
    learn = make(**data)
    if model: model(learn)
    capsys.readouterr()
    head = learn.precompute(**kw)
    assert head.store.folder!=was.store.folder and len(stores(learn))==2
    assert f'since the last time there are changes in {parts}\n' in capsys.readouterr().out
    agree(head, learn, 2e-2 if parts=='compute' else 2e-3)

def test_another_split_misses(few, tmp_path):
    for seed in (1,2):
        learn = small(picture_dls(few, size=32, bs=20, seed=seed, device='cpu'), tmp_path/'run')
        head = learn.precompute()
        assert head.store.arrays['valid_y'].tolist() == [int(f.parent.name) for f in learn.dls.valid.items]
    assert len(stores(learn)) == 2

def touch(path): [os.utime(f, (0,0)) for f in png_files(path)]

def fit_head(learn):
    with learn.no_logging(): learn.precompute().fit(1)

HITS = {   # name: (change of the files, arguments of plain_dls, arguments of resnet, change of the learner)
    'augmentation': (None, dict(batch_tfms=aug_transforms(max_rotate=30., max_zoom=2., max_lighting=.9)), {}, None),
    'flip': (None, dict(batch_tfms=aug_transforms(do_flip=False)), {}, None),
    'bs': (None, dict(bs=5), {}, None),
    'times of the files': (touch, {}, {}, None),
    'loss, metrics, lr': (None, {}, dict(loss_func=CrossEntropyLossFlat(), metrics=[], lr=.1), None),
    'unfrozen': (None, {}, {}, lambda l: l.unfreeze()),
    'frozen': (None, {}, {}, lambda l: l.freeze()),
    'eval mode': (None, {}, {}, lambda l: l.model.eval()),
    'random state': (None, {}, {}, lambda l: set_seed(99)),
    'trained head': (None, {}, {}, fit_head),
    'used transforms': (None, {}, {}, lambda l: (l.dls.one_batch(), l.dls.valid.one_batch())),
    'a new head': (None, {}, dict(lin_ftrs=[7], ps=.9), None)}

@pytest.mark.parametrize('files,data,args,model', HITS.values(), ids=HITS)
def test_hits(few, tmp_path, files, data, args, model):
    was = small(plain_dls(few, batch_tfms=aug_transforms()), tmp_path/'run').precompute()
    if files: files(few)
    learn = small(plain_dls(few, **{'batch_tfms': aug_transforms(), **data}), tmp_path/'run', **args)
    if model: model(learn)
    n = calls(learn.model[0])
    head = learn.precompute()
    assert len(n)==1 and head.store.folder==was.store.folder
    agree(head, learn, 2e-3)

def test_moved_pictures_and_another_path_hit(few, learn, tmp_path):
    "A folder of stores may serve many runs, and the pictures may move"
    head = learn.precompute(path=tmp_path/'stores')
    few.rename(tmp_path/'moved')
    assert small(tmp_path/'moved', tmp_path/'run 2').precompute(str(tmp_path/'stores')).store.folder == head.store.folder

FOLDER = None   # of `by_name`
def rows(path): return [[f, f.parent.name] for f in png_files(path)]
def names(path): return [f'{f.parent.name}/{f.name}' for f in png_files(path)]
def first(o): return o[0]
def second(o): return o[1]
def by_name(o): return FOLDER/o

@pytest.mark.parametrize('items,get_x,get_y', [(rows, first, second), (names, by_name, first)])
def test_items_that_only_lead_to_pictures(few, tmp_path, monkeypatch, items, get_x, get_y):
    "The picture changes, and its file is not among the items"
    monkeypatch.setitem(globals(), 'FOLDER', few)
    def features():
        learn = small(plain_dls(few, get_items=items, get_x=get_x, get_y=get_y, splitter=IndexSplitter(range(12))), tmp_path/'run')
        return arrays(learn.precompute(check=False))['train_x']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # that they can't be kept is fine
        was = features()
        replace_content(few, -1)
        assert not np.array_equal(was, features())

# Transforms

class Scale(Transform):
    def __init__(self, by): self.by = by
    def encodes(self, x:TensorImage): return x*self.by

class Apply(Transform):
    def __init__(self, f): self.f = f
    def encodes(self, x:TensorImage): return self.f(x)

class Hidden(Transform):
    "Keeps its argument under another name"
    def __init__(self, by): self.k = by
    def encodes(self, x:TensorImage): return x*self.k

class Loose(Transform):
    "Takes its argument from **kwargs"
    def __init__(self, **kwargs):
        super().__init__()
        self.by = kwargs['by']
    def encodes(self, x:TensorImage): return x*self.by

class Callable:
    def __init__(self, by): self.by = by
    def __call__(self, x): return x

def plus(x, by=1): return x
def minus(x): return x

def tfm_class(body, name='T'):
    ns = {'Transform': Transform, '__name__': 'mod'}
    exec(f'class {name}(Transform):\n    def encodes(self, x): return {body}', ns)
    return ns[name]()

def with_attr(o, k, v):
    setattr(o, k, v)
    return o

def parts_of(learn, tfm):
    "What the store says of a transform, or that it is refused"
    learn.dls.valid.after_item.fs.append(tfm)
    try: return json.dumps(store_parts(learn, split_model(learn.model)[0], 'float16')['transforms'], sort_keys=True)
    except CannotDescribe: return None
    finally: learn.dls.valid.after_item.fs.pop()

DIFFER = {   # what differs: two transforms, or functions to make them of
    'argument': (Scale(1), Scale(2)),
    'function': (Transform(plus), Transform(minus)),
    'partial': (Transform(partial(plus, by=1)), Transform(partial(plus, by=2))),
    'class': (Scale(1), Hidden(1)),
    'callable': (Transform(Callable(1)), Transform(Callable(2))),
    'ItemTransform': (ItemTransform(plus), ItemTransform(minus)),
    'DisplayedTransform': (DisplayedTransform(enc=plus), DisplayedTransform(enc=minus)),
    'kwargs': (Loose(by=1), Loose(by=2)),
    'hidden argument': (Hidden(1), Hidden(2)),
    'code of a class': (tfm_class('x+1'), tfm_class('x+2')),
    'attribute': (with_attr(Callable(1), 'by', 3), Callable(1)),
    'attribute of a transform': (with_attr(tfm_class('x+1'), 'k', 1), tfm_class('x+1')),
    'mean': (Normalize.from_stats([.5],[.5],cuda=False), Normalize.from_stats([.4],[.5],cuda=False)),
    'resize': (Resize(32), Resize(33)),
    'method': (Resize(32), Resize(32, 'squish')),
    'pad': (Resize(32, 'pad', 'zeros'), Resize(32, 'pad', 'border'))}

@pytest.mark.parametrize('a,b', DIFFER.values(), ids=DIFFER)
def test_transforms_are_told_apart(shared, a, b):
    a,b = [parts_of(shared[0], o if isinstance(o, Transform) else Transform(o)) for o in (a,b)]
    assert a is None or b is None or a!=b

@pytest.mark.parametrize('a,b', [(Scale(1), Scale(1)), (Resize(32), Resize(32)), (Transform(plus), Transform(plus)), (Transform(plus, split_idx=0),
    Transform(minus, split_idx=0))])
def test_equal_transforms_are_described_alike(shared, a, b): assert parts_of(shared[0], a) == parts_of(shared[0], b) != None

def test_used_transforms_are_described_alike(shared):
    t = Resize(16)
    was = parts_of(shared[0], t)
    t(Image.new('RGB', (40,20)), split_idx=0)
    assert parts_of(shared[0], t) == was

@pytest.mark.parametrize('tfm,name', [(lambda x: x, '<lambda>'), (Apply(lambda x: x), '<lambda>')],
    ids=['lambda','argument'])
def test_what_cannot_be_told_makes_a_store_for_once(few, tmp_path, tfm, name):
    learn = small(plain_dls(few, batch_tfms=[tfm]), tmp_path/'run')
    with pytest.warns(UserWarning, match=re.escape(name)): head = learn.precompute(dtype='float32')
    folder = head.store.folder
    assert folder.exists() and not stores(learn)
    agree(head, learn, 1e-5)
    del head
    gc.collect()
    assert not folder.exists()

# Stale activations

CALLS = dict(fit=lambda h: h.fit(1), validate=lambda h: h.validate(), get_preds=lambda h: h.get_preds(), lr_find=lambda h: h.lr_find(show_plot=False),
    fit_one_cycle=lambda h: h.fit_one_cycle(1), fit_sgdr=lambda h: h.fit_sgdr(1))

def fit_unfrozen(learn):
    learn.unfreeze()
    with learn.no_logging(): learn.fit(1)

def fit_frozen(learn):
    learn.freeze()   # BatchNorm trains on
    with learn.no_logging(): learn.fit(1)

def load_other(learn):
    other = small(learn.dls, learn.path, seed=1)
    other.save('other')
    learn.load('other')

def another(learn): return small(learn.dls, learn.path, seed=1).model

def swap_body(learn): learn.model[0] = another(learn)[0]
def swap_all(learn): learn.model = another(learn)
def swap_around_head(learn): learn.model = nn.Sequential(another(learn)[0], learn.model[1])
def swap_head(learn): learn.model[1] = another(learn)[1]
def swap_pool(learn): learn.model[1][0] = nn.AdaptiveAvgPool2d((1,2))
def swap_layer(learn): learn.model[0][2] = nn.Tanh()

STALE = {   # name: (change of the learner, what the error says)
    'weight': (lambda l: nudge(l.model[0][3][0].conv1.weight), r'3\.0\.conv1\.weight'),
    'BatchNorm statistic': (lambda l: nudge(l.model[0][1].running_mean), r'1\.running_mean'),
    'integer buffer': (lambda l: l.model[0][1].num_batches_tracked.add_(1), 'num_batches_tracked'),
    'unfrozen and fitted': (fit_unfrozen, r'\d+ of its weights and statistics'),
    'frozen and fitted': (fit_frozen, r'\d+ of its weights and statistics'),
    'weights loaded': (load_other, r'0\.weight'),
    'half': (lambda l: l.model[0].half(), r'0\.weight'),
    'body replaced': (swap_body, 'replaced|changed'),
    'model replaced': (swap_all, 'was replaced'),
    'model replaced around the head': (swap_around_head, 'replaced|changed'),
    'head replaced': (swap_head, 'was replaced'),
    'pool replaced': (swap_pool, 'replaced|changed'),
    'layer replaced': (swap_layer, 'replaced|changed')}

@pytest.mark.parametrize('change,says', STALE.values(), ids=STALE)
def test_stale_activations_are_refused(learn, change, says):
    head = learn.precompute()
    head.validate()
    change(learn)
    before = [p.clone() for p in head.model.parameters()]
    for name,call in CALLS.items():
        with pytest.raises(StaleActivations, match=says) as e: call(head)
        assert 'call `learn.precompute()` again' in str(e.value).lower(), name
    assert all(torch.equal(a, b) for a,b in zip(before, head.model.parameters()))

@pytest.mark.parametrize('change', [lambda l: l.freeze(), lambda l: l.unfreeze(), lambda l: l.model.eval(), lambda l: l.model.train(), lambda l: l.validate(),
    lambda l: nudge(l.model[1][4].weight)], ids=['freeze','unfreeze','eval','train','validate','head'])
def test_what_leaves_the_body_alone_is_fine(learn, change):
    head = learn.precompute(dtype='float32')
    change(learn)
    agree(head, learn, 1e-5)

@pytest.mark.parametrize('name', ['predict', 'export', 'show_results', 'tta'])
def test_what_needs_pictures_points_to_the_whole_learner(shared, name):
    with pytest.raises(NotImplementedError, match=f'`{name}` needs pictures.*on the Learner that made it'): getattr(shared[1], name)('x.png')

# What cannot be precomputed

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3*32*32, 10)
    def forward(self, x): return self.lin(x.flatten(1))

@pytest.mark.parametrize('model,says', [(Net(), 'Net of Linear'), (nn.Sequential(nn.Flatten(), nn.Linear(3072,10), nn.ReLU()),
    'Sequential of Flatten, Linear, ReLU'),
    (nn.Sequential(nn.Flatten(), nn.Linear(3072,10)), 'Sequential of Flatten, Linear'), (nn.Sequential(Net(), nn.Sequential(nn.Identity())),
    'a head with parameters'), (nn.Sequential(), 'Sequential')],
    ids=['net','three','no Sequential','no parameters','empty'])
def test_other_models_are_refused(few, tmp_path, model, says):
    learn = quiet(Learner(plain_dls(few), model, loss_func=CrossEntropyLossFlat(), path=tmp_path/'run'))
    with pytest.raises(TypeError, match=f'precompute needs.*{says}'): learn.precompute()
    assert not (tmp_path/'run').exists()

def test_unet_is_refused(few, tmp_path):
    dls = plain_dls(few, blocks=(ImageBlock,MaskBlock), get_y=lambda f: f, bs=4)
    learn = quiet(unet_learner(dls, resnet18, n_out=2, pretrained=False, loss_func=CrossEntropyLossFlat(axis=1), path=tmp_path/'run'))
    with pytest.raises(TypeError, match='precompute needs a model that is Sequential.*DynamicUnet'): learn.precompute()

class Several(nn.Module):
    def forward(self, x): return [x.mean((2,3)), x.amax((2,3))]

def tensors(n=12):
    torch.manual_seed(0)
    return tud.TensorDataset(torch.randn(n,3,8,8), torch.arange(n)%2)

class Unknown(tud.Dataset):
    "A data set of the user's own"
    def __init__(self, ds): self.ds = ds
    def __len__(self): return len(self.ds)
    def __getitem__(self, i): return self.ds[i]

def tiny(dls, path, body=None, head=None):
    torch.manual_seed(0)
    body = body or nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential(body, head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,2)))
    return quiet(Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=path))

@pytest.mark.parametrize('ds,lasts', [(tensors(), True), (Unknown(tensors()), False), (tud.Subset(tensors(), [1,2,5,7]), False)],
    ids=['tensors','own','subset'])
def test_other_data_sets(tmp_path, ds, lasts):
    learn = tiny(DataLoaders(DataLoader(ds, 4, shuffle=True, drop_last=True), DataLoader(ds, 4)), tmp_path)
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        head = learn.precompute(dtype='float32')
    assert lasts == (not any("can't be kept" in str(w.message) for w in ws)) == bool(stores(learn))
    with head.no_logging(): head.fit(1)
    agree(head, learn, 1e-5)

def test_changed_tensors_miss(tmp_path):
    for x in (0,1):
        ds = tensors()
        ds.tensors[0][3,0,0,0] += x
        learn = tiny(DataLoaders(DataLoader(ds, 4), DataLoader(ds, 4)), tmp_path)
        learn.precompute()
    assert len(stores(learn)) == 2

def test_dataloaders_of_torch_are_refused(tmp_path):
    learn = tiny(DataLoaders(tud.DataLoader(tensors(), 4), tud.DataLoader(tensors(), 4)), tmp_path)
    with pytest.raises(TypeError, match='DataLoader'): learn.precompute()

@pytest.mark.parametrize('body,says', [(Several(), 'one tensor, got list'), (nn.Sequential(Several()), 'one tensor')])
def test_a_body_of_several_outputs_is_refused(tmp_path, body, says):
    learn = tiny(DataLoaders(DataLoader(tensors(), 4), DataLoader(tensors(), 4)), tmp_path, body, nn.Sequential(nn.Linear(3,2)))
    with pytest.raises(TypeError, match=says): learn.precompute()
    assert stores(learn) == []

@pytest.mark.parametrize('kw', [dict(dtype='int8'), dict(dtype=None), dict(dtype=torch.float16), dict(bs=-1), dict(bs=2.5), dict(bs='a')], ids=str)
def test_arguments_are_checked_at_the_call(learn, kw):
    with pytest.raises(ValueError, match=f'`{next(iter(kw))}` must be'): learn.precompute(**kw)

def scale_last(learn, by):
    "Multiply what the body gives out"
    bn = learn.model[0][4][0].bn2
    with torch.no_grad(): bn.weight.mul_(by), bn.bias.add_(by)

def test_overflow_names_the_way_out(learn):
    scale_last(learn, 1e6)
    with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        with pytest.raises(ValueError, match="float16 can't hold.*dtype='float32'"): learn.precompute()
    assert stores(learn) == []
    agree(learn.precompute(dtype='float32'), learn, 1e-4)

def test_activations_that_are_not_finite_are_refused(learn):
    scale_last(learn, float('nan'))
    with pytest.raises(ValueError, match='not finite'): learn.precompute(dtype='float32')
    assert stores(learn) == []

def test_the_probe_finds_a_wrong_store(learn):
    f = learn.precompute().store.folder/'valid_x.npy'
    a = np.load(f)
    np.save(f, a[::-1])
    with pytest.raises(RuntimeError, match='disagree.*delete'): learn.precompute()

def test_a_disk_too_small_is_said_before_the_work(learn, monkeypatch):
    "Room for the training set (48 rows of 64), not for both: said before the first pass is done"
    monkeypatch.setattr(shutil, 'disk_usage', lambda o: SimpleNamespace(free=50*64*2))
    n = calls(learn.model[0])
    with pytest.raises(OSError, match='MB free'): learn.precompute(bs=4)
    assert len(n)<=1 and stores(learn)==[]

# All is as it was

def modes(m): return [o.training for o in m.modules()]

class Stop(Exception): pass

@pytest.mark.parametrize('fails', [0, 2, 4])   # in no pass, in that over the training set, in that over the validation set
def test_modes_and_data_are_as_before(learn, fails):
    learn.model[0][3].eval()
    learn.model[1][3].eval()
    was,n,dls = modes(learn.model),calls(learn.model[0]),(learn.dls.train,learn.dls.valid)
    def stop(*a):
        if fails and len(n)>=fails: raise Stop
    hook = learn.model[0].register_forward_hook(stop)
    if fails:
        with pytest.raises(Stop): learn.precompute()
        assert stores(learn) == []
    else: learn.precompute()
    hook.remove()
    assert modes(learn.model)==was and (learn.dls.train,learn.dls.valid)==dls
    assert [o.dataset.split_idx for o in learn.dls]==[0,1] and [o.shuffle for o in learn.dls]==[True,False] and [o.bs for o in learn.dls]==[20,20]
    if fails: agree(learn.precompute(), learn, 2e-3)

def batches(learn):
    set_seed(5)
    return [(x.clone(), y.clone()) for x,y in learn.dls.train]

def test_training_data_is_as_without(few, tmp_path):
    "The same order and the same augmentation as in a learner that was never precomputed"
    a,b = small(few, tmp_path/'a'),small(few, tmp_path/'b')
    b.precompute()
    one,two = batches(a),batches(b)
    for (x,y),(x2,y2) in zip(one, two, strict=True): assert torch.equal(y, y2) and torch.equal(x, x2)
    assert not any(torch.equal(x, x2) for (x,_),(x2,_) in zip(one, batches(b)))   # still shuffled anew and augmented

@pytest.mark.parametrize('hit', [False, True])
def test_random_state_is_left_alone(learn, hit):
    if hit: learn.precompute()
    was = get_random_states()
    learn.precompute()
    now = get_random_states()
    assert random.getstate()==was['random_state'] and torch.equal(now['torch_state'], was['torch_state'])
    assert all(np.array_equal(a, b) for a,b in zip(now['numpy_state'], was['numpy_state']))

def test_a_found_store_trains_like_a_new_one(few, tmp_path):
    def losses():
        learn = small(few, tmp_path/'run')
        set_seed(1)
        head = learn.precompute()
        with head.no_logging(): head.fit(2)
        return list(head.recorder.values)
    assert losses() == losses()

def test_nothing_is_written_elsewhere(few, tmp_path, monkeypatch):
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    was = listing(few)
    head = small(few, tmp_path/'run').precompute()
    with head.no_logging():
        head.fit(2, cbs=[SaveModelCallback(), CSVLogger()])
        head.lr_find(show_plot=False)
    head.save('mine')
    assert listing(few)==was and not listing(tmp_path/'here') and sorted(o.name for o in tmp_path.iterdir())==['here','pictures','run']
    assert {o.name for o in (tmp_path/'run').rglob('*') if o.is_file() and 'activations' not in o.parts} == {'history.csv','mine.pth','model.pth'}

def wrapped(*args, **kw): return OptimWrapper(*args, opt=torch.optim.AdamW, **kw)

@pytest.mark.parametrize('opt_func', [Adam, wrapped])
def test_optimizer_forgets_the_head_alone(few, tmp_path, opt_func):
    learn = small(few, tmp_path/'run', opt_func=opt_func)
    learn.unfreeze()
    with learn.no_logging(): learn.fit(1)
    head,flags = learn.precompute(),('do_wd','force_train')
    def state(o, p): return {**o.state.get(p, {}), **(o.opt.state.get(p, {}) if hasattr(o, 'opt') else {})}
    was = {p:state(learn.opt, p) for p in learn.model.parameters()}
    assert all(set(v)-set(flags) for v in was.values())
    with head.no_logging(): head.fit(1)
    mine = set(head.model.parameters())
    for p,v in was.items(): assert state(learn.opt, p)==({k:o for k,o in v.items() if k in flags} if p in mine else v)
    with learn.no_logging(): learn.fit(1)

# The head's Learner

@pytest.mark.parametrize('call', [lambda h: h.fit_one_cycle(2, 1e-2), lambda h: h.fit_sgdr(2, 1, 1e-2, cycle_mult=1), lambda h: h.fit_clr(1, 1, 1e-2),
    lambda h: h.fit(2, 1e-3, cbs=SaveModelCallback(monitor='accuracy')), lambda h: h.fit(2, slice(1e-3))], ids=['one_cycle','sgdr','clr','save','fit'])
def test_training(learn, call):
    head = learn.precompute(dtype='float32')
    body,was = {k:v.clone() for k,v in learn.model[0].state_dict().items()},head.validate()[0]
    with head.no_logging(): call(head)
    assert head.recorder.metric_names==['epoch','train_loss','valid_loss','accuracy','time'] and len(head.recorder.values)==2
    assert head.validate()[0] != was
    assert all(torch.equal(v, learn.model[0].state_dict()[k]) for k,v in body.items())
    agree(head, learn, 1e-5)

def test_lr_find_leaves_no_trace(learn):
    head = learn.precompute()
    was = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with head.no_logging(): assert head.lr_find(show_plot=False).valley>0
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in was.items()) and not list((learn.path/'models/head').iterdir())

@pytest.mark.parametrize('ds_idx', [0, 1])
def test_get_preds(learn, ds_idx):
    head = learn.precompute(dtype='float32')
    i,p,y,d = head.get_preds(ds_idx, with_input=True, with_decoded=True)
    assert p.shape==(len(y),10) and torch.equal(d, p.argmax(1))
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(i, head.store.arrays[f"{['train','valid'][ds_idx]}_x"])
    assert y.tolist() == [int(f.parent.name) for f in learn.dls[ds_idx].items]

def test_arrays_are_opened_by_numpy_alone(shared):
    learn,head = shared
    folder = head.store.folder
    assert sorted(o.name for o in folder.iterdir()) == ['manifest.json','train_x.npy','train_y.npy','valid_x.npy','valid_y.npy']
    assert np.load(folder/'train_x.npy', mmap_mode='r', allow_pickle=False).shape==(48,64)
    parts = json.loads((folder/'manifest.json').read_text())['parts']
    assert sorted(parts)==['architecture','body','compute','cut','dtype','items','targets','transforms'] and parts['items']['train']['n']==48
