"One of the processes of `test_processes` that make one store together; it writes what it saw as JSON"
import hashlib, json, os, signal, sys, warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
import torch
from fastai.data.core import Datasets
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Rotate
from torch import distributed, nn
import fastai_clr.precompute   # chkstyle: ignore (it patches Learner)
from pictures import plain_dls, quiet, small

rank,n_ranks = (int(os.environ.get(o, d)) for o,d in (('RANK',0),('WORLD_SIZE',1)))

def learner(path, run, seed=0):
    torch.set_num_threads(1)
    return small(plain_dls(path/'pictures', bs=8, batch_tfms=[Rotate(20, p=1.)]), path/run, seed)

def at(m, n, f):
    "Call `f` in the `n`-th forward pass of `m`; a list that grows with each"
    seen = []
    def hook(*_):
        seen.append(1)
        if len(seen)==n: f()
    m.register_forward_hook(hook)
    return seen

def digests(root):
    "A hash of each file that holds rows, by store and name"
    return {f'{f.parent.name}/{f.name}': hashlib.md5(f.read_bytes()).hexdigest() for f in sorted(root.glob('[!.]*/*.npy'))}

def call(learn, n=0, f=None, **kw):
    "What a call did: how many batches went through the body, what was said, how it ended, and the loss of the head"
    seen,said,error,head = at(learn.model[0], n, f),StringIO(),None,None
    with redirect_stdout(said), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        try: head = learn.precompute(dtype='float32', check=False, **kw)
        except Exception as e: error = f'{type(e).__name__}: {e}'
    return dict(calls=len(seen), said=said.getvalue(), warned=[str(o.message) for o in warned], error=error, head=head,
        training=learn.model[0].training, loss=head and float(head.validate()[0]))

def no_more(): raise ValueError('no more')

def unkeepable(path):
    "Items that can't be told from others"
    x,y = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)),list(range(40))
    class Odd(list):
        def __getitem__(self, i): return x[i]
    dls = Datasets(Odd(range(40)), [[lambda o: o],[lambda o: 1]], splits=[range(24),range(24,40)]).dataloaders(bs=8, num_workers=0, device='cpu')
    torch.manual_seed(0)
    return quiet(Learner(dls, nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Sequential(nn.Linear(4, 10))),
        loss_func=CrossEntropyLossFlat(), path=path))

def main(path, what):
    if n_ranks>1: distributed.init_process_group('gloo')
    run,res = f'{what}-{n_ranks}',{}
    if what=='killed': res['made'] = call(learner(path, what), 3 if rank==1 else 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif what=='again': res['made'] = call(learner(path, 'killed'))
    else:
        res['made'] = call(learner(path, run), n_views=1)
        res['found'] = call(learner(path, run), n_views=1)
        for k in 0,1: res[f'error {k}'] = call(learner(path, f'{run}-error-{k}'), 2 if rank==k else 0, no_more)
        res['weights'] = call(learner(path, f'{run}-weights', rank))
        res['temporary'] = call(unkeepable(path/f'{run}-temporary'))
        res['bytes'] = digests(path/run/'activations')
    for o in res.values():
        if isinstance(o, dict): o.pop('head', None)
    (path/f'{what}-{n_ranks}-{rank}.json').write_text(json.dumps(res))
    if n_ranks>1 and what!='killed': distributed.barrier()
    os._exit(0)   # gloo's threads still run

if __name__=='__main__': main(Path(sys.argv[1]), sys.argv[2])
