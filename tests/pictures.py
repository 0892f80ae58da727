"Small quiet Learners on pictures: what the tests of data and activations share"
import shutil
from pathlib import Path
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import FuncSplitter, parent_label
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
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

def resnet(dls, path, size=32, arch='resnet18', seed=0, **kw):
    "A ResNet-18 with random weights, always the same; `dls` may be a folder of pictures"
    if isinstance(dls, Path): dls = picture_dls(dls, size=size, bs=20, flip=False, device='cpu')
    set_seed(seed)
    return quiet(picture_learner(dls, arch, path=path, pretrained=False, **kw))

def lite0(dls, path, weights, **kw):
    "EfficientNet-Lite0 with its real weights, its body frozen"
    if isinstance(dls, Path): dls = picture_dls(dls, size=32, bs=32, flip=False, device='cpu')
    set_seed(0)
    return quiet(picture_learner(dls, 'tf_efficientnet_lite0', path=path, weights=weights, **kw))

def calls(m):
    "A list that grows with each forward pass of `m`"
    res = []
    m.register_forward_hook(lambda *a: res.append(1))
    return res

def nudge(t):
    "Change one number of a weight or buffer"
    with torch.no_grad(): t.view(-1)[0] += 1e-3
