"""What the long tests find: kills at many moments, full disks, a hundred thousand random cases, an hour of training

    python benchmarks/bench_stress.py                  all of them, for some hours, two at a time
    python benchmarks/bench_stress.py test_fuzz.py     one file, after a change

What each file of tests found when it ran last is kept in cells/stress, and is a line of RESULTS.md; the exit status is that of the worst that ran.
"""
import argparse, json, os, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from xml.etree import ElementTree
from results import table, write_section

# The longest first
FILES = ['test_long.py','faults/test_train_faults.py','test_fuzz.py','faults/test_resume_faults.py','faults/test_store_faults.py','test_precompute.py','test_fit.py','test_numbers.py']
ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT/'benchmarks/cells/stress'

def cell_of(name): return CELLS/f'{Path(name).stem}.json'

def run(name):
    "Run a file of tests with STRESS=1 and keep its line; pytest's exit status"
    with tempfile.TemporaryDirectory() as d:
        file,env = Path(d)/'r.xml',{**os.environ, 'STRESS': '1', 'OMP_NUM_THREADS': '1'}
        p = subprocess.run([sys.executable,'-m','pytest','-q','-p','no:cacheprovider',f'tests/{name}',f'--junitxml={file}'], cwd=ROOT, env=env)
        suite = ElementTree.parse(file).getroot().find('testsuite').attrib
    skipped,failed = int(suite['skipped']),int(suite['failures'])+int(suite['errors'])
    row = dict(tests=name, run=int(suite['tests'])-skipped, skipped=skipped, failed=failed, minutes=f"{float(suite['time'])/60:.1f}", date=str(date.today()))
    CELLS.mkdir(parents=True, exist_ok=True)
    cell_of(name).write_text(json.dumps(row)+'\n', encoding='utf-8')
    return p.returncode

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('files', nargs='*', help='some of the files', metavar='FILE')
    o = p.parse_args()
    if odd := {*o.files}-{*FILES}: p.error(f"no such file among the long tests: {', '.join(sorted(odd))}; there are {', '.join(FILES)}")
    with ThreadPoolExecutor(2) as ex: statuses = list(ex.map(run, o.files or FILES))
    rows = [json.loads(cell_of(f).read_text(encoding='utf-8')) for f in FILES if cell_of(f).exists()]
    write_section('Left running: the long tests', 'bench_stress.py', 'A line for each file of tests, of the day when it ran last.\n\n'+table(rows))
    sys.exit(max(statuses))
