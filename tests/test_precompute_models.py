"What the head says on stored activations is what the whole model says, over whole data sets: of networks, texts, targets, several inputs and samplers"
import numpy as np, pandas as pd, pytest, random, torch, warnings
import fastai.callback.data, fastai.callback.schedule   # chkstyle: ignore (they patch DataBlock and Learner)
from fastai.callback.training import BnFreeze
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.load import DataLoader
from fastai.data.transforms import FuncSplitter, parent_label
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, accuracy_multi, rmse
from fastai.text.core import BaseTokenizer
from fastai.text.data import TextBlock, TextDataLoaders
from fastai.text.learner import text_classifier_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config
from fastai.torch_core import params, set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock, ImageDataLoaders
from fastai.vision.learner import vision_learner
from functools import partial
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50
from fastai_clr.precompute import PooledEncoder, RowsDL, split_model
from pictures import calls, every_5th, plain_dls, png_files, quiet, small, some

DTYPES = dict(float32=1e-5, float16=2e-3, bfloat16=2e-2)

@pytest.fixture(scope='module')
def many(digits, tmp_path_factory): return some(digits, tmp_path_factory.mktemp('many')/'pictures', 90)

def settled(learn):
    "`learn` with the BatchNorm statistics of some batches, so that random weights give activations of usual sizes"
    learn.model.train()
    with torch.no_grad():
        for _ in range(3): learn.model(*learn.dls.one_batch()[:learn.dls.n_inp])
    return learn

def results(o, ds_idx): return list(o.validate()), *o.get_preds(ds_idx)

def agree(head, learn, rel=1e-5, ds_idx=1):
    "Loss, metrics, predictions and targets"
    (a,p,y),(b,q,z) = results(head, ds_idx),results(learn, ds_idx)
    assert a==pytest.approx(b, rel=rel) and torch.equal(y, z) and len(p)==len(learn.dls[ds_idx].dataset)
    np.testing.assert_allclose(p, q, rtol=rel, atol=rel)

def agree_on_classes(head, learn, rel):
    "The same; but where storage rounds, another class may win if the two best are as close as that"
    (a,p,y),(b,q,z) = results(head, 1),results(learn, 1)
    assert a[0]==pytest.approx(b[0], rel=rel) and torch.equal(y, z) and len(p)==len(learn.dls.valid.dataset)
    np.testing.assert_allclose(p, q, atol=rel)
    best,tipped = q.topk(2).values,p.argmax(1)!=q.argmax(1)
    assert ((best[:,0]-best[:,1])[tipped]<2*rel).all() and a[1]==pytest.approx(b[1], abs=float(tipped.float().mean())+1e-9)

# Networks

def timm_net(name, **kw): return lambda dls, path: vision_learner(dls, name, pretrained=False, metrics=accuracy, path=path, **kw)
def torch_net(f): return lambda dls, path: vision_learner(dls, f, pretrained=False, metrics=accuracy, path=path)

def longer(dls, path):
    "A Sequential of four, cut by its splitter"
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16)),
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(.2), nn.Linear(64, 10)))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, splitter=lambda m: [params(m[:2]), params(m[2]), params(m[3])], path=path)

vit = partial(timm_net, 'vit_tiny_patch16_224', img_size=32, depth=2, embed_dim=48, num_heads=3)
NETS = dict(resnet18=torch_net(resnet18), resnet34=torch_net(resnet34), resnet50=torch_net(resnet50), efficientnet=timm_net('tf_efficientnet_lite0'),
    convnext=timm_net('convnext_atto', depths=(1,1,2,1), dims=(8,16,24,32)), vit_token=vit(global_pool='token'), vit_pooled=vit(global_pool='avg'),
    longer=longer)

@pytest.mark.parametrize('make', NETS.values(), ids=NETS)
def test_networks(many, tmp_path, make):
    "Before and after the head is trained; the body stands still all the while"
    set_seed(0)
    learn = settled(quiet(make(plain_dls(many, bs=16), tmp_path)))
    features,head = split_model(learn.model, learn.splitter)
    was = {k:v.clone() for k,v in features.state_dict().items()}
    for dtype,rel in DTYPES.items():
        head = learn.precompute(dtype=dtype)
        assert head.stores['train'].info['x']['dtype']==dtype and head.stores['train'].arrays['x'].shape[0]==72
        agree_on_classes(head, learn, rel)
        loss = head.validate()[0]
        with head.no_logging(): head.fit_one_cycle(1, 5e-3)
        assert head.validate()[0]!=loss
        agree_on_classes(head, learn, rel)
    agree(learn.precompute(dtype='float32'), learn, ds_idx=0)
    assert all(torch.equal(v, was[k]) for k,v in features.state_dict().items())

@pytest.mark.parametrize('other', [dict(num_heads=6), dict(global_pool='max'), dict(global_pool='token'), dict(img_size=48)],
    ids=['heads','pool','token','size'])
def test_networks_of_the_same_weights_are_told_apart(many, tmp_path, other):
    "Also where `repr` doesn't show what differs; unprobed"
    def features(kw):
        set_seed(0)
        learn = quiet(vit(**{'global_pool': 'avg', **kw})(plain_dls(many, bs=16, size=kw.get('img_size', 32)), tmp_path))
        return learn.precompute(dtype='float32', check=False).stores['train'].arrays['x']
    assert not np.array_equal(features({}), features(other))

def as_fastai(dl):
    "The order that fastai's shuffle gives; its loop also draws a seed for workers"
    torch.empty((), dtype=torch.int64).random_()
    return [torch.tensor(DataLoader.get_idxs(dl))]

@pytest.mark.parametrize('shuffle', [False, True])
def test_training_the_head_is_training_the_frozen_model(many, tmp_path, monkeypatch, shuffle):
    """Batch by batch the same losses, and in the end the same weights: body in eval mode, no augmentation, the same dropout, and the same
    order of pictures, for which the head's data is shuffled as fastai shuffles"""
    monkeypatch.setattr(RowsDL, '_windows', as_fastai)
    def make(): return small(plain_dls(many), tmp_path/'run', train_bn=False)
    whole,learn = make(),make()
    whole.freeze()
    head = learn.precompute(dtype='float32')
    for o in whole,head:
        o.dls.train.shuffle,o.dls.train.rng = shuffle,random.Random(7)
        torch.manual_seed(1)
        with o.no_logging(): o.fit(2, 1e-3, cbs=[BnFreeze()] if o is whole else [])
    np.testing.assert_allclose(head.recorder.losses, whole.recorder.losses, rtol=1e-4)
    assert len(head.recorder.losses)==6 and list(head.recorder.values[-1])==pytest.approx(list(whole.recorder.values[-1]), rel=1e-3)
    for k,v in whole.model.state_dict().items(): torch.testing.assert_close(learn.model.state_dict()[k], v, rtol=1e-3, atol=1e-4, msg=k)

# Targets

def even(f): return [f.parent.name, 'even' if int(f.parent.name)%2==0 else 'odd']
def number(f): return float(f.parent.name)
def two_numbers(f): return [number(f), -number(f)]

@pytest.mark.parametrize('block,get_y,metric,kw', [(MultiCategoryBlock, even, accuracy_multi, {}), (RegressionBlock, number, rmse, dict(y_range=(0,10))),
    (partial(RegressionBlock, 2), two_numbers, rmse, {})], ids=['several labels','a number','two numbers'])
def test_targets(many, tmp_path, block, get_y, metric, kw):
    dls = plain_dls(many, blocks=(ImageBlock,block), get_y=get_y, batch_tfms=aug_transforms())
    learn = small(dls, tmp_path/'run', metrics=metric, **kw)
    head = learn.precompute(dtype='float32')
    for _ in range(2):
        agree(head, learn)
        with head.no_logging(): head.fit(1)
    agree(head, learn)

# Several inputs

class Body(nn.Module):
    "Of two pictures"
    def __init__(self):
        super().__init__()
        self.left,self.right = nn.Conv2d(3, 6, 3, 2),nn.Conv2d(3, 6, 5, 2)
    def forward(self, a, b): return torch.cat([self.left(a).mean((2,3)), self.right(b).amax((2,3))], 1)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.head = Body(),nn.Linear(12, 10)
    def forward(self, a, b): return self.head(self.body(a, b).relu())

class Relu(nn.Module):
    "The features of `Two`: its body and what follows"
    def __init__(self, body):
        super().__init__()
        self.body = body
    def forward(self, a, b): return self.body(a, b).relu()

def itself(f): return f
def beside(f): return f.parent.parent.parent/'others'/f.name
def by_hand(learn): return Relu(learn.model.body),learn.model.head

def two_pictures(path, dest):
    "A Learner of pictures and those beside them"
    beside(png_files(path)[0]).parent.mkdir(exist_ok=True)
    for f,g in zip(png_files(path), png_files(path)[::-1]):
        if not beside(f).exists(): beside(f).write_bytes(g.read_bytes())
    dls = plain_dls(path, blocks=(ImageBlock,ImageBlock,CategoryBlock), get_x=[itself,beside], n_inp=2)
    set_seed(0)
    return quiet(Learner(dls, Two(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=dest))

def test_several_inputs(many, tmp_path):
    learn = two_pictures(some(many, tmp_path/'data/pictures'), tmp_path/'run')
    for dtype,rel in DTYPES.items():
        head = learn.precompute(dtype=dtype, split=by_hand)
        agree_on_classes(head, learn, rel)
        with head.no_logging(): head.fit(1, 1e-2)
        agree_on_classes(head, learn, rel)

def test_each_of_several_inputs_counts(many, tmp_path):
    "The second picture changes, whose file is not among the items"
    path = some(many, tmp_path/'data/pictures')
    was = two_pictures(path, tmp_path/'run').precompute(dtype='float32', split=by_hand, check=False)
    f = beside(png_files(path)[1])
    f.write_bytes(png_files(path)[1].read_bytes())
    head = two_pictures(path, tmp_path/'run').precompute(dtype='float32', split=by_hand, check=False)
    assert not np.array_equal(head.stores['train'].arrays['x'], was.stores['train'].arrays['x'])

# Texts

def corpus(n=60):
    "Texts of 1 to 119 words, the longest of six pieces and the shortest a part of one"
    rng = np.random.default_rng(0)
    def text(i): return ' '.join(f'w{o}' for o in rng.integers(*((0,20),(10,30))[i%2], rng.integers(1, 120)))
    return pd.DataFrame(dict(text=[text(i) for i in range(n)], label=[('low','high')[i%2] for i in range(n)], is_valid=[i%5==0 for i in range(n)]))

def read_text(o): return o['text']
def read_label(o): return o['label']

def text_dls(path, df=None, bs=8):
    block = TextBlock.from_df('text', tok=BaseTokenizer(), seq_len=20, n_workers=1)
    block = DataBlock((block,CategoryBlock), get_x=read_text, get_y=read_label, splitter=lambda o: FuncSplitter(lambda i: i%5==0)(range(len(o))))
    return block.dataloaders(corpus() if df is None else df, path=path, bs=bs, device='cpu', num_workers=0)

def text_learner(dls, path, max_len=80, **kw):
    set_seed(0)
    config = {**awd_lstm_clas_config, 'emb_sz': 12, 'n_hid': 16, 'n_layers': 2, 'init': None}
    return quiet(text_classifier_learner(dls, AWD_LSTM, seq_len=20, config=config, pretrained=False, max_len=max_len, metrics=accuracy, path=path, **kw))

@pytest.fixture(scope='module')
def texts(tmp_path_factory): return text_dls(tmp_path_factory.mktemp('texts'))

def test_texts(texts, tmp_path):
    "Batch by batch as the whole model takes them: what fastai's encoder says of a text depends on what it is padded to"
    learn = text_learner(texts, tmp_path)
    assert isinstance(split_model(learn.model)[0], PooledEncoder)
    for dtype,rel in DTYPES.items():
        head = learn.precompute(dtype=dtype, check=False)
        assert head.stores['train'].arrays['x'].shape==(48,36) and not np.array_equal(head.stores['valid'].arrays['i'], range(12))
        agree_on_classes(head, learn, rel)
        with head.no_logging(): head.fit(1, 1e-2)
        agree_on_classes(head, learn, rel)

def test_the_probe_of_texts_takes_a_batch_as_it_was_made(texts, tmp_path):
    head = text_learner(texts, tmp_path).precompute(dtype='float32')
    assert head.probe_diff<1e-5

def test_texts_in_one_batch(tmp_path):
    learn = text_learner(text_dls(tmp_path, bs=64), tmp_path)
    agree(learn.precompute(dtype='float32'), learn)

def text_stores(path): return sorted((path/'activations').glob('[!.]*'))

def test_stores_of_texts_last(texts, tmp_path):
    "And the whole model trains on as before"
    for _ in range(2):
        learn = text_learner(texts, tmp_path)
        n = calls(learn.model[0])
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            learn.precompute(check=False)
    assert not n and len(text_stores(tmp_path))==2
    learn.unfreeze()
    with learn.no_logging(): learn.fit(1)
    learn.save('whole')
    learn.load('whole')

def test_a_changed_text_misses(tmp_path):
    df,made = corpus(),[]
    for o in ('',' w3'):
        df.loc[5,'text'] += o
        made.append(text_learner(text_dls(tmp_path, df.copy()), tmp_path).precompute(check=False).stores['valid'].folder)
    assert made[0]!=made[1] and set(made)<set(text_stores(tmp_path))

def test_the_longest_output_of_texts_counts(texts, tmp_path):
    "`max_len` decides how much of a text is pooled"
    for o in (40,80): text_learner(texts, tmp_path, o).precompute(check=False)
    assert len(text_stores(tmp_path))==4

def test_texts_as_fastai_makes_them(tmp_path):
    "With its own tokenizer, from columns of a table"
    def dls(): return TextDataLoaders.from_df(corpus(), path=tmp_path, text_col='text', label_col='label', valid_col='is_valid', bs=64, seq_len=20,
        num_workers=0, device='cpu')
    for _ in range(2): agree((learn := text_learner(dls(), tmp_path)).precompute(dtype='float32'), learn)
    assert len(text_stores(tmp_path))==2

@pytest.mark.xfail(strict=True, raises=AssertionError, reason="fastai's SpacyTokenizer doesn't keep its language, so that these stores are for once")
def test_texts_of_a_folder(tmp_path):
    for i,(k,o) in enumerate(zip(corpus()['label'], corpus()['text'])):
        (f := tmp_path/f"texts/{('train','valid')[i%5==0]}/{k}/{i}.txt").parent.mkdir(parents=True, exist_ok=True)
        f.write_text(o)
    for _ in range(2):
        learn = text_learner(TextDataLoaders.from_folder(tmp_path/'texts', bs=8, seq_len=20, num_workers=0, device='cpu', n_workers=1), tmp_path)
        agree(learn.precompute(dtype='float32'), learn)
    assert len(text_stores(tmp_path))==2

# Tables of pictures, and weights

def test_pictures_of_a_table(many, tmp_path):
    df = pd.DataFrame([dict(file=str(f.relative_to(many)), label=f.parent.name, is_valid=every_5th(f)) for f in png_files(many)])
    for _ in range(2):
        dls = ImageDataLoaders.from_df(df, many, valid_col='is_valid', item_tfms=Resize(32), bs=20, num_workers=0, device='cpu')
        learn = small(dls, tmp_path/'run')
        head = learn.precompute(dtype='float32')
        agree(head, learn)
    assert len(text_stores(tmp_path/'run'))==2

def test_weighted_sampling(many, tmp_path):
    "In training alone, and by the weights alone: the first half comes up four times as often as the second, but for one item never"
    block = DataBlock((ImageBlock,CategoryBlock), get_items=png_files, get_y=parent_label, splitter=FuncSplitter(every_5th), item_tfms=Resize(32))
    wgts = np.array([4.]*45+[1.]*45)
    wgts[1] = 0
    learn = small(block.weighted_dataloaders(many, wgts, path=many, bs=20, device='cpu', num_workers=0), tmp_path)
    head = learn.precompute(dtype='float32')
    agree(head, learn)
    rows = {o.tobytes():i for i,o in enumerate(head.dls.train.dataset[range(72)][0].numpy())}
    assert len(rows)==72 and head.stores['train'].arrays['i'].tolist()==list(range(72))
    np.random.seed(0)
    want = learn.dls.train.get_idxs()
    np.random.seed(0)
    assert head.dls.train.get_idxs()==want
    drawn = np.concatenate([[rows[o.tobytes()] for o in x.numpy()] for _ in range(40) for x,y in head.dls.train])
    n = np.bincount(drawn, minlength=72)
    assert n[0]==0 and len(drawn)==40*60 and n[:36].sum()/n[36:].sum()==pytest.approx(35*4/36, rel=.1)
    with head.no_logging(): head.fit(1)
    agree(head, learn)
    agree(head, learn, ds_idx=0)
