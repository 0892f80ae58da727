"Left running for long: memory, open files, threads and temporary files stay as they are"
import gc, os, tempfile, time
import psutil, pytest
from fastai.callback.core import Callback
from fastai_clr import fit, precompute   # patch Learner; chkstyle: ignore
from learners import learner
from pictures import small

stress = bool(os.environ.get('STRESS'))

@pytest.fixture(autouse=True)
def own_tmp(tmp_path, monkeypatch):
    "A folder for temporary files that nobody else uses"
    (tmp_path/'tmp').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path/'tmp'))
    return tmp_path/'tmp'

def taken():
    "Megabytes of memory, objects, open files, threads"
    gc.collect()
    p = psutil.Process()
    return p.memory_info().rss/1e6,len(gc.get_objects()),p.num_fds(),p.num_threads()

def is_flat(before, own_tmp, mb, objects):
    "No more than `mb` megabytes of memory and so many `objects` are added to `before`, and nothing else"
    now = taken()
    print('megabytes, objects, open files, threads:', before, 'became', now)
    assert now[0]-before[0]<mb and now[1]-before[1]<objects and now[2]<=before[2] and now[3]<=before[3], f'{before} became {now}'
    assert not list(own_tmp.iterdir())

class AtCycle(Callback):
    "What is taken at the end of cycle `n`"
    def __init__(self, n): self.n,self.i,self.seen = n,0,None
    def after_cycle(self):
        self.i += 1
        if self.i==self.n: self.seen = taken()

def test_many_short_cycles_with_snapshots(tmp_path, own_tmp):
    n = 10_000 if stress else 200
    learn,watch = learner(1, path=tmp_path),AtCycle(n//4)
    learn.fit_sgdr(n, cycle_len=1, cycle_mult=1, lr_max=1e-3, snapshots='s', resume='r', cbs=watch)
    is_flat(watch.seen, own_tmp, 15 + n*.004, 500 + n*6)   # five objects a cycle are the recorder's rows, and fastai's
    kept = [o for o in (tmp_path/'models').rglob('*') if o.is_file()]
    assert len(learn.snapshots('s'))==n and sum('resume' in str(o) for o in kept)<10

def test_many_epochs_on_stored_activations(digits, tmp_path, own_tmp):
    "For an hour with STRESS=1"
    head = small(digits, tmp_path).precompute()
    with head.no_bar(), head.no_logging():
        head.fit(20)
        before,end,n = taken(),time.monotonic()+(3600 if stress else 5),0
        while time.monotonic()<end or n<3:
            head.fit_sgdr(2, cycle_len=10, lr_max=1e-3)
            n += 1
    is_flat(before, own_tmp, 15, 2000)

def test_many_hits_of_a_store(digits, tmp_path, own_tmp):
    learn = small(digits, tmp_path)
    with learn.no_logging():
        for i in range(1000 if stress else 40):
            if i==10: before = taken()
            learn.precompute()
    is_flat(before, own_tmp, 15, 2000)
    assert len([o for o in (tmp_path/'activations').iterdir() if o.is_dir()])==2
