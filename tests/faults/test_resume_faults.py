"Runs whose process is killed, at any moment: the next goes on, and ends bit for bit where an unbroken one ends"
import multiprocessing, os, random, signal, time
import pytest, torch
import worker_resume as job

stress = bool(os.environ.get('STRESS'))
# Processes are forked from one that has imported fastai, so that they start at once
ctx = multiprocessing.get_context('forkserver')
ctx.set_forkserver_preload(['fastai_clr.fit','fastai.callback.training','fastai.metrics'])

def start(path, *args):
    pipe,theirs = ctx.Pipe(duplex=False)
    p = ctx.Process(target=job.work, args=(str(path), theirs, *args), daemon=True)
    p.start()
    theirs.close()
    return p,pipe

def told(pipe):
    "All that a process tells until it ends"
    res = []
    while True:
        assert pipe.poll(120), 'it tells nothing'
        try: res.append(pipe.recv())
        except EOFError: return res

def until(pipe, kind):
    assert pipe.poll(120), 'it tells nothing'
    k,v = pipe.recv()
    assert k==kind
    return v

@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    "What a run that nothing happens to tells, its snapshots, and the seconds it takes"
    path = tmp_path_factory.mktemp('unbroken')
    p,pipe = start(path, 0)
    until(pipe, 'start')
    begun = time.monotonic()
    res = told(pipe)
    secs = time.monotonic()-begun
    p.join(60)
    assert p.exitcode==0 and [k for k,_ in res]==['epoch']*job.EPOCHS+['end']
    return res[-1][1],snapshots(path),secs

def snapshots(path): return {o.name: torch.load(o) if o.suffix=='.pth' else o.read_text() for o in (path/'models/snapshots/s').iterdir()}

def equal(a, b): return a.keys()==b.keys() and all(a[k]==b[k] if isinstance(a[k], str) else all(torch.equal(a[k][n], b[k][n]) for n in a[k]) for k in a)

def finish(path, unbroken, seed=9):
    "The next process goes on by itself"
    p,pipe = start(path, seed)
    res = told(pipe)
    p.join(60)
    assert p.exitcode==0 and res[-1][0]=='end'
    assert res[-1][1]==unbroken[0] and equal(snapshots(path), unbroken[1])
    assert not [o for o in path.rglob('.*') if o.suffix!='.lock'], 'temporary files are left'
    return sum(k=='epoch' for k,_ in res)

@pytest.mark.parametrize('n', range(40 if stress else 4))
def test_killed_five_times(tmp_path, unbroken, n):
    "At random moments over the length of a run, the start and the writing of files included"
    rng = random.Random(n)
    for i in range(5):
        p,pipe = start(tmp_path, 0 if i==0 else i)
        until(pipe, 'start')
        p.join(rng.uniform(0, unbroken[2]))
        p.kill()
        p.join(60)
        assert p.exitcode in (-signal.SIGKILL,0)
    finish(tmp_path, unbroken)

@pytest.mark.parametrize('nth', range(1, 9))
def test_killed_while_writing(tmp_path, unbroken, nth):
    "In the middle of the nth file: snapshots and checkpoints take turns"
    p,pipe = start(tmp_path, 0, nth)
    told(pipe)
    p.join(60)
    assert p.exitcode==-signal.SIGKILL
    assert finish(tmp_path, unbroken)==job.EPOCHS-(nth-1)//2

def test_killed_between_epochs_again_and_again(tmp_path, unbroken):
    "A process for each epoch"
    for i in range(job.EPOCHS-1):
        p,pipe = start(tmp_path, i, 3 if i==0 else 4)
        told(pipe)
        p.join(60)
        assert p.exitcode==-signal.SIGKILL
    finish(tmp_path, unbroken)

def test_a_disk_that_takes_no_checkpoint(tmp_path, unbroken):
    "The system refuses the write: training goes on, nothing half-written is left, and the next run begins anew"
    p,pipe = start(tmp_path, 0, None, 700_000)   # a snapshot is smaller, a checkpoint larger
    res = told(pipe)
    p.join(60)
    assert p.exitcode==0 and res[-1]==('end', unbroken[0])
    assert not list((tmp_path/'models/resume/r').glob('*epoch-*')) and equal(snapshots(tmp_path), unbroken[1])
    assert finish(tmp_path, unbroken)==job.EPOCHS
