"Every kind of Learner that fastai makes: schedules exact to the batch, snapshots, going on after a break, precomputed activations or a clear refusal, export"
import numpy as np, pandas as pd, pytest, torch
from fastai.collab import CollabDataLoaders, collab_learner
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import Datasets
from fastai.data.transforms import RandomSplitter, get_image_files
from fastai.interpret import Interpretation
from fastai.layers import ConvLayer, Flatten
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, foreground_acc, mse
from fastai.tabular.all import TabularDataLoaders, tabular_learner
from fastai.text.all import AWD_LSTM, TextDataLoaders, awd_lstm_clas_config, text_classifier_learner
from fastai.torch_core import params, set_seed
from fastai.vision.all import ImageBlock, MaskBlock, Resize, resnet18, unet_learner, vision_learner
from PIL import Image
from sklearn.datasets import load_digits, load_iris
from torch import nn
from fastai_clr.all import CosineRestarts, Triangular, picture_dls
from learners import Cancel, Watch, quiet, same, weights

def vision(path, digits, arch=resnet18):
    return vision_learner(picture_dls(digits, size=32, bs=20, flip=False, device='cpu'), arch, pretrained=False, metrics=accuracy, path=path)

def timm(path, digits): return vision(path, digits, 'mobilenetv3_small_050')

def ink(f): return (np.array(Image.open(f).convert('L').resize((32,32)))>100).astype(np.uint8)

def unet(path, digits):
    block = DataBlock((ImageBlock,MaskBlock(codes=['paper','ink'])), get_items=lambda p: sorted(get_image_files(p))[:60], get_y=ink,
        splitter=RandomSplitter(.2, seed=0), item_tfms=Resize(32))
    return unet_learner(block.dataloaders(digits, bs=16, num_workers=0, device='cpu'), resnet18, pretrained=False, metrics=foreground_acc, path=path)

def text(path, digits):
    "What the columns of a flower say in words"
    iris = load_iris(as_frame=True).frame
    said = iris.iloc[:,:4].apply(lambda r: ' '.join(f'w{i}x{v:.0f}' for i,v in enumerate(r)), axis=1)
    df = pd.DataFrame(dict(text=said, label=iris.target.map(str)))
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', bs=16, seq_len=10, seed=0, num_workers=0, device='cpu')
    config = dict(awd_lstm_clas_config, emb_sz=8, n_hid=12, n_layers=2)
    return text_classifier_learner(dls, AWD_LSTM, config=config, pretrained=False, seq_len=10, metrics=accuracy, path=path)

def tabular(path, digits):
    df = load_iris(as_frame=True).frame
    df['species'] = df.pop('target').map(str)
    dls = TabularDataLoaders.from_df(df, y_names='species', y_block=CategoryBlock, cont_names=list(df.columns[:4]), valid_idx=list(range(0, 150, 5)), bs=16, device='cpu')
    return tabular_learner(dls, layers=[8], metrics=accuracy, path=path)

def collab(path, digits):
    "Pictures by pixels, rated by ink"
    x = load_digits().data[:12]
    df = pd.DataFrame([dict(picture=str(i), pixel=str(j), ink=v) for i,row in enumerate(x) for j,v in enumerate(row)])
    dls = CollabDataLoaders.from_df(df, user_name='picture', item_name='pixel', rating_name='ink', seed=0, bs=64, device='cpu')
    return collab_learner(dls, n_factors=4, y_range=(0,16), metrics=mse, path=path)

def halves(m): return [params(m[0]),params(m[1])]

def plain(path, digits):
    d = load_digits()
    x,y = torch.tensor(d.images[:200]/16, dtype=torch.float32)[:,None],torch.tensor(d.target[:200])
    dls = Datasets(range(200), [[x.__getitem__],[y.__getitem__]], splits=RandomSplitter(.2, seed=0)(range(200))).dataloaders(bs=20, num_workers=0, device='cpu')
    model = nn.Sequential(nn.Sequential(ConvLayer(1, 8), ConvLayer(8, 8, stride=2)), nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(8, 10)))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), splitter=halves, metrics=accuracy, path=path)

KINDS = [vision,timm,unet,text,tabular,collab,plain]
every_kind = pytest.mark.parametrize('make', KINDS, ids=lambda f: f.__name__)

@pytest.fixture
def new(make, tmp_path, digits):
    "Makes the Learner, always the same"
    def f():
        set_seed(0, reproducible=True)
        return quiet(make(tmp_path, digits))
    yield f
    torch.use_deterministic_algorithms(False)

@every_kind
def test_fits_are_exact(new):
    learn,watch = new(),Watch()
    n = len(learn.dls.train)
    learn.fit_sgdr(2, .5, lr_max=1e-2, cbs=watch)
    np.testing.assert_allclose(watch.curve().reshape(len(watch.held), -1)[:,-1], CosineRestarts(2, .5, 2, lr_max=1e-2).values(n), rtol=1e-12)
    watch = Watch()
    learn.fit_clr(1, step_size=.5, lr_max=1e-2, lr_min=1e-3, cbs=watch)
    np.testing.assert_allclose(watch.curve().reshape(len(watch.held), -1)[:,-1], Triangular(1, .5, lr_max=1e-2, lr_min=1e-3).values(n), rtol=1e-12)

@every_kind
def test_snapshots_and_going_on_after_a_break(new):
    "A run broken off in its second epoch, in a Learner made anew, ends as one that was not"
    whole = new()
    whole.fit_sgdr(2, 1, lr_max=1e-2, snapshots='whole')
    learn = new()
    with pytest.raises(KeyboardInterrupt):
        learn.fit_sgdr(2, 1, lr_max=1e-2, snapshots='cut', resume='cut', cbs=Cancel('after_batch', KeyboardInterrupt, lambda o: o.training and o.epoch==1))
    learn,seen = new(),set()
    learn.fit_sgdr(2, 1, lr_max=1e-2, snapshots='cut', resume='cut', cbs=Cancel('after_batch', KeyboardInterrupt, lambda o: seen.add(o.epoch)))   # never
    assert 0 not in seen
    assert same(weights(whole), weights(learn))
    preds = [o.snapshot_preds(name)[0] for o,name in ((whole,'whole'),(learn,'cut'))]
    assert len(learn.snapshots('cut'))==2 and torch.equal(*preds)

REFUSED = {unet: 'head', tabular: 'head', collab: 'head'}

@every_kind
def test_precomputed_activations_or_a_refusal(make, new, tmp_path):
    learn = new()
    learn.freeze()
    if make in REFUSED:
        with pytest.raises((ValueError,TypeError), match=REFUSED[make]) as e: learn.precompute()
        assert '\n' not in str(e.value) and not list(tmp_path.glob('activations/[!.]*'))
        return
    head = quiet(learn.precompute(dtype='float32'))
    before = learn.get_preds()[0]
    torch.testing.assert_close(head.get_preds()[0], before, rtol=1e-4, atol=1e-5)
    head.fit_sgdr(1, 1, lr_max=1e-2)
    after = learn.get_preds()[0]
    torch.testing.assert_close(head.get_preds()[0], after, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after)

def first(learn): return learn.dls.valid.items[0]

# What `predict` takes; a Learner of pairs or of plain numbers has nothing that it could be given
ITEMS = {vision: first, timm: first, unet: first, text: lambda learn: 'w0x5 w1x3 w2x1 w3x0', tabular: lambda learn: learn.dls.valid.items.iloc[0].drop('species')}

@every_kind
def test_export_predict_and_interpretation(make, new, tmp_path):
    "After a fit, fastai's own ways to keep a Learner and to look at it work as before it"
    learn = new()
    learn.fit_sgdr(1, 1, lr_max=1e-2, snapshots='s', resume='s')
    want,seen = learn.get_preds()[0],Interpretation.from_learner(learn)
    assert len(seen.losses)==len(want) and seen.losses.mean().item()==pytest.approx(learn.validate()[0], rel=1e-3)
    learn.export('export.pkl')
    def opened(): return quiet(load_learner(tmp_path/'export.pkl'))
    whole = opened()
    whole.dls = learn.dls
    torch.testing.assert_close(whole.get_preds()[0], want)
    if make in ITEMS: torch.testing.assert_close(opened().predict(ITEMS[make](learn))[2], learn.predict(ITEMS[make](learn))[2])
