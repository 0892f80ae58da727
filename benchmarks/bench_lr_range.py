"""Learning rates that are suggested against a grid of nine: fastai's four rules on `lr_find`, and the upper bound of `lr_range_test`

Three tasks, each trained by `fit_sgdr(1, cycle_len=2, lr_max=...)` from the same pretrained weights with a new head: the demo's digits with the whole
network, and a folder of pictures (`--data NAME=PATH`) with the body frozen and with the whole network. The score of a suggestion is the validation loss
that it leads to, against that of the grid's best. Pictures are decoded once. Each cell (task, seed, what) is saved in `--cells`, and a run that was
broken off goes on where it stopped; `--share I N` does every N-th cell only, so that N processes do the work. `--only cost` measures what a test takes.
"""
import argparse, json, math, tempfile, time, warnings
from pathlib import Path
from statistics import mean, median
import numpy as np
from fastai.callback.channelslast import ChannelsLast
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, parent_label
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fastai_clr.all import demo_pictures, demo_weights, picture_dls, picture_learner
from fastai_clr.resume import keep_state
from results import met, timed, write_section

ARCH,GRID = 'tf_efficientnet_lite0',np.geomspace(1e-4, 1e-1, 9)
RULES = ('valley','slide','minimum','steep','ours')

class Tasks:
    "Makes a task's Learner; pictures are read once"
    def __init__(self, o, tmp):
        self.o,self.tmp,self.pics,self.weights = o,tmp,{},demo_weights(tmp)
        self.names = ['digits'] + ([f'{o.name}-frozen',f'{o.name}-whole'] if o.data else [])

    def pictures(self, name):
        if name not in self.pics:
            path,size = (demo_pictures(self.tmp/'digits'),64) if name=='digits' else (self.o.data.partition('=')[2],self.o.size)
            dls,resize = picture_dls(path, size=size, bs=64, device='cpu'),Resize(size)
            files = [*dls.train_ds.items,*dls.valid_ds.items]
            self.pics[name] = [np.array(resize(PILImage.create(f), split_idx=1)) for f in files],[parent_label(f) for f in files],len(dls.train_ds)
        return self.pics[name]

    def learner(self, task, seed):
        set_seed(seed, reproducible=True)
        name = task.partition('-')[0]
        pics,labels,n = self.pictures(name)
        block = DataBlock((ImageBlock,CategoryBlock), get_x=lambda i: pics[i], get_y=lambda i: labels[i], splitter=IndexSplitter(range(n, len(pics))),
                          batch_tfms=aug_transforms(do_flip=name!='digits'))
        dls = block.dataloaders(range(len(pics)), bs=64, num_workers=0)
        learn = picture_learner(dls, ARCH, path=self.tmp, weights=self.weights, metrics=accuracy, cbs=ChannelsLast())
        if not task.endswith('frozen'): learn.unfreeze()
        return learn

def train(learn, lr):
    "Validation loss after a cosine of two epochs; infinite if it diverges"
    with learn.no_bar(), learn.no_logging(): learn.fit_sgdr(1, cycle_len=2, lr_max=lr)
    loss = float(learn.recorder.values[-1][1])
    return loss if math.isfinite(loss) else math.inf

def sweeps(learn):
    "What each rule suggests, and how long it took"
    start = time.time()
    with learn.no_bar():
        said = learn.lr_suggestions(show_plot=False).table['lr'].to_dict()
        mid = time.time()
        r = learn.lr_range_test(show_plot=False)
    curve = r.curve[['lr','accuracy','valid_loss']].dropna()
    return dict(said, ours=r.lr_max, lr_min=r.lr_min, why=r.why, curve=curve.to_dict('list'), seconds=dict(lr_find=mid-start, ours=time.time()-mid))

def cell_file(o, task, seed, what): return Path(o.cells)/f'{task}-{seed}-{what}.json'

def cell(o, tasks, task, seed, what):
    "The result of one cell, from its file if it is there"
    file = cell_file(o, task, seed, what)
    if not file.exists():
        learn = tasks.learner(task, seed)
        if what=='sweeps': res = sweeps(learn)
        else:
            lr = GRID[int(what)] if what.isdigit() else cell(o, tasks, task, seed, 'sweeps')[what]
            res = dict(lr=lr, loss=math.inf if lr is None or not math.isfinite(lr) else train(learn, float(lr)))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(res))
        print(task, seed, what, {k:v for k,v in res.items() if k!='curve'}, flush=True)
    return json.loads(file.read_text())

def bench_rules(o):
    with tempfile.TemporaryDirectory() as tmp:
        tasks = Tasks(o, Path(tmp))
        whats = [*map(str, range(len(GRID))),*(() if o.grid else ('sweeps',*RULES))]
        todo = [(t,s,w) for t in tasks.names for s in o.seeds for w in whats]
        if o.share:
            mine = [c for c in todo if c[2] not in RULES][o.share[0]::o.share[1]]
            for c in mine: cell(o, tasks, *c)
            for c in [c for c in todo if c[2] in RULES][o.share[0]::o.share[1]]: cell(o, tasks, *c)
            return
        res = {c: cell(o, tasks, *c) for c in todo if not o.saved or cell_file(o, *c).exists()}
    whole = {t: [s for s in o.seeds if all((t,s,w) in res for w in whats)] for t in tasks.names}
    scores,rows = {k:[] for k in RULES},[]
    for t,seeds in whole.items():
        rules = RULES if seeds else ()
        seeds = seeds or [s for s in o.seeds if (t,s,'0') in res]
        grid = [mean(res[t,s,str(i)]['loss'] for s in seeds) for i in range(len(GRID))]
        best = int(np.argmin(grid))
        rows.append(f"| {t}, seed{'s' if len(seeds)>1 else ''} {', '.join(map(str, seeds))} | the grid's best | {GRID[best]:.2g} | {grid[best]:.4f} | |")
        for k in rules:
            lrs,loss = [res[t,s,k]['lr'] for s in seeds],mean(res[t,s,k]['loss'] for s in seeds)
            scores[k].append(loss/grid[best])
            rows.append(f"| | {k} | {', '.join('none' if v is None or not math.isfinite(v) else f'{v:.2g}' for v in lrs)} | {loss:.4f} | {scores[k][-1]:.3f} |")
        rows.append(f"| | the grid | {', '.join(f'{v:.1g}' for v in GRID)} | {', '.join(f'{v:.3f}' for v in grid)} | |")
    avg = {k: mean(v) for k,v in scores.items()}
    worst,ahead = max(scores['ours']),[k for k in RULES[:-1] if avg[k]<avg['ours']]
    body,gone = '\n'.join(rows),[f'{t} with seed {s}' for t,ss in whole.items() for s in o.seeds if s not in ss]
    missing = f" Not measured yet: {', '.join(gone)}." if gone else ''
    write_section('Learning rates suggested', f"bench_lr_range.py{f' --data {o.name}=PATH --size {o.size}' if o.data else ''} --seeds {' '.join(map(str, o.seeds))}{' --saved' if o.saved else ''}", f"""{ARCH}, `fit_sgdr(1, cycle_len=2, lr_max=…)`, one lr for all groups; mean validation loss of the seeds, and its ratio to that of the best of nine lrs. `valley`, `slide`, `minimum` and `steep` are fastai's rules on `lr_find`, `ours` is the upper bound of `lr_range_test()`; each seed trains with what was suggested for it.{missing}{f' {o.note}' if o.note else ''}

| task | | lr, by seed | loss | ÷ best |
|---|---|---|---|---|
{body}

Mean ratio: {', '.join(f'{k} {v:.3f}' for k,v in avg.items())}. `lr_range_test` at most 5% above the grid's best on each task: {met(worst<=1.05)} (worst {worst:.3f}). No rule of fastai's better on average: {'met' if not ahead else f"**not met** ({', '.join(ahead)})"}.""")

# What a test costs

def bench_cost(o):
    "A test, the same batches trained plainly, and the same passes over the validation set, in turn"
    with tempfile.TemporaryDirectory() as tmp:
        learn = Tasks(o, Path(tmp)).learner('digits', 0)
        def plain():
            with keep_state(learn), learn.no_bar(), learn.no_logging():
                dls,learn.dls = learn.dls,learn.dls.new_empty()
                learn.dls.loaders = [dls.train,dls.valid.new(n=0)]
                learn.fit(2, 1e-3)
        passes = learn.lr_range_test(lr_max=.01, show_plot=False).curve.attrs['passes']
        def validate():
            with keep_state(learn), learn.no_bar(), learn.no_logging():
                for _ in range(passes): learn.validate()
        def test():
            with learn.no_bar(): learn.lr_range_test(lr_max=.01, show_plot=False)
        times = [[timed(f) for f in (test,plain,validate)] for _ in range(o.rounds)]
    a,b,c = (median(v) for v in zip(*times))
    ratio = (a-c)/b
    write_section('Cost of a range test', f'bench_lr_range.py --only cost --rounds {o.rounds}', f"""{ARCH} on the digits at 64 px, `lr_range_test(lr_max=.01)` of two epochs with {passes} passes over the validation set, medians of {o.rounds} rounds in turn.

| | s | | target | |
|---|---|---|---|---|
| the test | {a:.2f} | | | |
| the same batches trained plainly | {b:.2f} | | | |
| the same passes by `validate` | {c:.2f} | | | |
| test without its passes ÷ plain | | {ratio:.3f} | at most 1.1 | {met(ratio<=1.1)} |""")

PARTS = dict(rules=bench_rules, cost=bench_cost)

if __name__=='__main__':
    warnings.simplefilter('ignore')
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', choices=PARTS, default='rules')
    p.add_argument('--data', metavar='NAME=PATH', help='a folder with train and valid')
    p.add_argument('--size', type=int, default=128, help='pixels, of --data')
    p.add_argument('--seeds', type=int, nargs='+', default=[0,1,2])
    p.add_argument('--share', type=int, nargs=2, metavar=('I','N'), help='do every N-th cell from the I-th, and write no results')
    p.add_argument('--grid', action='store_true', help='the cells of the grid only')
    p.add_argument('--saved', action='store_true', help='write the results of the cells that are there')
    p.add_argument('--note', help='a sentence for the results, such as where saved cells were made')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--cells', default='runs/bench_lr_range', help='folder of the results of single runs')
    o = p.parse_args()
    o.name = o.data.partition('=')[0] if o.data else ''
    PARTS[o.only](o)
