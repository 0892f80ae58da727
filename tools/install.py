"""Make .venv and install this package in it, editable, with what an extra needs. Usage: `python tools/install.py demo|dev`

Standard library only, and no syntax that Python 2.7 can't read: an old Python has to get as far as the sentence that says so.
"""
import glob, io, os, re, shutil, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, '.venv')
GOALS = {'demo': 'make demo', 'dev': 'make test'}
# A full installation on Linux, where pip's torch brings CUDA along (6.5 GB), or elsewhere
NEED_GB = 7 if sys.platform.startswith('linux') else 2
FULL = ('No space left on device', 'Errno 28')

def min_python():
    "The oldest Python that settings.ini allows, as a tuple"
    txt = io.open(os.path.join(ROOT, 'settings.ini'), encoding='utf-8').read()
    return tuple(int(o) for o in re.search(r'^min_python = ([\d.]+)', txt, re.M).group(1).split('.'))

def dotted(version): return '.'.join(str(o) for o in version[:3])

def check_python(version, goal='make demo', what='this Python'):
    "Stop with a sentence if `version`, a tuple, is too old"
    need = min_python()
    if tuple(version[:2]) >= need: return
    sys.exit('fastai_clr needs Python {0} or newer, and {1} is {2}: name a newer one, as in {3} PYTHON=python3.12'.format(
        dotted(need), what, dotted(version), goal))

def check_disk(free, goal='make demo', need_gb=NEED_GB):
    "Stop with a sentence if `free`, in bytes, is less than a full installation takes"
    if free >= need_gb*1e9: return
    sys.exit('Not enough disk space: installing torch and the rest takes about {0} GB, and {1:.1f} GB are free here; '
        'make room, then run {2} again'.format(need_gb, free/1e9, goal))

def check_pip(rc, full, goal='make demo'):
    "Stop with a sentence if pip's exit status `rc` isn't 0; `full`: did it complain of a full disk?"
    if not rc: return
    if full: sys.exit('The disk is full: pip needs room in .venv, in its cache and in the folder for temporary files (TMPDIR); '
        'make room, then run {0} again: it goes on with what is missing'.format(goal))
    sys.exit('pip could not install the package: its last lines, above, say why; once mended, run {0} again'.format(goal))

def drop_half_made(site):
    "Forget packages whose installation was cut short in folder `site`, as pip would take them for whole; return their names"
    cut = [o for o in glob.glob(os.path.join(site, '*.dist-info')) if not os.path.exists(os.path.join(o, 'RECORD'))]
    for o in cut: shutil.rmtree(o)
    return [os.path.basename(o) for o in cut]

def run(cmd):
    "Run `cmd`, passing on all that is news; its exit status, and whether it said that the disk is full"
    full,p = False,subprocess.Popen(cmd, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8', errors='replace')
    for l in p.stdout:
        full = full or any(o in l for o in FULL)
        if 'already satisfied' in l: continue
        sys.stdout.write(l)
        sys.stdout.flush()
    return p.wait(), full

def make_venv(py, goal):
    "Make .venv, or check the one that is there"
    if not os.path.exists(VENV):
        print('Making a virtual environment in .venv')
        rc,full = run([sys.executable, '-m', 'venv', VENV])
        if not rc: return
        shutil.rmtree(VENV, ignore_errors=True)
        if full: check_pip(rc, full, goal)
        sys.exit('Python could not make a virtual environment (it says why above): on Debian and Ubuntu it wants '
            'apt-get install python3-venv; then run {0} again'.format(goal))
    again = 'delete the folder .venv, then run {0} again'.format(goal)
    try: out = subprocess.check_output([py, '-c', 'import sys; print(sys.version_info[:2])'])
    except (OSError, subprocess.CalledProcessError): sys.exit('The Python in .venv does not run: ' + again)
    version = tuple(int(o) for o in re.findall(r'\d+', out.decode()))
    if version < min_python(): sys.exit('.venv was made with Python {0}, too old for fastai_clr: {1}'.format(dotted(version), again))

def main(extra):
    goal,py = GOALS[extra],os.path.join(VENV, 'bin', 'python')
    check_python(sys.version_info, goal, sys.executable)
    # What serves developers serves the demo too
    stamps = [os.path.join(VENV, '.installed-'+o) for o in {extra, 'demo'}]
    for o in stamps:
        if os.path.exists(o): os.remove(o)
    sites = os.path.join(VENV, 'lib', 'python*', 'site-packages')
    for o in glob.glob(sites):
        for name in drop_half_made(o): print('Installing again what was cut short: ' + name)
    if not glob.glob(os.path.join(sites, 'torch-*.dist-info')): check_disk(shutil.disk_usage(ROOT).free, goal)
    make_venv(py, goal)
    print('Installing fastai_clr and what "{0}" needs in .venv (the first time about {1} GB, some minutes)'.format(goal, NEED_GB))
    rc,full = run([py, '-m', 'pip', 'install', '--disable-pip-version-check', '-e', '.[{0}]'.format(extra)])
    check_pip(rc, full, goal)
    for o in stamps: open(o, 'w').close()

if __name__ == '__main__':
    try: main(sys.argv[1])
    except KeyboardInterrupt: sys.exit('Stopped: run make again to go on')
