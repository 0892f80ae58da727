"""`clr_train` as a user runs it: wall-clock time of the whole command, and accuracy

The demo by default (target: at most 240 s and at least 97% on 2 CPU cores); with `--data NAME=PATH` a folder that has
`train`, `valid` and `test` folders, whose `test` is scored once, by the exported Learner. The result goes to RESULTS.md.
"""
import argparse, json, subprocess, sys, tempfile, time, warnings
from pathlib import Path
from results import table, write_section

TARGETS = dict(seconds=240, accuracy=.97)

def clr_train(*args):
    "Run the command; its seconds"
    start = time.time()
    subprocess.run([Path(sys.executable).with_name('clr_train'), *map(str, args)], check=True, stdout=subprocess.DEVNULL)
    return time.time()-start

def score(export, folder):
    "Accuracy of an exported Learner on a folder of class folders"
    warnings.simplefilter('ignore')
    from fastai.vision.all import get_image_files, load_learner, parent_label
    learn,files = load_learner(export),get_image_files(folder)
    with learn.no_bar(): probs,_ = learn.get_preds(dl=learn.dls.test_dl(files, num_workers=0))
    return sum(learn.dls.vocab[i]==parent_label(f) for i,f in zip(probs.argmax(1), files))/len(files)

def steps(report):
    def num(v, f): return '' if v is None else f.format(v)
    return table([dict(step=o['step'], what=o['title'], lr=o['lr'] or '', epochs=num(o['epochs'], '{}'), seconds=num(o['seconds'], '{:.1f}'),
        **{'valid loss': num(o.get('valid_loss'), '{:.4f}'), 'valid accuracy': num(o.get('metric'), '{:.4f}')}) for o in report['steps']])

def bench_demo(seeds):
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as d:
            secs = clr_train('--demo', '--out', f'{d}/run', '--seed', seed)
            report = json.loads(Path(d, 'run/report.json').read_text())
        rows.append(dict(seed=seed, seconds=f'{secs:.0f}', accuracy=f"{report['steps'][-1]['metric']:.4f}"))
        print(rows[-1], flush=True)
    ok = all(float(r['seconds'])<=TARGETS['seconds'] and float(r['accuracy'])>=TARGETS['accuracy'] for r in rows)
    return (f"Target: at most {TARGETS['seconds']} s, at least {TARGETS['accuracy']} on the held-out fifth. {'Met' if ok else 'Not met'} in these runs.\n\n"
            f"{table(rows)}\n\nThe steps of the last run:\n\n{steps(report)}")

def bench_folder(path, args):
    with tempfile.TemporaryDirectory() as d:
        secs = clr_train(path, '--out', f'{d}/run', *args)
        report = json.loads(Path(d, 'run/report.json').read_text())
        acc = score(f'{d}/run/export.pkl', Path(path)/'test')
    return f"Whole command: {secs:.0f} s. Accuracy on `test`, scored once: **{acc:.4f}**.\n\n{steps(report)}"

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', metavar='NAME=PATH', help='a folder with train, valid and test; options after -- go to clr_train')
    p.add_argument('--seeds', type=int, nargs='+', default=[42,43,44], help='seeds of the demo')
    p.add_argument('args', nargs='*')
    o = p.parse_args()
    if o.data:
        name,path = o.data.split('=', 1)
        write_section(f'clr_train on {name}', f"bench_train.py --data {name}=PATH -- {' '.join(o.args)}", bench_folder(path, o.args))
    else: write_section('clr_train --demo', f"bench_train.py --seeds {' '.join(map(str, o.seeds))}", bench_demo(o.seeds))
