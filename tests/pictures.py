"Small quiet Learners on pictures: what the tests of data and activations share"
import shutil
from pathlib import Path
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import FuncSplitter, parent_label
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from torch import nn
from torchvision.models.resnet import BasicBlock
from fastai_clr.data import picture_dls, picture_learner

def listing(path):
    "All below `path`, with times and sizes: equal only if nothing was written"
    return sorted((str(o.relative_to(path)), o.stat().st_mtime_ns, o.stat().st_size) for o in Path(path).rglob('*'))

def some(digits, dest, n=60):
    "A copy of `n` of the digits, to change"
    for f in sorted(digits.rglob('*.png'), key=lambda o: o.name)[:n]:
        (dest/f.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(f, dest/f.parent.name)
    return dest

def quiet(learn):
    "`learn` without progress bars; messages are still printed"
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.create_mbar = False
    return learn

def every_5th(f): return int(f.stem)%5==0

def png_files(path): return sorted(path.rglob('*.png'), key=lambda o: o.name)

def plain_dls(path, size=32, bs=20, blocks=(ImageBlock,CategoryBlock), get_items=png_files, get_y=parent_label, item_tfms=(), **kw):
    "DataLoaders of fastai's own, without augmentation; every fifth digit is for validation"
    block = DataBlock(blocks, get_items=get_items, get_y=get_y, item_tfms=[Resize(size), *item_tfms], **{'splitter': FuncSplitter(every_5th), **kw})
    return block.dataloaders(path, path=path, bs=bs, device='cpu', num_workers=0)

def net(pretrained=False):
    "A small residual network, built as torchvision builds its own"
    down = nn.Sequential(nn.Conv2d(16, 32, 1, 2), nn.BatchNorm2d(32))
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Sequential(BasicBlock(16, 16)),
        nn.Sequential(BasicBlock(16, 32, 2, down)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

def small(dls, path, seed=0, **kw):
    "A small network with random weights, always the same, that leaves 64 numbers a picture; `dls` may be a folder of pictures"
    set_seed(seed)
    if isinstance(dls, Path): dls = picture_dls(dls, size=32, bs=20, flip=False, device='cpu')
    return quiet(vision_learner(dls, net, pretrained=False, path=path, **{'metrics': accuracy, **kw}))

def lite0(dls, path, weights, **kw):
    "EfficientNet-Lite0 with its real weights, its body frozen"
    set_seed(0)
    if isinstance(dls, Path): dls = picture_dls(dls, size=32, bs=32, flip=False, device='cpu')
    return quiet(picture_learner(dls, 'tf_efficientnet_lite0', path=path, weights=weights, **kw))

def calls(m):
    "A list that grows with each forward pass of `m`"
    res = []
    m.register_forward_hook(lambda *a: res.append(1))
    return res

def nudge(t):
    "Change one number of a weight or buffer"
    with torch.no_grad(): t.view(-1)[0] += 1e-3
