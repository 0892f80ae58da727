"The command `clr_train` in a process that has its imports done, for tests that end it"
import errno, itertools, os, signal, sys, tempfile
from contextlib import redirect_stderr, redirect_stdout
from inspect import signature
import torch
from fastcore.script import anno_parser
from fastai_clr import cli
from fastai_clr.activations import StoreWriter

def command(func, argv, pos=()):
    "Run a command's function on its arguments, as its script does; its exit status"
    try:
        kw = vars(anno_parser(func.__wrapped__, pos=list(pos)).parse_args(list(map(str, argv))))
        func(**{k: kw[k] for k in signature(func.__wrapped__).parameters})
    except SystemExit as e: return e.code or 0
    return 0

def train(log, *argv):
    "`clr_train`, what it says going to the files `log`.out and `log`.err, and temporary files into the folder `log`.tmp"
    os.environ['TMPDIR'] = tempfile.tempdir = f'{log}.tmp'
    signal.signal(signal.SIGINT, signal.default_int_handler)   # a job in the background is started deaf to it
    torch.set_num_threads(1)
    sys.argv = ['clr_train',*map(str, argv)]
    with open(f'{log}.out', 'w', buffering=1) as out, open(f'{log}.err', 'w', buffering=1) as err, redirect_stdout(out), redirect_stderr(err):
        status = command(cli.clr_train, argv, ['pictures'])
    os._exit(status)

def stand_still(): os.kill(os.getpid(), signal.SIGSTOP)   # until somebody sends SIGCONT, as a process does whose disk doesn't answer

def train_as_activations_hang(log, *argv):
    "As `train`, with a disk that hangs at the first block"
    put = StoreWriter.put
    def slow(*args, **kw):
        StoreWriter.put = put
        stand_still()
        put(*args, **kw)
    StoreWriter.put = slow
    train(log, *argv)

def train_as_a_model_hangs(log, *argv):
    "As `train`, with a disk that hangs half-way through the first snapshot"
    save = torch.save
    def slow(obj, f, **kw):
        save(obj, f, **kw)
        if 'snapshots' not in str(f): return
        torch.save = save
        os.truncate(f, f.stat().st_size//2)
        stand_still()
        save(obj, f, **kw)
    torch.save = slow
    train(log, *argv)

def train_until_no_file_is_taken(log, n, *argv):
    "As `train`, on a disk that takes no more from the `n`-th file on: files get their names by `os.replace`"
    real,count = os.replace,itertools.count()
    def replace(a, b, **kw):
        if next(count)>=n: raise OSError(errno.ENOSPC, 'No space left on device', str(b))
        real(a, b, **kw)
    os.replace = replace
    train(log, *argv)
