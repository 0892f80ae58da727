"""Precomputed activations: the loop, the extraction, a head epoch against a frozen one, the disk, and a hit

Both sides of a comparison take turns in one run; figures are medians. Pictures are the demo's digits unless `--data NAME=PATH` names a
folder with `train` and `valid`. Each part's result goes to RESULTS.md by itself; `--only` picks some of them.
"""
import argparse, cProfile, io, json, pstats, subprocess, sys, tempfile, torch, warnings
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median
import numpy as np, torch.nn.functional as F
from fastai.callback import progress # Adds the progress bar to Learners; chkstyle: ignore
from fastai.callback.core import Callback, CancelValidException
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper
from fastai_clr.precompute import _batches, _eval_mode, _order, split_model
from fastai_clr.data import demo_pictures, picture_dls
from results import met, table, timed, turns, write_section
from torch import nn
from torch.utils.data import TensorDataset

LOOP = {64: 1.15, 256: 1.10, 1024: 1.05}
adamw = partial(OptimWrapper, opt=torch.optim.AdamW)

class TrainOnly(Callback):
    "Skip validation, which the bare loop doesn't do either"
    def before_validate(self): raise CancelValidException()

# 1. The loop

def make_head(): return nn.Sequential(nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))

def rows(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1024, generator=g),torch.randint(10, (n,), generator=g)

def fastai_loop(tmp, data, bs):
    "The head's Learner over stored rows, with recorder and progress bar; a function that trains an epoch"
    dls = DataLoaders.from_dsets(TensorDataset(*data), TensorDataset(*rows(64, 1)), bs=bs, num_workers=0, device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Identity(), make_head()), loss_func=CrossEntropyLossFlat(), opt_func=adamw, path=tmp)
    head = learn.precompute(dtype='float32', check=False)
    return lambda: head.fit(1, 1e-3, cbs=TrainOnly())

def bare_loop(data, bs, gather=lambda t,idx: t[idx]):
    model,(x,y) = make_head(),data
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    def epoch():
        model.train()
        idx = torch.randperm(len(x))
        for i in range(0, len(x)//bs*bs, bs):
            F.cross_entropy(model(gather(x, idx[i:i+bs])), gather(y, idx[i:i+bs])).backward()
            opt.step()
            opt.zero_grad()
    return epoch

def profile(f):
    "The twelve functions that take most time by themselves"
    p,out = cProfile.Profile(),io.StringIO()
    with redirect_stdout(io.StringIO()): p.runcall(f)
    pstats.Stats(p, stream=out).strip_dirs().sort_stats('tottime').print_stats(12)
    return '\n'.join(l[:110] for l in out.getvalue().splitlines() if l.strip())

def bench_loop(o):
    data,res = rows(20000),[]
    for bs,most in LOOP.items():
        with tempfile.TemporaryDirectory() as tmp, redirect_stdout(io.StringIO()):
            sides = fastai_loop(tmp, data, bs),bare_loop(data, bs),bare_loop(data, bs, lambda t,idx: t.index_select(0, idx))
            turns(1, *sides)
            a,b,c = turns(2*o.rounds+1, *sides)
            if bs==64: prof = profile(sides[0])
        res.append({'batch size': bs, 'head.fit, s': f'{a:.3f}', 'bare loop, s': f'{b:.3f}', 'ratio': f'{a/b:.3f}', 'at most': most, '': met(a/b<=most),
            'bare loop with index_select, s': f'{c:.3f}', 'ratio to it': f'{a/c:.3f}'})
        print(res[-1], flush=True)
    write_section('The loop of a head', 'bench_precompute.py --only loop', f"""An epoch over 20,000 rows of 1,024 numbers, head 1,024→512→10, torch's AdamW on both sides, {2*o.rounds+1} rounds, with recorder and progress bar. The bare loop takes its rows by `x[idx]`; `head.fit` takes them by `index_select`, which copies whole rows and is faster, so that a bare loop that does the same stands beside it.

{table(res)}

Where the time goes at batch size 64:

```
{prof}
```""")

# 2 and 3. The extraction, and a frozen epoch

def picture_learner(o, tmp):
    from torchvision.models import resnet18
    from fastai.vision.learner import vision_learner
    torch.manual_seed(0)
    pictures = o.data.partition('=')[2] if o.data else demo_pictures(Path(tmp)/'pictures')
    return vision_learner(picture_dls(pictures, size=128, bs=64), resnet18, pretrained=False, path=tmp)

def bare_forward(learn):
    "A forward pass of the body over both sets"
    features,_ = split_model(learn.model)
    with _eval_mode(features), torch.inference_mode():
        for dl in learn.dls.train,learn.dls.valid:
            order = _order(dl)
            with _batches(dl, range(-(-len(order)//64)), 64, order) as bs:
                for _,_,b in bs: features(b[0])

def bf16_pass(learn):
    "The body in bfloat16 as often as both sets have batches, on one that is on the GPU already"
    features,x = split_model(learn.model)[0],learn.dls.train.one_batch()[0]
    with _eval_mode(features), torch.inference_mode(), torch.autocast('cuda', torch.bfloat16):
        for _ in range(sum(-(-len(dl.dataset)//64) for dl in (learn.dls.train,learn.dls.valid))): features(x)
    torch.cuda.synchronize()

def bench_extract(o):
    with tempfile.TemporaryDirectory() as tmp:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            learn,n = picture_learner(o, tmp),iter(range(1000))
            learn.freeze()
            def extract(): return learn.precompute(Path(tmp)/f'{next(n)}', check=False)
            a,b = turns(o.rounds//4 or 1, extract, partial(bare_forward, learn))
            frozen = median(timed(lambda: learn.fit(1, 1e-3, cbs=TrainOnly())) for _ in range(o.rounds//7 or 1))
            head = extract()
            head.fit(1, 1e-3, cbs=TrainOnly())
            epoch = median(timed(lambda: head.fit(1, 1e-3, cbs=TrainOnly())) for _ in range(o.rounds))
            check = median(timed(head.check_fresh) for _ in range(o.rounds))
            bf16 = turns(o.rounds, partial(bf16_pass, learn))[0] if torch.cuda.is_available() else None
        size = [len(k.dataset) for k in (learn.dls.train,learn.dls.valid)]
    data = f" --data {o.data.partition('=')[0]}=PATH" if o.data else ''
    on_gpu = '' if bf16 is None else f"""
| the body in bfloat16 on batches that are on the GPU already | {bf16:.3f} | {sum(size)/bf16:,.0f} pictures a second | | |
| pictures a second of the whole call | | {sum(size)/a:,.0f} | | |"""
    write_section(f"Extraction, and a head epoch against a frozen one{'' if bf16 is None else ', on a GPU'}", f"bench_precompute.py --only extract{data}", f"""resnet18, 128 px, {size[0]:,} + {size[1]:,} pictures.

| | s | | target | |
|---|---|---|---|---|
| whole call of `precompute`, nothing stored yet | {a:.2f} | | | |
| bare forward pass over the same batches | {b:.2f} | {a/b:.3f} times | at most 1.05 | {met(a/b<=1.05)} |
| fastai's frozen epoch, training only | {frozen:.2f} | {a/frozen:.2f} of it is the extraction | below 1 | {met(a<frozen)} |
| head epoch, training only | {epoch:.4f} | {frozen/epoch:.0f} times faster than the frozen one | at least 200 | {met(frozen/epoch>=200)} |
| check that the body is the same, once a `fit` | {check:.4f} | {check/epoch:.1%} of a head epoch | below 1%, or said | {met(check/epoch<.01)} |{on_gpu}""")

# 4. The disk

DISK = """
import sys, time, numpy as np, torch
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
from fastai_clr.activations import StoreWriter
from fastai_clr.precompute import Rows, RowsDL
root,n = sys.argv[1],int(sys.argv[2])
with StoreWriter(root, dict(set='train', n=n), n, 1000) as w:
    w.new(x=((2048,),'float16'), y=((),'int64'), i=((),'int64'))
    row = np.random.default_rng(0).standard_normal((1000,2048)).astype(np.float16)
    for b in w.missing: w.put(b, x=row, y=np.zeros(1000, int), i=np.arange(b*1000, (b+1)*1000))
    store = w.close()
def anon(): return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1])
dl,peak = RowsDL(Rows([store], 'disk', 'cpu'), bs=256, shuffle=True, drop_last=True, device='cpu'),0
model = torch.nn.Linear(2048, 10)
times = []
for epoch in range(3):
    start = time.time()
    for i,(x,y) in enumerate(dl):
        torch.nn.functional.cross_entropy(model(x), y).backward()
        if i%20==0: peak = max(peak, anon())
    times.append(time.time()-start)
print(peak, min(times[1:]))
"""

def bench_disk(o):
    res = []
    for n in 20_000,200_000:
        with tempfile.TemporaryDirectory(dir=o.tmp) as tmp:
            out = subprocess.run([sys.executable, '-W', 'ignore', '-c', DISK, tmp, str(n)], capture_output=True, text=True, check=True).stdout.split()
        res.append((int(out[0])/1024, float(out[1])))
        print(n, res[-1], flush=True)
    mem,secs = res[1][0]/res[0][0]-1,res[1][1]/res[0][1]
    write_section("Rows read from the disk", 'bench_precompute.py --only disk', f"""2,048 numbers in float16 a row, linear head, batch size 256; memory is the peak of RssAnon.

| rows | on disk, MB | anonymous memory, MB | epoch, s |
|---|---|---|---|
| 20,000 | {20_000*4096/1e6:.0f} | {res[0][0]:.1f} | {res[0][1]:.2f} |
| 200,000 | {200_000*4096/1e6:.0f} | {res[1][0]:.1f} | {res[1][1]:.2f} |

Memory grows by {mem:.1%} (target: below 10%): {met(mem<.1)}. Time grows {secs:.1f} times (target: at most 11): {met(secs<=11)}.""")

# 5. A hit

HIT = """
import json, sys, time, warnings
warnings.simplefilter('ignore')
from fastai.vision.all import *
from fastai_clr.all import *
from fastai_clr.activations import hash_module
from fastai_clr.precompute import split_model
path = Path(sys.argv[1])
torch.manual_seed(0)
files = get_image_files(path/'pictures')
block = DataBlock((ImageBlock, CategoryBlock), splitter=IndexSplitter(range(0, len(files), 10)), get_y=parent_label)
dls = block.dataloaders(files, path=path/'pictures', bs=512)
body = nn.Sequential(nn.Conv2d(3, 256, 4, stride=4), nn.ReLU())
learn = Learner(dls, nn.Sequential(body, nn.Sequential(AdaptiveConcatPool2d(1), nn.Flatten(), nn.Linear(512, 10))), loss_func=CrossEntropyLossFlat(), path=path)
start = time.perf_counter()
with learn.no_bar(), learn.no_logging(): learn.precompute(check=False)
all_of_it = time.perf_counter()-start
start = time.perf_counter()
hash_module(split_model(learn.model)[0])
print(json.dumps([len(files), all_of_it, time.perf_counter()-start]))
"""

def bench_hit(o):
    from PIL import Image
    with tempfile.TemporaryDirectory(dir=o.tmp) as tmp:
        rng = np.random.default_rng(0)
        for c in range(10):
            (Path(tmp)/f'pictures/{c}').mkdir(parents=True)
            for i in range(o.items//10): Image.fromarray(rng.integers(0, 255, (8,8,3), dtype=np.uint8)).save(f'{tmp}/pictures/{c}/{i}.png')
        def run(): return json.loads(subprocess.run([sys.executable, '-c', HIT, tmp], capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        _,first,_ = run()
        hits = [run() for _ in range(5)]
    n,secs,weights = hits[0][0],median(h[1] for h in hits),median(h[2] for h in hits)
    write_section('A hit', 'bench_precompute.py --only hit', f"""{n:,} picture files, found again in a new process, `check=False`: {secs:.2f} s, of which hashing the weights {weights:.3f} s (the first call, with the extraction: {first:.0f} s).

Target: below 1 s beyond hashing the weights: {met(secs-weights<1)}.""")

PARTS = dict(loop=bench_loop, extract=bench_extract, disk=bench_disk, hit=bench_hit)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=PARTS, default=list(PARTS))
    p.add_argument('--data', metavar='NAME=PATH', help='a folder with train and valid')
    p.add_argument('--rounds', type=int, default=15)
    p.add_argument('--items', type=int, default=100_000, help='files of the hit')
    p.add_argument('--tmp', help='folder for large temporary files')
    o = p.parse_args()
    for k in o.only: PARTS[k](o)
