"`clr_schedule` as a user runs it: the table, the picture, and what is refused"
import re, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from fastai_clr.schedules import CosineRestarts, ExpDecay, InverseTimeDecay, StepDecay, Triangular

def clr_schedule(*args, cwd):
    "Run the command; its exit status, standard output and standard error"
    p = subprocess.run([Path(sys.executable).with_name('clr_schedule'), *map(str, args)], capture_output=True, text=True, cwd=cwd)
    return p.returncode,p.stdout,p.stderr

def rows(stdout): return [[float(v.replace(',', '')) for v in l.split()] for l in stdout.splitlines()[1:-1]]

@pytest.mark.parametrize('args,sched,n_iter', [
    ('sgdr', CosineRestarts(3), 100), ('sgdr --n-cycles 3 --cycle-mult 2 --n-iter 7', CosineRestarts(3, 1, 2), 7),
    ('sgdr --cycle-len .5 --cycle-mult 1.5 --lr-max .1 --lr-min .01 --cycle-decay .5 --warmup-pct .2', CosineRestarts(3, .5, 1.5, .1, .01, .5, .2), 100),
    ('sgdr --lr-max 1e-4,1e-3 --warmup 1', CosineRestarts(3, lr_max=(1e-4,1e-3)).warmup(1), 100),
    ('clr', Triangular(3), 100), ('clr --n-cycles 2 --step-size 1 --mode exp_range --gamma .99 --lr-max .1', Triangular(2, 1, .1, None, 'exp_range', .99), 100),
    ('step --lr .1 --factor .5 --every 3 --n-epochs 9', StepDecay(.1, .5, 3, 9), 100), ('exp --k .2', ExpDecay(1., .2, 30), 100),
    ('inverse', InverseTimeDecay(1., .1, 30), 100)])
def test_table_and_picture(args, sched, n_iter, tmp_path):
    rc,stdout,err = clr_schedule(*args.split(), cwd=tmp_path)
    assert rc==0, err
    vals,bounds = sched.values(n_iter),sched.bounds(n_iter)
    if vals.ndim==2: vals = vals[:,-1]
    want = [[i, a, a/n_iter, b-a, vals[a], vals[a:b].max(), vals[a:b].min()] for i,(a,b) in enumerate(zip(bounds, bounds[1:]))]
    assert np.allclose(rows(stdout), want, rtol=1e-3)
    assert stdout.splitlines()[-1]==f'{bounds[-1]:,} batches, {bounds[-1]/n_iter:.6g} epochs of {n_iter}. Wrote schedule.png'
    assert np.asarray(Image.open(tmp_path/'schedule.png').convert('L')).std()>5 and [o.name for o in tmp_path.iterdir()]==['schedule.png']

@pytest.mark.parametrize('suffix,start', [('svg',b'<?xml'), ('pdf',b'%PDF'), ('png',b'\x89PNG')])
def test_out(suffix, start, tmp_path):
    "What was there is replaced"
    out = tmp_path/f'a b.{suffix}'
    out.write_text('old')
    assert clr_schedule('clr', '--out', out, cwd=tmp_path)[0]==0
    assert out.read_bytes().startswith(start) and list(tmp_path.iterdir())==[out]

@pytest.mark.parametrize('args,says', [('nonsense', "must be one of sgdr, clr, step, exp, inverse, got 'nonsense'"), ('sgdr --mode triangular', '`--mode` is not an option of sgdr: it has --n-cycles'),
    ('step --lr-max 1', '`--lr-max` is not an option of step: it has --lr,'), ('sgdr --lr-max a,b', "`--lr-max` must be a number, or several separated by commas, got 'a,b'"),
    ('sgdr --lr-max 1,2 --lr-min 1,2,3', 'as many values as each other'), ('sgdr --n-cycles 0', '`n_cycles` must be'), ('sgdr --cycle-len -1', '`cycle_len` must be'),
    ('clr --mode exp_range', '`gamma` is needed'), ('clr --mode foo', '`mode` must be one of'), ('clr --step-size .001', 'each cycle needs at least one batch'),
    ('sgdr --n-iter 0', '`n_iter` must be a whole number'), ('sgdr --warmup 0', '`--warmup` must be a number of epochs above 0, got 0'), ('sgdr --warmup nan', '`--warmup` must be'), ('sgdr --out x.jpg', '`--out` must end in .png, .svg or .pdf, got x.jpg'),
    ('sgdr --out nowhere/x.png', 'nowhere'), ('exp --k nan', '`k` must be')])
def test_refused(args, says, tmp_path):
    "One sentence, exit status 1, nothing written"
    rc,_,err = clr_schedule(*args.split(), cwd=tmp_path)
    assert rc==1 and says in err and len(err.strip().splitlines())==1 and err.startswith('clr_schedule: '), err
    assert not list(tmp_path.iterdir())

def test_out_is_a_folder(tmp_path):
    (tmp_path/'d.png').mkdir()
    assert 'is not a file: choose another name' in clr_schedule('sgdr', '--out', 'd.png', cwd=tmp_path)[2]

def test_help_has_a_default_for_each_option(tmp_path):
    rc,stdout,_ = clr_schedule('--help', cwd=tmp_path)
    options = re.split(r'\n  (?=--)', stdout[stdout.index('options:'):])[1:]
    assert rc==0 and len(options)==18
    for o in options: assert re.search(r'default:|if not given|gamma', ' '.join(o.split())), o
