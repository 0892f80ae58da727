"Two processes that train one model together, by gloo on the CPU: each one's lr and cycles, and the weights that they share"
import json, math, numpy as np, os, pytest, socket, subprocess, sys, torch
from conftest import root
from fastai.callback.data import PartialDL, WeightedDL
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.load import DataLoader
from fastai.distributed import DistributedDL
from fastai_clr.cycles import batches_per_epoch
from fastcore.basics import partial
from learners import learner
from pictures import every_5th, some
from torch.utils.data import DataLoader as TorchDL
from worker_fit import bs, dropping, fits

worker = root/'tests/worker_fit.py'
loopback = [o for _,o in socket.if_nameindex() if o.startswith('lo')][0]

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def wait(p, timeout):
    "Its exit status; what takes longer is told to end, with all that it started, and killed if it won't"
    for stop in p.terminate,p.kill:
        try: return p.wait(timeout)
        except subprocess.TimeoutExpired: stop()
        timeout = 10
    return p.wait()

def together(path, *cmds, timeout=300, **env):
    "Run `cmds`, each a command and its environment, side by side; a failure shows all that they said"
    logs = [path/f'{i}.log' for i in range(len(cmds))]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': loopback, 'HF_HOME': str(path), **env}
    ps = [subprocess.Popen([str(o) for o in cmd], stdout=log.open('w'), stderr=subprocess.STDOUT, env={**env, **own}) for (cmd,own),log in zip(cmds, logs)]
    try:
        for p in ps: wait(p, timeout)
    finally: codes = [wait(p, 0) for p in ps]
    assert not any(codes), f'exit status {codes}:\n' + '\n'.join(o.read_text(encoding='utf-8') for o in logs)

def results(path): return [json.loads((path/f'{o}.json').read_text(encoding='utf-8')) for o in (0,1)]

@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    "What each of two processes saw, in all fits"
    path,port = tmp_path_factory.mktemp('processes'),str(free_port())
    env = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    together(path, *(([sys.executable, worker, path], dict(env, RANK=o, LOCAL_RANK=o)) for o in '01'))
    return results(path)

def per_epoch(n): return math.ceil(math.ceil(n/bs)/2)

def check_lr(got, n, sched):
    "Batch for batch, the lr is that of so many batches an epoch as this process has"
    n_iter = per_epoch(n)
    want = sched.values(n_iter, None if sched.n_epochs else got['n_epoch']*n_iter)
    assert got['lrs']==list(want[got['batches']]) and got['hps']==got['lrs']
    where = [sched.cycle_at(b, n_iter) for b in got['batches']]
    assert got['places']==[[k, b-start, b+1==stop] for b,(k,start,stop) in zip(got['batches'], where)]

# Epochs, batches trained, ends of cycles, and rows of the recorder at each
want = dict(whole=(3, range(15), [5,15], [1,3]), half=(2, range(8), [3,5,8], [0,1,1]), fraction=(3, range(14), [4,8,14], [0,1,2]),
    odd=(3, range(10), [5,10], [1,2]), ragged=(3, range(10), [5,10], [1,2]), one=(3, range(3), [1,2,3], [1,2,3]), clr=(2, range(8), [4,8], [0,1]),
    schedule=(3, range(12), [8,12], [1,2]), endless=(2, range(10), [3], [0]), callback=(2, range(10), [4,8], [0,1]), scheduler=(2, range(8), [4,8], [0,1]),
    later=(3, range(5, 15), [10,15], [2,3]), cancelled=(2, [0,1,2,3,5,6,7,8,9], [3,5,8,10], [0,1,1,2]), patience=(9, range(15), [5,10], [1,2]))

def test_there_are_two_processes(seen): assert [o['how'] for o in seen]==[[2,'gloo']]*2

@pytest.mark.parametrize('name', fits)
def test_lr(seen, name):
    for got in seen: check_lr(got[name], *fits[name][:2])

@pytest.mark.parametrize('name', fits)
def test_cycles(seen, name):
    n_epoch,batches,ends,rows = want[name]
    for got in seen: assert [got[name][o] for o in ('n_epoch','batches','ends','rows')]==[n_epoch,list(batches),ends,rows]

@pytest.mark.parametrize('name', sorted(set(fits)-{'patience'}))
def test_weights(seen, name):
    "Both processes have the same ones: what SGD by hand gives with the mean of their gradients"
    a,b = (o[name] for o in seen)
    w = np.array(a['before'])
    for i,lr in enumerate(a['lrs']):
        grads = []
        for o in a,b:
            x,y = np.array(o['xs'][i]),np.array(o['ys'][i])
            err = 2*(w[0]*x + w[1] - y)/len(x)
            grads.append([err@x, err.sum()])
        w = w-lr*np.mean(grads, 0)
    assert a['after']==b['after'] and a['before']==b['before'] and a['xs']!=b['xs']
    assert a['after']==pytest.approx(w, rel=1e-5) and a['after']!=a['before']

def test_rows(seen):
    "The recorder's rows are whole where the last cycle ends inside an epoch"
    for got in seen: assert [len(o) for o in got['fraction']['values']]==[2]*3 and np.isfinite(got['fraction']['values']).all()

def test_stop_on_over_fitting(seen):
    "Both stop at once; one of them saves"
    for got in seen: assert got['patience']['stopped'].startswith('stopped after cycle 2 (epoch 2)') and len(got['patience']['values'])==3
    assert seen[0]['patience']['values']==seen[1]['patience']['values']

@pytest.mark.parametrize('name,match', [('length','the schedule of `lr` lasts 3 epochs, the fit 2'), ('cycle','each cycle needs at least one batch: with 5 batches an epoch'),
    ('groups','`lr_max` must have one value'), ('none','the training DataLoader has no batch: 8 items for 2 processes at `bs` of 16'), ('share','the training DataLoader has no batch: 24 items for 2 processes at `bs` of 16')])
def test_errors(seen, name, match):
    "Each process gets it before anything is touched, and waits for none"
    for got in seen:
        got = got[name]
        assert match in got.pop('error') and got==dict(weights=False, cbs=0, began=False, trained=2)

def test_complete_batches(seen):
    for got in seen: check_lr(got['all'], *dropping['all'][:2])

def test_dropped_batches(seen):
    "112 items make 56 for each of two processes: 3 batches of 16 an epoch"
    for got in seen: assert got['rest']['lrs']==list(dropping['rest'][1].values(3))

# Batches for one of several processes

def torch_dl(ds, bs, drop_last, num_workers): return TorchDL(ds, batch_size=bs, drop_last=drop_last)

def counts(monkeypatch, dl, n_proc):
    "How many batches of `dl` each of `n_proc` processes really gets, and what the scheduler makes of it before a fit and in it"
    monkeypatch.setenv('WORLD_SIZE', str(n_proc))
    monkeypatch.setattr(DistributedDL, '_broadcast', lambda self, t, rank: t)
    learn,parts = learner(2),[DistributedDL(dl, o, n_proc, device=torch.device('cpu')) for o in range(n_proc)]
    learn.distributed_trainer = None
    res = []
    for o in dl,parts[0]:
        learn.dls = DataLoaders(o, learn.dls.valid)
        try: res.append(batches_per_epoch(learn))
        except ValueError as e: res.append(str(e))
    return [len(list(o)) for o in parts],res

@pytest.mark.parametrize('n_proc', [2,3])
@pytest.mark.parametrize('drop_last', [False,True])
@pytest.mark.parametrize('kind', [TfmdDL, DataLoader, torch_dl, partial(WeightedDL, wgts=None)], ids=['tfmd','fastai','torch','weighted'])
def test_counts(monkeypatch, kind, drop_last, n_proc):
    "Of any number of items; a process that gets none is told"
    for n in range(n_proc, 4*4*n_proc+2):
        real,(before,inside) = counts(monkeypatch, kind(torch.randn(n, 1), bs=4, drop_last=drop_last, num_workers=0), n_proc)
        assert len(set(real))==1 and before==inside
        assert before==real[0] if real[0] else f'has no batch: {n} items for {n_proc} processes at `bs` of 4' in before

@pytest.mark.xfail(strict=True, raises=AssertionError, reason='it goes by the items of the whole set, or by single items as batches for one process')
@pytest.mark.parametrize('dl', [lambda: PartialDL(torch.randn(100, 1), bs=4, partial_n=20, num_workers=0),
    lambda: DataLoader(torch.randn(10, 2), bs=None, num_workers=0)], ids=['partial','unbatched'])
def test_counts_of_rarer_loaders(monkeypatch, dl):
    real,got = counts(monkeypatch, dl(), 2)
    assert got==[real[0]]*2

def test_accelerate_launch(tmp_path):
    "As from the command line; `--multi_gpu` is how it starts several processes on this machine, whatever they train on"
    names = 'fraction','schedule'
    cmd = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_machines', 1, '--num_processes', 2, '--mixed_precision', 'no',
        '--dynamo_backend', 'no', '--main_process_ip', '127.0.0.1', '--main_process_port', free_port(), worker, tmp_path, *names]
    together(tmp_path, (cmd, {}), ACCELERATE_USE_CPU='true')
    a,b = results(tmp_path)
    assert a['how']==b['how']==[2,'gloo']
    for o in names:
        for got in a,b:
            check_lr(got[o], *fits[o][:2])
            assert got[o]['ends']==want[o][2]
        assert a[o]['after']==b[o]['after']!=a[o]['before']

def test_leftovers_are_killed(tmp_path):
    cmds = 'import signal; signal.pause()','0'
    with pytest.raises(AssertionError, match=r'exit status \[-15, 0\]'): together(tmp_path, *(([sys.executable, '-c', o], {}) for o in cmds), timeout=5)

def test_a_head_that_two_processes_train(seen):
    "On one store: each has half of the rows of an epoch, each row once, and both end with the same head"
    a,b = (o['head'] for o in seen)
    assert a['stores']==b['stores'] and len(a['stores'])==2
    assert len(a['xs'])==len(b['xs'])==3*3
    for e in range(3):
        ours,theirs = (sorted(sum(o['xs'][3*e:3*e+3], [])) for o in (a,b))
        assert len(ours)==len(theirs)==48 and sorted(ours+theirs)==list(range(96))
    assert a['after']==b['after'] and a['values']==b['values'] and a['after'][:2]==[1,0]
    assert a['values'][-1][1]<a['values'][0][1]

def test_sweeps_leave_nothing_behind(seen):
    "Both processes get the same bounds and curves, and the training that follows is bitwise the one without, also after a sweep that was broken off"
    for plain,swept,broken in (o['swept'] for o in seen):
        assert swept['kept'] and broken['kept'] and broken['said']=='stopped'
        for o in swept,broken: assert (o['after'],o['losses'])==(plain['after'],plain['losses'])
    a,b = (o['swept'][1]['said'] for o in seen)
    assert a==b and 0<a[0][0]<a[0][1] and len(a[1]['lr'])==11 and len(a[3])==2 and a[3][0]!=a[3][1]

# One store, made together

shared_worker = root/'tests/worker_shared.py'

def team(path, what, n, timeout=300):
    "Exit status of `n` processes that make stores together, and what each saw; whoever takes too long is ended"
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': loopback, 'WORLD_SIZE': str(n), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    logs = [path/f'{what}-{n}-{o}.log' for o in range(n)]
    ps = [subprocess.Popen([sys.executable, '-W', 'ignore', str(shared_worker), str(path), what], stdout=log.open('w'), stderr=subprocess.STDOUT,
        env={**env, 'RANK': str(o), 'LOCAL_RANK': str(o)}) for o,log in enumerate(logs)]
    codes = [wait(p, timeout) for p in ps]
    files = [path/f'{what}-{n}-{o}.json' for o in range(n)]
    return codes,[json.loads(f.read_text()) if f.exists() else log.read_text() for f,log in zip(files, logs)]

@pytest.fixture(scope='module')
def places(digits, tmp_path_factory):
    "A folder with 61 digits: 8 blocks, of which the last holds 5 items, and what 1, 2 and 4 processes saw"
    path = tmp_path_factory.mktemp('team')
    some(digits, path/'pictures', 61)
    return path,{n: team(path, 'all', n) for n in (1,2,4)}

def test_all_of_them_ended_well(places):
    for codes,seen in places[1].values(): assert not any(codes), seen

@pytest.mark.parametrize('n', [2,4])
def test_the_bytes_are_those_of_one_process(places, n):
    "Of the clean passes and of a view, and each process has made its share of the batches"
    (_,(one,)),(_,seen) = places[1][1],places[1][n]
    assert len(one['bytes'])==15 and all(o['bytes']==one['bytes'] for o in seen)
    train,valid = (-(-len(o)//8) for o in split_of(places[0]))
    blocks = [train,valid,train]
    shares = [sum(len(range(k, b, n)) for b in blocks) for k in range(n)]
    tried = one['made']['calls']-sum(blocks)   # a look at the first items, which rank 0 takes
    assert [o['made']['calls'] for o in seen]==[shares[0]+tried, *shares[1:]] and sum(shares)==sum(blocks)
    assert len({o['made']['loss'] for o in [*seen,one]})==1
    assert all(o['made']['said']=='' for o in seen[1:]) and 'Extracted' in seen[0]['made']['said']

def split_of(path):
    files = sorted((path/'pictures').rglob('*.png'), key=lambda o: o.name)
    return [[f for f in files if every_5th(f)==valid] for valid in (False,True)]

@pytest.mark.parametrize('n', [1,2,4])
def test_found_again(places, n):
    for o in places[1][n][1]: assert o['found']['calls']==0 and o['found']['error'] is None and o['found']['loss']==o['made']['loss']

@pytest.mark.parametrize('n', [2,4])
@pytest.mark.parametrize('k', [0,1])
def test_an_error_in_one_ends_all(places, n, k):
    "Each with one sentence that says which process it was; the model's mode is as before"
    for rank,o in enumerate(places[1][n][1]):
        o = o[f'error {k}']
        assert o['error']=='ValueError: no more' if rank==k else f'process {k} of this run failed' in o['error'] and 'no more' in o['error'], o
        assert o['training']

@pytest.mark.parametrize('n', [2,4])
def test_other_weights_are_refused(places, n):
    for o in places[1][n][1]: assert o['weights']['error'].startswith('ValueError: the processes of this run have other weights') and not o['weights']['calls']

@pytest.mark.parametrize('n', [2,4])
def test_what_cannot_be_kept_is_shared_all_the_same(places, n):
    seen = [o['temporary'] for o in places[1][n][1]]
    assert all(o['error'] is None for o in seen), seen
    assert len({o['loss'] for o in seen})==1 and [len(o['warned']) for o in seen]==[2]+[0]*(n-1)

@pytest.mark.parametrize('n', [1,4])
def test_a_killed_process(digits, tmp_path, n):
    "The others end at once, and any number of processes does only what is missing"
    some(digits, tmp_path/'pictures', 61)
    codes,seen = team(tmp_path, 'killed', 2)
    assert codes==[0,-9] and 'another process of this run is gone; the blocks that are done are kept' in seen[0]['made']['error'], seen
    folder, = [o.parent for o in (tmp_path/'killed').rglob('blocks.npy')]
    done = int(np.load(folder/'blocks.npy')['done'].sum())
    train,valid = (-(-len(o)//8) for o in split_of(tmp_path))
    assert 0<done<train
    codes,seen = team(tmp_path, 'again', n)
    assert not any(codes), seen
    assert sum(o['made']['calls'] for o in seen)==2+train-done+valid   # two of them a look at the first items

# A run of several that was killed

def night(path, n, name, *args, timeout=300):
    "Exit status of `n` processes that train with `resume`, and what each saw"
    path.mkdir(exist_ok=True)
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': loopback, 'WORLD_SIZE': str(n), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    logs = [path/f'{name}-{o}.log' for o in range(n)]
    ps = [subprocess.Popen([sys.executable, '-W', 'ignore', str(root/'tests/worker_night.py'), str(path), name, *map(str, args)], stdout=log.open('w'), stderr=subprocess.STDOUT,
        env={**env, 'RANK': str(o), 'LOCAL_RANK': str(o)}) for o,log in enumerate(logs)]
    codes = [wait(p, timeout) for p in ps]
    files = [path/f'{name}-{o}.json' for o in range(n)]
    return codes,[json.loads(f.read_text()) if f.exists() else log.read_text() for f,log in zip(files, logs)]

@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp('unbroken')
    codes,seen = night(path, 2, 'whole', -1, 0, 0)
    assert not any(codes), seen
    return path,seen

def test_an_unbroken_night(unbroken):
    "The two saw other items, and have the same weights"
    a,b = unbroken[1]
    assert a['weights']==b['weights'] and len(a['seen'])==len(b['seen'])==6*6 and not set(a['seen'])&set(b['seen'])
    assert a['snapshots']==3 and len(a['values'])==6

@pytest.mark.parametrize('rank,epoch,batch', [(0,3,2), (1,4,0)])
def test_a_killed_night_goes_on(unbroken, tmp_path, rank, epoch, batch):
    "Bit for bit, in each process: weights, losses, the order of items and what a callback remembers of them"
    codes,seen = night(tmp_path, 2, 'killed', rank, epoch, batch)
    assert codes[rank]==-9 and codes[1-rank]!=0, seen
    codes,seen = night(tmp_path, 2, 'again', -1, 0, 0)
    assert not any(codes), seen
    for got,ref in zip(seen, unbroken[1]): assert got==ref
    assert 'Going on: checkpoint' not in (tmp_path/'again-1.log').read_text()

def test_a_finished_night(unbroken):
    "Run again, it trains nothing, and each process has the end"
    codes,seen = night(unbroken[0], 2, 'finished', -1, 0, 0)
    assert not any(codes), seen
    for got,ref in zip(seen, unbroken[1]): assert got['weights']==ref['weights'] and got['values']==ref['values'] and got['seen']==ref['seen']

def test_another_night_is_refused(unbroken):
    "By all of them, for one reason: another schedule, another number of processes"
    codes,seen = night(unbroken[0], 2, 'longer', -1, 0, 0, 4)
    assert not any(codes) and all('is of another run' in o['error'] and 'n_cycles=3' in o['error'] for o in seen), seen
    assert seen[1]['error'].startswith('the first process of this run ended with ValueError')
    codes,seen = night(unbroken[0], 3, 'more', -1, 0, 0)
    assert not any(codes) and all('processes: 2 became 3' in o['error'] for o in seen), seen
