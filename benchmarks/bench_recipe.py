"""The recipe against fine_tune, on the clock and on accuracy, with pictures that nobody tuned for

    python benchmarks/bench_recipe.py --data clothing=PATH --data digits=PATH --data fashion=PATH --data emoji=PATH

Each PATH has the folders train, valid and test (recipe_data.py makes some). Methods are fine_tune(1), (3), (5) and (10), by fastai's defaults and
with lr_find's valley (the better of the two on valid counts); logistic regression and a head trained by hand on pooled features; and the recipe with
the wall-clock time that fine_tune(3) took on that set and seed, a sixth of it, and the times of (5) and (10). A cell is a set, a method and a seed:
seconds from the DataLoaders being there to a trained model, accuracy on valid, and on test, which is scored once and chooses nothing. Cells are
saved in a folder (--cells), and a run goes on where the last one stopped; --table writes the results of those that are there. Sets that are
looked at by themselves, such as those that recipe_data.py calls `few` and `subgroups`, get a section of another title by --section.
"""
import argparse, json, re, tempfile, time, warnings
from pathlib import Path
from statistics import mean
import torch
from fastai.torch_core import set_seed
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.pipeline import make_pipeline
from fastai.callback import progress, schedule   # for what they add to Learner; chkstyle: ignore
from fastai_clr.all import demo_weights, picture_dls, picture_learner
from fastai_clr.data import find_pictures
from results import machine, met, table, write_section

TITLE = 'The recipe against fine_tune'
TUNE = [1,3,5,10]
METHODS = [*(f'fine_tune({n}) {lr}' for n in TUNE for lr in ('default','lr_find')), 'logistic', 'by hand', *(f'recipe {k}' for k in ('3/6','3','5','10'))]

class Cell:
    "One training: a Learner made anew, and the clock that starts once its data are there"
    def __init__(self, o, path, seed, tmp, bs=64):
        set_seed(seed, reproducible=True)
        self.dls = picture_dls(path, size=o.size, bs=bs, seed=seed, flip=path.name!='digits', device=o.device)
        self.learn = picture_learner(self.dls, 'tf_efficientnet_lite0', path=tmp, weights=o.weights)
        self.path,self.start = path,time.perf_counter()

    def score(self, predict):
        "Seconds until now, then accuracy on valid and test by `predict(dl)`, which gives probabilities"
        secs,vocab = time.perf_counter()-self.start,{l: i for i,l in enumerate(self.dls.vocab)}
        def acc(dl, labels): return float((predict(dl).argmax(1)==torch.tensor([vocab[l] for l in labels])).float().mean())
        test = find_pictures(self.path/'test')
        valid = acc(self.dls.valid, [f.parent.name for f in self.dls.valid.items])
        return dict(seconds=secs, valid=valid, test=acc(self.dls.test_dl(test.files), test.labels))

def quiet(learn):
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn.no_logging()

def fine_tune(o, path, seed, tmp, n, lr):
    c = Cell(o, path, seed, tmp)
    with quiet(c.learn):
        kw = {} if lr=='default' else dict(base_lr=c.learn.lr_find(show_plot=False).valley)
        c.learn.fine_tune(n, **kw)
        return dict(c.score(lambda dl: c.learn.get_preds(dl=dl)[0]), lr=kw.get('base_lr'))

def features(c, dl):
    "Mean of the body's last maps for each picture: what is pooled without a head"
    c.learn.model.eval()
    with torch.no_grad(): return torch.cat([c.learn.model[0](b[0]).mean((2,3)) for b in dl.new(shuffle=False, drop_last=False)]).cpu()

def targets(c, dl): return torch.tensor([c.dls.vocab.o2i[f.parent.name] for f in dl.items])

def logistic(o, path, seed, tmp):
    "The strength of its penalty is chosen on valid"
    c = Cell(o, path, seed, tmp)
    xs,ys = [features(c, dl) for dl in (c.dls.train,c.dls.valid)],[targets(c, dl) for dl in (c.dls.train,c.dls.valid)]
    models = [make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(xs[0], ys[0]) for C in (1e-4,1e-3,1e-2,.1,1.)]
    best = max(models, key=lambda m: m.score(xs[1], ys[1]))
    return c.score(lambda dl: torch.tensor(best.predict_proba(features(c, dl))))

def by_hand(o, path, seed, tmp, n_epoch=10, bs=64):
    "What one writes who knows the trick: features once, then fastai's own head on them, by Adam and a one-cycle lr"
    c = Cell(o, path, seed, tmp)
    body,head = c.learn.model[0].eval(),c.learn.model[1]
    pool,rest = head[:2],head[2:]   # of fastai's head, its pooling and flattening have no parameters
    def pooled(dl):
        with torch.no_grad(): return torch.cat([pool(body(b[0])) for b in dl.new(shuffle=False, drop_last=False)])
    x,y = pooled(c.dls.train),targets(c, c.dls.train).to(c.dls.device)
    opt = torch.optim.AdamW(rest.parameters(), weight_decay=.01)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 3e-3, total_steps=n_epoch*(len(x)//bs))
    rest.train()
    for _ in range(n_epoch):
        for idx in torch.randperm(len(x), device=x.device).split(bs)[:len(x)//bs]:
            torch.nn.functional.cross_entropy(rest(x[idx]), y[idx]).backward()
            opt.step()
            opt.zero_grad()
            sched.step()
    rest.eval()
    with torch.no_grad(): return c.score(lambda dl: rest(pooled(dl)).softmax(1).cpu())

def recipe(o, path, seed, tmp, secs):
    "As `clr_train --time-budget` does it: on a CPU with batches of 16"
    c = Cell(o, path, seed, tmp, bs=16 if o.device=='cpu' else 64)
    with quiet(c.learn): r = c.learn.fit_recipe(time_budget=secs)
    def predict(dl): return c.learn.snapshot_preds(r.ensemble['name'], dl=dl)[0] if r.ensemble else c.learn.get_preds(dl=dl)[0]
    with quiet(c.learn):
        return dict(c.score(predict), budget=secs, kept=r.kept, ensemble=r.ensemble and r.ensemble['n'], candidates=r.candidates,
            steps=[(o['step'],round(o['seconds'], 1)) for o in r.steps])

def file_of(o, name, method, seed): return o.cells/f"{name}-{re.sub('[^a-z0-9_]+', '-', method.replace('/', 'of')).strip('-')}-{seed}.json"

def read(o, name, method, seed):
    f = file_of(o, name, method, seed)
    return json.loads(f.read_text()) if f.exists() else None

def tuned(cells, n):
    "Of fine_tune's two lrs the one that is better on valid"
    both = [c for c in (cells.get(f'fine_tune({n}) {k}') for k in ('default','lr_find')) if c]
    return max(both, key=lambda c: c['valid'], default=None)

def run_cell(o, name, path, method, seed):
    kind,_,arg = method.partition(' ')
    budget = None
    if kind=='recipe':
        n = int(arg.split('/')[0])
        peers = tuned({m: read(o, name, m, seed) for m in METHODS}, n)
        if not peers: return None
        budget = peers['seconds']/(6 if '/' in arg else 1)
    with tempfile.TemporaryDirectory() as tmp:
        if kind=='logistic': return logistic(o, path, seed, tmp)
        if kind=='by': return by_hand(o, path, seed, tmp)
        if kind=='recipe': return recipe(o, path, seed, tmp, budget)
        return fine_tune(o, path, seed, tmp, int(kind[10:-1]), arg)

def measure(o):
    "All cells that are missing, sets and methods by turns"
    for seed in o.seeds:
        for method in METHODS:
            for name,path in o.data.items():
                if read(o, name, method, seed) is not None or (o.only and not method.startswith(o.only)): continue
                res = run_cell(o, name, path, method, seed)
                if res is None: continue
                tmp = file_of(o, name, method, seed).with_suffix('.tmp')
                tmp.write_text(json.dumps(dict(res, machine=machine())))
                tmp.rename(tmp.with_suffix('.json'))
                print(f"{name} {method} seed {seed}: valid {res['valid']:.4f} test {res['test']:.4f} {res['seconds']:.1f} s", flush=True)

def measured(o, name):
    "By method, the cells by seed; 'fine_tune(n)' is the better of the two lrs"
    per = {s: {k: c for k in METHODS if (c := read(o, name, k, s))} for s in o.seeds}
    res = {m: {s: p[m] for s,p in per.items() if m in p} for m in METHODS}
    for n in TUNE: res[f'fine_tune({n})'] = {s: c for s,p in per.items() if (c := tuned(p, n))}
    return {m: r for m,r in res.items() if r}

def means(cells): return {k: mean(c[k] for c in cells.values()) for k in ('seconds','test','valid')}

def targets_table(by_set):
    "The figures aimed at, as far as they are measured: means over the seeds that have both"
    def pairs(a, b): return {n: seeds for n,r in by_set.items() if (seeds := sorted({*r.get(a, ())} & {*r.get(b, ())}))}
    def line(what, ours, peer, least_mean, least):
        both = pairs(ours, peer)
        g = {n: 100*mean(by_set[n][ours][s]['test']-by_set[n][peer][s]['test'] for s in seeds) for n,seeds in both.items()}
        ok = g and mean(g.values())>=least_mean and min(g.values())>=least
        return dict(recipe=what, against=peer, wanted=f'mean at least {least_mean:g}' if least==-100 else f'mean at least {least_mean:g}, each at least {least:g}',
            points=', '.join(f'{n} {v:+.1f}' for n,v in g.items()), mean=f'{mean(g.values()):+.1f}' if g else '',
            seeds=', '.join(map(str, sorted({len(s) for s in both.values()}))), result=met(ok) if len(g)==len(by_set) else 'owed')
    return [line('a sixth of the time of fine_tune(3)', 'recipe 3/6', 'fine_tune(3)', 0, -100), line('the time of fine_tune(3)', 'recipe 3', 'fine_tune(3)', 3, 0),
        line('the time of fine_tune(5)', 'recipe 5', 'fine_tune(5)', 2, -100), line('the time of fine_tune(10)', 'recipe 10', 'fine_tune(10)', 2, -100),
        line('a sixth of the time of fine_tune(3)', 'recipe 3/6', 'logistic', 0, 0), line('the time of fine_tune(10)', 'recipe 10', 'logistic', 1.5, 1.5)]

def picture(by_set, file):
    "Accuracy against wall-clock time, a panel a set"
    import matplotlib.pyplot as plt
    fig,axs = plt.subplots(1, len(by_set), figsize=(4*len(by_set),3.2), squeeze=False)
    for ax,(name,r) in zip(axs[0], by_set.items()):
        for label,keys,style in (('fit_recipe',[f'recipe {k}' for k in ('3/6','3','5','10')],'o-k'), ('fine_tune',[f'fine_tune({n})' for n in TUNE],'s--C0'),
                                 ('logistic regression',['logistic'],'^C1'), ('head by hand',['by hand'],'vC2')):
            got = [means(r[k]) for k in keys if k in r]
            ax.plot([g['seconds'] for g in got], [100*g['test'] for g in got], style, label=label)
        ax.set(title=name, xlabel='seconds', xscale='log')
        low,high = ax.get_xlim()
        ax.set_xticks([o for o in (5,10,20,50,100,200,500,1000,2000) if low<=o<=high])
        ax.xaxis.set_major_formatter('{x:g}')
        ax.xaxis.set_minor_formatter('')
    axs[0][0].set_ylabel('accuracy on test, %')
    axs[0][0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(file, dpi=110)

def owed(o):
    "Which cells are not measured, a phrase a method"
    gone = {m: [(n,s) for n in o.data for s in o.seeds if read(o, n, m, s) is None] for m in METHODS}
    if not any(gone.values()): return ''
    def where(cells):
        by_seed = {s: [n for n,k in cells if k==s] for s in o.seeds}
        return '; '.join(f"seed {s}{'' if len(ns)==len(o.data) else ' of '+', '.join(ns)}" for s,ns in by_seed.items() if ns)
    return (f" Not measured yet, {sum(map(len, gone.values()))} of {len(o.data)*len(METHODS)*len(o.seeds)} cells: "
        f"{', '.join(f'{m} ({where(c)})' for m,c in gone.items() if c)}.")

def machines(by_set):
    "Where the cells were measured, by seed: seconds of two machines say nothing of each other"
    by_seed = {}
    for cells in (c for r in by_set.values() for c in r.values()):
        for s,c in cells.items(): by_seed.setdefault(s, set()).add(c.get('machine', 'a machine not noted'))
    return '; '.join(f"seed {s} on {' and '.join(sorted(ms))}" for s,ms in sorted(by_seed.items()))

def report(o):
    by_set = {n: r for n in o.data if (r := measured(o, n))}
    rows = [dict(set=n, method=m, **{k: f"{v:.0f}" if k=='seconds' else f"{100*v:.1f}" for k,v in means(c).items()}, seeds=len(c))
        for n,r in by_set.items() for m,c in r.items() if not m.startswith('fine_tune') or m.endswith(')')]
    if o.section==TITLE: picture(by_set, Path(__file__).with_name('recipe.png'))
    section = '' if o.section==TITLE else f' --section {o.section!r}'
    write_section(o.section, f"bench_recipe.py {' '.join(f'--data {n}=PATH' for n in o.data)} --seeds {' '.join(map(str, o.seeds))}{section} --table",
        f"tf_efficientnet_lite0, {o.size} px, on {o.device}; accuracy in percent, means over the seeds. Measured with {machines(by_set)}.{owed(o)} Points against the peer on the test part:"
        f"\n\n{table(targets_table(by_set))}\n\n{table(rows)}")

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', action='append', required=True, metavar='NAME=PATH')
    p.add_argument('--cells', type=Path, default=Path(__file__).parent/'cells/recipe')
    p.add_argument('--seeds', type=int, nargs='+', default=[0,1,2])
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--only', help='methods that begin so')
    p.add_argument('--device', default='cpu')
    p.add_argument('--section', default=TITLE, help='title of the results')
    p.add_argument('--table', action='store_true', help='measure nothing, write the results')
    o = p.parse_args()
    warnings.simplefilter('ignore')
    o.data = {k: Path(v) for k,v in (d.split('=', 1) for d in o.data)}
    o.cells.mkdir(parents=True, exist_ok=True)
    if not o.table:
        with tempfile.TemporaryDirectory() as tmp:
            o.weights = demo_weights(tmp)
            measure(o)
    report(o)
