"""The pass of `precompute` by two processes: against one with the cores of both, and against its own work without sharing and joining

Processes are on this machine and talk by gloo. Sides take turns, and figures are medians.
"""
import argparse, json, os, socket, subprocess, sys, tempfile, time, warnings
from pathlib import Path
from statistics import median
import torch
from torch import distributed
from fastai_clr.all import demo_pictures, demo_weights, picture_dls, picture_learner
from fastai_clr.precompute import _order, _Precompute, _rows, split_model
from results import met, write_section

def timed(f):
    if distributed.is_initialized(): distributed.barrier()
    start = time.perf_counter()
    f()
    if distributed.is_initialized(): distributed.barrier()
    return time.perf_counter()-start

def work(o):
    "In each process: seconds of the pass, and of its share of it with nobody to send it to"
    warnings.simplefilter('ignore')
    n_ranks = int(os.environ['WORLD_SIZE'])
    if n_ranks>1: distributed.init_process_group('gloo')
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as own:
        learn = picture_learner(picture_dls(o.pictures, size=o.size, bs=32, flip=False, device='cpu'), 'tf_efficientnet_lite0', path=own, weights=o.weights)
        dl,features = learn.dls.train,split_model(learn.model)[0]
        def run(root):
            with learn.no_bar(), learn.no_logging():
                r = _Precompute(learn, features, 'float16', 32, Path(root), False)
                ((parts,records,_),),_ = r.describe([('train',None)])
                return timed(lambda: r.make('train', None, parts, records)),r.team
        res = []
        for i in range(o.rounds+1):
            secs,team = run(f'{o.out}/{n_ranks}-{i}')
            order = _order(dl)
            mine = list(range(-(-len(order)//32)))[team.rank::team.n]
            def share():
                for _ in _rows(learn, features, dl, order, 32, mine, 'float16', None, lambda idxs: None): pass
            res.append((secs, timed(share)))
    if n_ranks==1 or team.rank==0: Path(f'{o.out}/{n_ranks}.json').write_text(json.dumps([len(order), *[median(v) for v in zip(*res[1:])]]))
    if n_ranks>1: distributed.barrier()
    os._exit(0)

def processes(o, n, tmp, threads):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    lo = [k for _,k in socket.if_nameindex() if k.startswith('lo')][0]
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), GLOO_SOCKET_IFNAME=lo, WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    cmd = [sys.executable, __file__, '--work', '--out', str(tmp), '--pictures', str(o.pictures), '--weights', str(o.weights), '--rounds', str(o.rounds), '--size', str(o.size)]
    ps = [subprocess.Popen(cmd, env=dict(env, RANK=str(k), LOCAL_RANK=str(k)), stdout=subprocess.DEVNULL) for k in range(n)]
    assert not any([p.wait() for p in ps])
    return json.loads((tmp/f'{n}.json').read_text())

def main(o):
    with tempfile.TemporaryDirectory() as t:
        tmp = Path(t)
        o.pictures,o.weights = o.data or demo_pictures(tmp/'digits'),demo_weights(tmp)
        n,one,alone = processes(o, 1, tmp, 2)
        _,two,pure = processes(o, 2, tmp, 1)
    write_section('The pass by two processes', f"bench_processes.py --rounds {o.rounds}{' --data PATH' if o.data else ''}", f"""tf_efficientnet_lite0, {n:,} pictures{f' of {o.data.name}' if o.data else ''} of {o.size} px, `_Precompute.make` of the training set, {o.rounds} rounds. *Its own share* is what each process computes, with nobody to send it to.

| | s | | target | |
|---|---|---|---|---|
| one process, two threads | {one:.2f} | | | |
| what it computes, with nothing to write | {alone:.2f} | writing costs {one/alone-1:.1%} | | |
| two processes, a thread each | {two:.2f} | {two/one:.2f} of it | reported | |
| its own share, two processes side by side | {pure:.2f} | sharing and joining cost {two/pure-1:.1%} | at most 3% | {met(two/pure<=1.03)} |""")

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--size', type=int, default=96)
    p.add_argument('--data', type=Path, help='a folder of pictures with train and valid; None: the demo\'s digits')
    for k in ('--out','--pictures','--weights'): p.add_argument(k, help=argparse.SUPPRESS)
    p.add_argument('--work', action='store_true', help=argparse.SUPPRESS)
    o = p.parse_args()
    work(o) if o.work else main(o)
