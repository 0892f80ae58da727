"The same lines in a script, in a terminal and in Jupyter: a row an epoch is printed"
import os, re, subprocess, sys
from contextlib import suppress
import pytest

pty = pytest.importorskip('pty', reason='there are no terminals of this kind here')

SCRIPT = """
import warnings
warnings.simplefilter('ignore')
from fastai.basics import *
from fastai.callback.all import *
from fastai.test_utils import synth_learner
from fastai_clr.all import *
learn = synth_learner(path='.')
learn.fit_sgdr(2, 1, lr_max=1e-2, cycle_mult=1, snapshots='s', resume='r')
with learn.no_bar(), learn.no_logging(): learn.fit_clr(1, 1, lr_max=1e-2)
print('snapshots', len(learn.snapshots('s')))
"""

def script(f): return subprocess.run([sys.executable, f], cwd=f.parent, check=True, capture_output=True, text=True).stdout

def terminal(f):
    main,side = pty.openpty()
    p,out = subprocess.Popen([sys.executable, f], cwd=f.parent, stdin=side, stdout=side, stderr=side),b''
    os.close(side)
    with suppress(OSError):   # which Linux raises where the output ends
        while o := os.read(main, 4096): out += o
    os.close(main)
    assert p.wait()==0, out.decode()
    return out.decode()

def jupyter(f):
    nbformat,nbclient = pytest.importorskip('nbformat'),pytest.importorskip('nbclient')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f.read_text())])
    nbclient.NotebookClient(nb, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str(f.parent)))).execute()
    return '\n'.join(o.get('text') or o['data'].get('text/html') or o['data'].get('text/plain', '') for o in nb.cells[0].outputs)

@pytest.mark.parametrize('place', [script,terminal,jupyter], ids=lambda f: f.__name__)
def test_rows_are_printed(tmp_path, place):
    f = tmp_path/'train.py'
    f.write_text(SCRIPT)
    out = place(f)
    rows = re.findall(r'\d+\.\d{6}\D+\d+\.\d{6}\D+00:0\d', out)   # two losses and the time, in a table of either kind
    assert len(rows)==2 and 'valid_loss' in out and 'snapshots 2' in out and 'Traceback' not in out, out
