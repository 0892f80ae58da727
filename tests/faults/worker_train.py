"The command `clr_train` in a process that has its imports done, for tests that end it"
import os, signal, sys
from contextlib import redirect_stderr, redirect_stdout
from inspect import signature
import torch
from fastcore.script import anno_parser
from fastai_clr import cli

def command(func, argv, pos=()):
    "Run a command's function on its arguments, as its script does; its exit status"
    try:
        kw = vars(anno_parser(func.__wrapped__, pos=list(pos)).parse_args(list(map(str, argv))))
        func(**{k: kw[k] for k in signature(func.__wrapped__).parameters})
    except SystemExit as e: return e.code or 0
    return 0

def train(log, *argv):
    "`clr_train`, what it says going to the files `log`.out and `log`.err"
    signal.signal(signal.SIGINT, signal.default_int_handler)   # a job in the background is started deaf to it
    torch.set_num_threads(1)
    sys.argv = ['clr_train',*map(str, argv)]
    with open(f'{log}.out', 'w', buffering=1) as out, open(f'{log}.err', 'w', buffering=1) as err, redirect_stdout(out), redirect_stderr(err):
        status = command(cli.clr_train, argv, ['pictures'])
    os._exit(status)
