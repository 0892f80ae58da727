"What other systems lack: file locks, room that can be taken beforehand, a look at free memory, workers that are forked. Each has a way round"
import errno, fcntl, multiprocessing, os, pickle, warnings
from pathlib import Path
import numpy as np, pytest, torch
from filelock import FileLock, Timeout
from fastai_clr import cli
from fastai_clr.activations import list_stores
from fastai_clr.all import picture_dls
from learners import learner, same, weights
from pictures import small

@pytest.fixture
def no_flock(monkeypatch):
    "A file system without locks, as some network drives of notebooks are"
    calls = []
    def flock(*args):
        calls.append(args)
        raise OSError(errno.ENOSYS, 'Function not implemented')
    monkeypatch.setattr(fcntl, 'flock', flock)
    return calls

def fit(learn, **kw):
    with learn.no_logging(): learn.fit_sgdr(2, cycle_len=1, cycle_mult=1, lr_max=1e-3, **kw)

def test_without_locks_of_the_system(digits, tmp_path, no_flock):
    "A file that is there while the lock is held takes its place: names are still one run's at a time"
    learn = small(digits, tmp_path)
    with learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.precompute()
        fit(learn, snapshots='s', resume='r')
        assert len(learn.snapshots('s'))==2 and len(list_stores(tmp_path/'activations'))==2
        with cli._claimed(tmp_path/'out'), pytest.raises(ValueError, match='another clr_train'):
            with cli._claimed(tmp_path/'out'): pass

def test_the_fallback_is_seen_to_be_taken(tmp_path, no_flock):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with FileLock(tmp_path/'l'), pytest.raises(Timeout): FileLock(tmp_path/'l').acquire(timeout=0)
        with FileLock(tmp_path/'l'): pass
    assert no_flock

def test_without_taking_room_beforehand(digits, tmp_path, monkeypatch):
    "As on macOS and Windows"
    want = small(digits, tmp_path/'a').precompute()
    monkeypatch.delattr(os, 'posix_fallocate')
    got = small(digits, tmp_path/'b').precompute()
    assert np.array_equal(got.stores['train'].arrays['x'], want.stores['train'].arrays['x']) and got.stores['train'].verify()==[]

def test_without_a_look_at_free_memory(digits, tmp_path, monkeypatch):
    "Rows are read from the disk, and trained on alike"
    def trained(path):
        head = small(digits, path).precompute()
        torch.manual_seed(0)
        with head.no_bar(), head.no_logging(): head.fit(1)
        return head
    want = trained(tmp_path/'a')
    monkeypatch.delattr(os, 'sysconf')
    got = trained(tmp_path/'b')
    assert (want.where,got.where)==('ram','disk') and same(weights(got), weights(want))

@pytest.fixture
def start_method():
    "Function that sets how processes are started; afterwards it is as it was"
    was = multiprocessing.get_start_method(allow_none=True)
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(was, force=True)

@pytest.mark.parametrize('method', ['fork','forkserver'])
def test_start_methods_of_workers(digits, tmp_path, start_method, method):
    "Forked from this process, or sent all that they need, as on macOS and Windows, and on Linux from Python 3.14 on: the same activations"
    want = small(digits, tmp_path/'want').precompute()
    learn = small(digits, tmp_path/method)
    start_method(method)
    multiprocessing.set_forkserver_preload(['fastai.vision.all','fastai_clr.precompute'])
    for dl in learn.dls.loaders: dl.num_workers,dl.fake_l.num_workers = 2,2
    got = learn.precompute()
    assert all(np.array_equal(got.stores[k].arrays[o], want.stores[k].arrays[o]) for k in got.stores for o in ('x','y','i'))

def test_data_can_be_sent_to_workers(digits): pickle.loads(pickle.dumps(picture_dls(digits, size=16, bs=16, device='cpu').train_ds))

def test_a_file_that_someone_has_open(tmp_path, monkeypatch):
    "As on Windows: the old one stays whole. A snapshot's error names it; of a checkpoint there is a warning, and training goes on"
    learner(3, path=tmp_path).fit_sgdr(1, 1, 1e-2, snapshots='s')
    files,real = {o: o.read_bytes() for o in (tmp_path/'models').rglob('cycle-*')},os.replace
    def held(a, b, **kw):
        if Path(b).name.startswith(('cycle-','epoch-')): raise PermissionError(13, 'used by another process', str(b))
        real(a, b, **kw)
    monkeypatch.setattr(os, 'replace', held)
    with pytest.raises(PermissionError, match='cycle-000'): learner(3, path=tmp_path).fit_sgdr(1, 1, 1e-2, snapshots='s', overwrite=True)
    with pytest.warns(UserWarning, match='could not be written'): learner(3, path=tmp_path).fit_sgdr(1, 1, 1e-2, resume='r')
    assert files and files=={o: o.read_bytes() for o in files}
