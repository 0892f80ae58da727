"""What the long tests find: kills at many moments, full disks, a hundred thousand random cases, an hour of training

    python benchmarks/bench_stress.py                  all of them, for some hours, two at a time
    python benchmarks/bench_stress.py test_fuzz.py     one file, for a look: nothing is written

A line for each file of tests goes to RESULTS.md; the exit status is that of the worst of them.
"""
import argparse, os, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree
from results import table, write_section

# The longest first
FILES = ['test_long.py','faults/test_train_faults.py','test_fuzz.py','faults/test_resume_faults.py','faults/test_store_faults.py','test_precompute.py','test_fit.py','test_numbers.py']
ROOT = Path(__file__).resolve().parents[1]

def run(name):
    "Run a file of tests with STRESS=1; its line, and pytest's exit status"
    with tempfile.TemporaryDirectory() as d:
        file,env = Path(d)/'r.xml',{**os.environ, 'STRESS': '1', 'OMP_NUM_THREADS': '1'}
        p = subprocess.run([sys.executable,'-m','pytest','-q','-p','no:cacheprovider',f'tests/{name}',f'--junitxml={file}'], cwd=ROOT, env=env)
        suite = ElementTree.parse(file).getroot().find('testsuite').attrib
    skipped,failed = int(suite['skipped']),int(suite['failures'])+int(suite['errors'])
    return dict(tests=name, run=int(suite['tests'])-skipped, skipped=skipped, failed=failed, minutes=f"{float(suite['time'])/60:.1f}"),p.returncode

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('files', nargs='*', help='some of the files')
    o = p.parse_args()
    with ThreadPoolExecutor(2) as ex: rows,statuses = zip(*ex.map(run, o.files or FILES))
    print(table(rows))
    if not o.files: write_section('Left running: the long tests', 'bench_stress.py', table(rows))
    sys.exit(max(statuses))
